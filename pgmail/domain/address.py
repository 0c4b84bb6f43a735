"""An email address as people write it, taken apart and normalised (ops/docs/email.md, "Addresses").

`Name <addr@domain>` or `addr@domain` in; the forms that pgmail stores out. Pure, and linear in the text:
length is looked at before anything else, and no pattern here can backtrack.

What can go wrong: SQL normalises the same text with `lower`, NFC and Punycode, this module with IDNA 2008 and
UTS 46. They agree on domains as people register them. On exotic ones (emoji, compatibility characters) this
side refuses or maps where SQL does not, so a body must reach SQL unchanged and SQL's answer is the one
stored.
"""

from __future__ import annotations

import re
from functools import lru_cache

import idna
import msgspec

MAX_TEXT = 1_000  # octets of `Name <addr>`, and of a name given apart
MAX_LOCAL = 64  # octets, RFC 5321 section 4.5.3.1.1
MAX_DOMAIN = 253  # octets without the root dot, RFC 1035 section 2.3.4
MAX_ADDRESS = 254  # octets, RFC 5321 section 4.5.3.1.3 less the angle brackets

# What would end or garble a header field: C0, DEL, C1 and the two Unicode line ends.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Marks that turn the direction of what follows (UAX 9): text with them reads as something else. Those of one character
# (U+200E, U+200F, U+061C) are left, which right-to-left text needs.
BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\u00a0-\U0010ffff-"
_DOT_ATOM = re.compile(rf"[{_ATEXT}]+(?:\.[{_ATEXT}]+)*")
# Each character has one way to match, so a missing end quote costs one pass.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_UNESCAPE = re.compile(r"\\(.)")


class Address(msgspec.Struct, frozen=True):
    """One address in the forms that pgmail needs.

    `address` is the lower-case of local part and domain: what suppression and look-ups compare. `rcpt` is for
    the envelope: local part as given, domain in A-labels (RFC 5890). `name` is the display name without
    quotes, or None. `domain` is the lower-case domain in A-labels.
    """

    address: str
    rcpt: str
    name: str | None
    domain: str


def parse(text: str) -> Address:
    """Take `Name <addr@domain>`, `<addr@domain>` or `addr@domain` apart.

    Raises ValueError with a reason for people ("the domain needs at least two labels, ...").
    """
    _check_text(text)
    text = text.strip(" ")
    if text.endswith(">"):
        name, angle, text = text[:-1].rpartition("<")
        if not angle:
            raise ValueError("there is a > without a <")
        return _build(text, _unquote(name.strip(" ")))
    return _build(text, "")


def with_name(text: str, name: str | None) -> Address:
    """Take `addr@domain` and a display name given apart; raises as `parse` does, also for two names."""
    address = parse(text)
    if address.name:
        raise ValueError("there is a name inside the address; give it as name")
    if not name:
        return address
    _check_text(name)
    return msgspec.structs.replace(address, name=name.strip(" ") or None)


@lru_cache(maxsize=8192)  # the same few domains make up most mail
def normalise_domain(domain: str) -> str:
    """Return a domain in lower-case A-labels (RFC 5891), or raise ValueError with a reason."""
    if domain.startswith("["):
        raise ValueError("address literals such as [192.0.2.1] are not accepted; use a domain name")
    if len(domain) > MAX_DOMAIN:  # before IDNA, whose checks cost more per character
        raise ValueError(f"the domain has more than {MAX_DOMAIN} octets")
    labels = domain.lower().split(".") if domain.isascii() else _to_a_labels(domain)
    if len(labels) < 2:
        raise ValueError("the domain needs at least two labels, as in example.com")
    for label in labels:
        if not label:
            raise ValueError("the domain has an empty label (two dots in a row, or a dot at an end)")
        if len(label) > 63:
            raise ValueError(f"a label of the domain has more than 63 octets: {label[:20]}...")
        if not _LABEL.fullmatch(label):
            raise ValueError(f"a label of the domain is not letters, digits and inner hyphens: {label!r}")
    if labels[-1].isdigit():
        raise ValueError("the last label of the domain is a number; an IP address is not a domain")
    name = ".".join(labels)
    if len(name) > MAX_DOMAIN:
        raise ValueError(f"the domain has more than {MAX_DOMAIN} octets")
    return name


def lower(text: str) -> str:
    """Lower-case character by character, as PostgreSQL does, so that both compare the same string.

    `str.lower` looks at the neighbours of a final sigma and makes two characters of a dotted capital I.
    """
    if text.isascii():
        return text.lower()
    return "".join("i" if char == "\u0130" else char.lower() for char in text)


def _build(text: str, name: str) -> Address:
    """Normalise `addr@domain`."""
    local, at, domain = text.rpartition("@")
    if not at:
        raise ValueError("an address has the form name@example.com; there is no @")
    _check_local(local)
    domain = normalise_domain(domain)
    rcpt = f"{local}@{domain}"
    if len(rcpt.encode()) > MAX_ADDRESS:
        raise ValueError(f"the address has more than {MAX_ADDRESS} octets")
    return Address(f"{lower(local)}@{domain}", rcpt, name or None, domain)


def _to_a_labels(domain: str) -> list[str]:
    """Map by UTS 46 and encode each label that is not ASCII."""
    try:
        mapped = idna.uts46_remap(domain, std3_rules=False, transitional=False)
        return [
            label if label.isascii() else idna.alabel(label).decode("ascii") for label in mapped.split(".")
        ]
    except (idna.IDNAError, UnicodeError) as error:
        raise ValueError(f"the domain is not a valid internationalised name: {error}") from None


def _check_text(text: str) -> None:
    """Refuse what no address may have, before any other look at it."""
    if len(text) > MAX_TEXT or len(text.encode()) > MAX_TEXT:
        raise ValueError(f"longer than {MAX_TEXT:,} octets")
    if CONTROL.search(text):
        raise ValueError("there is a control character or line break")


def _check_local(local: str) -> None:
    """Hold the local part against RFC 5321 section 4.1.2, with RFC 6531 section 3.3 for non-ASCII."""
    if BIDI.search(local):
        raise ValueError("there is a mark that turns the direction of the text")
    if not local:
        raise ValueError("the part before the @ is empty")
    if len(local.encode()) > MAX_LOCAL:
        raise ValueError(f"the part before the @ has more than {MAX_LOCAL} octets")
    if _DOT_ATOM.fullmatch(local) or _QUOTED.fullmatch(local):
        return
    if "," in local or ";" in local or "@" in local:
        raise ValueError("one string holds one address; give several as an array")
    if local.startswith(".") or local.endswith(".") or ".." in local:
        raise ValueError("the part before the @ has a dot at an end, or two in a row")
    raise ValueError("the part before the @ has a character that must be in quotes or is not allowed")


def _unquote(name: str) -> str:
    """Take the quotes off a name that is a quoted string (RFC 5322 section 3.2.4); leave any other."""
    if not name.startswith('"'):
        if any(char in name for char in '<>"'):
            raise ValueError('a name with <, > or " must stand in quotes')
        return name
    if not _QUOTED.fullmatch(name):
        raise ValueError("the quotes around the name do not close before the address")
    return _UNESCAPE.sub(r"\1", name[1:-1])
