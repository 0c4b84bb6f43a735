"""What came of a call to somebody's URL: a value for each case, so that who decides imports nothing that calls."""

from __future__ import annotations

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """What came of a call. `status` is None where no answer came, and then `error` says why, in words.

    `text` is the beginning of the answer's body, `retry_after` its header as it came, `ms` how long all took.
    """

    status: int | None
    ms: int
    text: str = ""
    retry_after: str | None = None
    error: str | None = None

    @property
    def good(self) -> bool:
        """Whether the receiver took it: any 2xx."""
        return self.status is not None and 200 <= self.status < 300
