"""`pgmail classify`: what replies of mail servers mean, by the rules of this program. Needs no database.

JSON lines come in on standard input, `{"id","code","enhanced","text"}` and perhaps `"phase"`, and go out as
`{"id","class","suppress","reason","blame"}`, one for each, in their order. Or one reply is given by options.

What can go wrong: a line that is no such object. It is named by its number and the command ends with 1; what was
read before it has been answered.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from pgmail.errors import PgmailError

if TYPE_CHECKING:
    from pgmail.domain.replies import RuleBook

_PHASES = ("connect", "greeting", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "body", "dot")


@click.command(short_help="What replies of mail servers mean.")
@click.option("--text", metavar="TEXT", help="One reply's text, in place of standard input.")
@click.option(
    "--code",
    metavar="N",
    type=click.IntRange(200, 599),
    help="With --text: its code. Defaults to the text's.",
)
@click.option("--enhanced", metavar="X.Y.Z", help="With --text: its enhanced code. Defaults to the text's.")
@click.option("--phase", type=click.Choice(_PHASES), help="With --text: at which command it came.")
@click.option("--explain", is_flag=True, help="Also which rule said so, and what follows from it.")
def classify(
    text: str | None, code: int | None, enhanced: str | None, phase: str | None, *, explain: bool
) -> None:
    """Read replies as JSON lines with id, code, enhanced and text; print class, suppress, reason and blame of each."""
    from pgmail.shaping.rulebook import book  # noqa: PLC0415 - `pgmail --help` needs no rules

    rules = book()
    if text is not None or code is not None:
        one = {"code": code, "enhanced": enhanced, "phase": phase, "text": text or ""}
        click.echo(_line(rules, one, explain=explain))
        return
    if enhanced is not None or phase is not None:
        raise click.UsageError("--enhanced and --phase go with --text")
    for reply in _replies():
        click.echo(_line(rules, reply, explain=explain))


def _replies() -> Iterator[dict[str, Any]]:
    """The objects on standard input. PgmailError names the line that is none."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            reply = json.loads(line)
            code = reply.get("code")
            reply["code"] = int(code) if code not in (None, "") else None
        except (ValueError, TypeError, AttributeError) as error:
            raise PgmailError(
                f"line {number} of standard input: not a JSON object with code and text ({error})"
            ) from None
        yield reply


def _line(rules: RuleBook, reply: dict[str, Any], *, explain: bool) -> str:
    meaning = rules.classify(
        reply.get("code"), reply.get("enhanced") or None, reply.get("phase"), str(reply.get("text") or "")
    )
    why = meaning.reason
    answer = {"id": reply["id"]} if "id" in reply else {}
    answer |= {"class": why.class_, "suppress": why.suppress, "reason": why.name, "blame": why.blame}
    if explain:
        answer |= {
            "rule": meaning.rule, "means": why.means, "follows": why.follows, "slow": why.slow, "alert": why.alert,
        }  # fmt: skip
    return json.dumps(answer, ensure_ascii=False)
