"""A chaos run by hand: `make chaos ARGS="--rounds 50 --seed 7"`. Prints a line a round, and the figures last."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.acceptance.chaos.rounds import WEIGHTS, run


def tell(line: str) -> None:
    """Say how it goes, at once; the figures alone are on standard output."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> int:
    """Run; 0 when everything held."""
    parser = argparse.ArgumentParser(prog="make chaos ARGS=...")
    parser.add_argument("--rounds", type=int, default=50, help="how many; defaults to 50")
    parser.add_argument(
        "--seed", type=int, help="to play a run again; defaults to a random one, which is printed"
    )
    parser.add_argument("--workers", type=int, default=3, help="worker processes, 2 at least; defaults to 3")
    parser.add_argument(
        "--drop", type=float, default=0.03, help="share of replies that are lost; defaults to 0.03"
    )
    parser.add_argument("--only", choices=WEIGHTS, help="one kind of round only")
    parser.add_argument(
        "--keep", type=Path, help="an empty folder for the logs, which stay; defaults to none"
    )
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    kinds = [options.only] * options.rounds if options.only else options.rounds
    with tempfile.TemporaryDirectory(prefix="pgmail-chaos-") as folder:
        figures = run(
            options.keep or Path(folder), kinds, seed=seed, workers=options.workers, drop=options.drop,
            say=tell,
        )  # fmt: skip
    sys.stdout.write(figures.line() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
