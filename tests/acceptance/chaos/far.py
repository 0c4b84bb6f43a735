"""The far side of a chaos run: an SMTP server that is never killed and writes down every dot that it accepted.

    python -m tests.acceptance.chaos.far --seed 7 --report FILE --drop 0.03

prints `{"port": ...}` when it is ready and ends when its standard input does. A line of the report is written (one
`write` to a file opened with O_APPEND, so it is the kernel's) before anything is answered:

    {"message_id", "recipient", "at" (Unix time, seconds), "by" (the client's name in EHLO), "replied"}

For a share of mails the connection is closed after the dot and nothing is answered; the other answers are late, most
by a little and some by seconds, so that there is always mail on the wire. What becomes of a mail depends on the seed,
its address and how often it came, and on nothing else: the same seed treats the same mail alike.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from pathlib import Path

import msgspec

from pgmail.domain.reply import Phase
from pgmail.sandbox.sink import Sink
from pgmail.sandbox.sink_rules import Answer, Asked

SLOW_SHARE = 0.04
SLOW_SECONDS = (1.0, 3.0)
USUAL_SECONDS = (0.02, 0.25)


class Far:
    """The rule of the sink, and its report."""

    def __init__(self, seed: int, report: Path, drop: float) -> None:
        self._seed, self._drop = seed, drop
        self._report = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._names: dict[int, str] = {}

    def __call__(self, asked: Asked) -> Answer | None:
        if asked.phase is Phase.EHLO:
            self._names[asked.connection] = asked.command.decode("ascii", "replace").partition(" ")[2].strip()
        if asked.phase is not Phase.DOT:
            return None
        dice = random.Random(f"{self._seed}:{asked.recipient}:{asked.tries}")
        dropped = dice.random() < self._drop
        slow = dice.random() < SLOW_SHARE
        seconds = dice.uniform(*(SLOW_SECONDS if slow else USUAL_SECONDS))
        line = {
            "message_id": asked.message_id,
            "recipient": asked.recipient,
            "at": time.time(),
            "by": self._names.get(asked.connection, ""),
            "replied": not dropped,
        }
        os.write(self._report, msgspec.json.encode(line) + b"\n")
        if dropped:
            return Answer(after="close", store=True, delay_seconds=seconds)
        return Answer(text="250 2.0.0 Ok: queued", store=True, delay_seconds=seconds)


async def serve(options: argparse.Namespace) -> None:
    """Run until standard input ends, which is when whoever started this does."""
    far = Far(options.seed, options.report, options.drop)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, lambda: sys.stdin.buffer.read1() or over.set())
    async with Sink(rule=far, keep_mails=0) as sink:
        sys.stdout.write(msgspec.json.encode({"port": sink.port}).decode() + "\n")
        sys.stdout.flush()
        await over.wait()


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--drop", type=float, default=0.0, help="share of mails whose reply is lost")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
