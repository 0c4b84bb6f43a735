"""The error tree. Remote refusals are values (`domain.reply`); only our own faults are raised.

PgmailError
├── Refused             an email or a request breaks the law of ways in (carries code, field, status)
├── SettingsError       settings are wrong; names all of them at once
├── SchemaMismatch      program and schema do not fit together
├── DatabaseAway        PostgreSQL cannot be reached (also an OSError)
├── KeyMissing          what is sealed cannot be sealed or opened: a key is not here
├── SealBroken          sealed octets were changed, cut or moved
├── TemplateFault       a template cannot be compiled or rendered
└── SandboxError        the embedded PostgreSQL or the sink could not be started
"""

from __future__ import annotations


class PgmailError(Exception):
    """Root of all errors that pgmail raises itself."""


class Refused(PgmailError):  # noqa: N818 - the word users see
    """An email, or another request, was refused at the edge; nothing was stored.

    `code` is a stable word (`invalid_address`), `field` a JSON pointer into the body (`/to/0`, RFC 6901;
    empty when the whole body is meant), `status` the HTTP status; SQLSTATE is `PM` + status. `retry_after`
    are the seconds after which to ask again, where they are known.
    """

    retry_after: float | None = None

    def __init__(self, code: str, field: str, message: str, status: int = 422) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.code = code
        self.field = field
        self.message = message
        self.status = status


class SettingsError(PgmailError, ValueError):
    """One or more settings are wrong. `faults` has one line for each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class SchemaMismatch(PgmailError):  # noqa: N818 - it is a state of affairs
    """The program and the database schema refuse each other (`compatible_from`)."""


class DatabaseAway(PgmailError, ConnectionError):  # noqa: N818 - it is a state of affairs
    """PostgreSQL cannot be reached or dropped the connection."""


class KeyMissing(PgmailError):  # noqa: N818 - it is a state of affairs
    """A key that seals or opens mail is not in this process. With it all is well again: nothing is lost."""


class SealBroken(PgmailError, ValueError):  # noqa: N818 - it is a state of affairs
    """Sealed octets were changed, cut, moved to another mail, or sealed with another key."""


class TemplateFault(PgmailError, ValueError):  # noqa: N818 - the word operators see
    """A template cannot be compiled or rendered.

    `kind`: `syntax`, `missing_variable`, `unknown_template`, `unsafe`, `too_slow`, `too_big` or `error`.
    `part`: `subject`, `text` or `html`.
    """

    def __init__(self, kind: str, part: str, message: str, line: int | None = None) -> None:
        where = f"{part}, line {line}" if line else part
        super().__init__(f"{where}: {message}")
        self.kind = kind
        self.place = f"{where}: {kind}"  # without words that may quote a variable
        self.part = part
        self.message = message
        self.line = line


class SandboxError(PgmailError, RuntimeError):
    """The embedded PostgreSQL or the SMTP sink could not be started."""
