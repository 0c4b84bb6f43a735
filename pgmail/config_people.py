"""Addresses, domains and subjects in settings: what is wrong with one.

What can go wrong: a misspelt address that all mail would go to. It is judged as the address of an email is.
"""

from __future__ import annotations

MAX_PREFIX = 100  # characters


def redirect_fault(text: str) -> str | None:
    """Return why `text` cannot be the address that all mail goes to, or None if it can."""
    from pgmail.domain import address  # noqa: PLC0415 - with IDNA, which few commands need

    if not text:
        return None
    try:
        found = address.parse(text)
    except ValueError as error:
        return str(error)
    return "must be the address alone, without a name" if found.name is not None else None


def sender_fault(text: str) -> str | None:
    """Return why `text` cannot be the address that alerts come from, or None if it can."""
    from pgmail.domain import address  # noqa: PLC0415

    if not text:
        return None
    try:
        address.parse(text)
    except ValueError as error:
        return str(error)
    return None


def recipients_fault(text: str) -> str | None:
    """Return why `text` is no list of addresses and domains separated by blanks, or None if it is."""
    from pgmail.domain import address  # noqa: PLC0415

    for word in text.split():
        name = word.removeprefix("@")
        try:
            if "@" in name:
                address.parse(name)
            else:
                address.normalise_domain(name)
        except ValueError as error:
            return f"{word}: {error}"
    return None


def subject_fault(text: str) -> str | None:
    """Return why `text` cannot lead a subject, or None if it can."""
    if len(text) > MAX_PREFIX:
        return f"must be at most {MAX_PREFIX} characters"
    return None if text.isprintable() else "must not hold control characters"
