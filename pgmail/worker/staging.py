"""What a worker's settings make of mail so that none of it reaches a stranger: for staging, and for tests.

    allow-list   who is not on it gets nothing: settled as suppressed, with the reason
    redirect     all mail goes to one address: the envelope alone; the original recipient stands in a header
    prefix       before each subject

They are the worker's, so that no key, template or application can go around them. What can go wrong: that
somebody forgets them. So they stand in the worker's start line, in its row (`pgmail doctor` compares), and in the
events of each mail that they changed. A test email needs none of them: it never leaves (`transport.sandbox`).
"""

from __future__ import annotations

from typing import Self

import msgspec

from pgmail.config import Settings
from pgmail.domain import address
from pgmail.render.headers import unstructured

TEST_RELAY = "test:"
"""Who carries test email; no relay of the settings may be called so."""
ORIGINAL = "X-PGMail-Original-To"
NOT_ALLOWED = "not in the allow-list of this installation"


class Staging(msgspec.Struct, frozen=True, kw_only=True):
    """The settings, ready to be asked. Empty ones change nothing; domains are in A-labels."""

    redirect_to: str = ""
    redirect_domain: str = ""
    allowed: frozenset[str] = frozenset()  # addresses, and domains led by "@"
    subject_prefix: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Read the settings, which were checked when they were loaded."""
        to = address.parse(settings.redirect_to) if settings.redirect_to else None
        return cls(
            redirect_to=to.rcpt if to else "",
            redirect_domain=to.domain if to else "",
            allowed=frozenset(_entry(word) for word in settings.allowed_recipients.split()),
            subject_prefix=settings.subject_prefix + " " if settings.subject_prefix else "",
        )

    def __bool__(self) -> bool:
        return bool(self.redirect_to or self.allowed or self.subject_prefix)

    def words(self) -> str | None:
        """All of it in one line, the same for the same settings; None where they change nothing."""
        said = []
        if self.redirect_to:
            said.append(f"all mail goes to {self.redirect_to} (PGMAIL_REDIRECT_TO)")
        if self.allowed:
            names = ", ".join(sorted(name.removeprefix("@") for name in self.allowed))
            said.append(f"none but {names} gets mail (PGMAIL_ALLOWED_RECIPIENTS)")
        if self.subject_prefix:
            said.append(f"subjects begin with {self.subject_prefix!r} (PGMAIL_SUBJECT_PREFIX)")
        return "; ".join(said) or None

    def note(self) -> str | None:
        """What was done to a mail that went out, for its events."""
        said = []
        if self.redirect_to:
            said.append(f"redirected to {self.redirect_to}")
        if self.subject_prefix:
            said.append(f"subject led by {self.subject_prefix!r}")
        return "staging: " + ", ".join(said) if said else None

    def refuses(self, recipient: str) -> bool:
        """Tell whether a recipient (as `RecipientRow.address`) may get no mail of this installation."""
        if not self.allowed:
            return False
        return recipient not in self.allowed and recipient[recipient.rfind("@") :] not in self.allowed

    def body(self, recipient: str, body: bytes) -> bytes:
        """A message with the recipient that it was for in a header of its own."""
        return unstructured(ORIGINAL, recipient) + body


NONE = Staging()


def _entry(word: str) -> str:
    if "@" in word.removeprefix("@"):
        return address.parse(word).address
    return "@" + address.normalise_domain(word.removeprefix("@"))
