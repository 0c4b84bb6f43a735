"""The rules for replies that came with this program, read once a process from `sql/rules/replies.toml`.

What can go wrong: the file is missing or does not hold together, both faults of the installation (ValueError or
FileNotFoundError at first use; a test reads the file that is shipped).
"""

from __future__ import annotations

import functools

from pgmail import sqlfiles
from pgmail.domain.replies import RuleBook


@functools.cache
def book() -> RuleBook:
    """The rules of this program. Reading them takes some ten milliseconds, once."""
    return RuleBook(sqlfiles.read(sqlfiles.REPLY_RULES))
