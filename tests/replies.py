"""Replies of real servers, each with what a person says it means: `tests/replies.jsonl`, one object a line.

`{"id","code","enhanced","text","class","suppress","set"}`. The texts are what providers and servers publish of their
replies, with addresses and hosts of documentation in place of real ones. `set` is `tuned` or `held-out`, by a hash of
the text: rules are changed by looking at the first; the second is only counted.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pgmail.domain.replies import RuleBook

FILE = Path(__file__).with_name("replies.jsonl")


@cache
def corpus() -> list[dict[str, Any]]:
    """All of them, in the file's order."""
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


class Score(NamedTuple):
    """Parts of one: classes right, addresses suppressed that should not be, and found of those that should."""

    right: float
    false: float
    found: float


def score(rules: RuleBook, which: str) -> Score:
    """How well rules do on `tuned` or `held-out`."""
    right = all_ = false = innocent = found = gone = 0
    for reply in corpus():
        if reply["set"] != which:
            continue
        meaning = rules.classify(reply["code"], reply["enhanced"], None, reply["text"])
        all_ += 1
        right += meaning.reason.class_ == reply["class"]
        if reply["suppress"]:
            gone += 1
            found += meaning.suppress
        else:
            innocent += 1
            false += meaning.suppress
    return Score(right / all_, false / innocent, found / gone)
