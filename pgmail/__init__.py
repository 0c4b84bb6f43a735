"""Email sending on PostgreSQL: one database is both the queue and the system of record.

Applications use `send`, `send_many`, `cancel`, `reschedule` and `status` on their own connection, inside their
own transaction; `pgmail.client` documents them. What is here is loaded on first use, so that importing pgmail
costs an application nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgmail.client import Change, Sent, Standing, cancel, reschedule, send, send_many, status
    from pgmail.client_seal import Sealer
    from pgmail.domain.email import Attachment, Email, Recipient
    from pgmail.errors import PgmailError, Refused

__all__ = [
    "Attachment",
    "Change",
    "Email",
    "PgmailError",
    "Recipient",
    "Refused",
    "Sealer",
    "Sent",
    "Standing",
    "__version__",
    "cancel",
    "reschedule",
    "send",
    "send_many",
    "status",
]

_HOMES = {
    "pgmail.client": (
        "Change",
        "Sent",
        "Standing",
        "cancel",
        "reschedule",
        "send",
        "send_many",
        "status",
    ),
    "pgmail.client_seal": ("Sealer",),
    "pgmail.domain.email": ("Attachment", "Email", "Recipient"),
    "pgmail.errors": ("PgmailError", "Refused"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    import importlib  # noqa: PLC0415 - all of this is for a quick import

    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

        try:
            value: Any = version("pgmail")
        except PackageNotFoundError:  # a checkout that was never installed
            value = "0"
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'pgmail' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
