"""TXT records: what DNS says at the name where a domain's owner proves that it is theirs.

One look is one answer, always: what DNS refuses or fails at is a value with words for a person, never an
exception. Texts are joined as RFC 7208 section 3.3 joins them, since a record of more than 255 octets is
several strings.

What can go wrong: servers between here and the domain's own keep an old answer until its TTL runs out, an
NXDOMAIN too (RFC 2308). A record that was just published may be invisible for as long; the words say so.
Never asked while an email is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

SECONDS = 5.0
"""How long one look may take in all."""
LABEL = "_pgmail"
PREFIX = "pgmail-verify="

Outcome = Literal[
    "answered", "no_record", "no_name", "server_failed", "timed_out", "unreachable", "malformed"
]


class Look(msgspec.Struct, frozen=True):
    """What one look found. `found` are the texts of all TXT records at `name`; `said` is for people."""

    name: str
    outcome: Outcome
    found: tuple[str, ...]
    said: str


def record_of(domain: str) -> str:
    """Return the name at which a domain's TXT record is looked for."""
    return f"{LABEL}.{domain}"


async def look(domain: str, servers: Sequence[tuple[str, int]] = (), *, seconds: float = SECONDS) -> Look:
    """Ask for the TXT records of `_pgmail.domain`; `domain` in A-labels, `servers` instead of the system's.

    Takes `seconds` at most and raises nothing that DNS could be the cause of.
    """
    import dns.asyncresolver  # noqa: PLC0415 - a tenth of a second that most processes never need
    import dns.exception  # noqa: PLC0415
    import dns.name  # noqa: PLC0415
    import dns.nameserver  # noqa: PLC0415
    import dns.resolver  # noqa: PLC0415

    name = record_of(domain)
    try:
        resolver = dns.asyncresolver.Resolver(configure=not servers)
        if servers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in servers]
        answer = await resolver.resolve(
            dns.name.from_text(name), "TXT", lifetime=seconds, raise_on_no_answer=False, search=False
        )
    except dns.resolver.NXDOMAIN:
        said = f"there is no name {name} (NXDOMAIN); publish the record, and give it the time of the old TTL"
        return Look(name, "no_name", (), said)
    except dns.resolver.NoNameservers:
        said = (
            f"no name server answers for {name} (SERVFAIL or REFUSED); look at the delegation and DNSSEC of "
            f"{domain}, then verify again"
        )
        return Look(name, "server_failed", (), said)
    except dns.exception.Timeout:
        said = f"no answer about {name} in {seconds:g} s; verify again, and if it stays so look at the name servers"
        return Look(name, "timed_out", (), said)
    except dns.resolver.NoResolverConfiguration:
        said = "this host has no name servers configured; set PGMAIL_DNS_SERVERS"
        return Look(name, "unreachable", (), said)
    except dns.exception.DNSException as error:
        said = f"the answer about {name} cannot be read ({type(error).__name__}); verify again later"
        return Look(name, "malformed", (), said)
    except OSError as error:
        said = f"no name server can be reached ({error.strerror or type(error).__name__})"
        return Look(name, "unreachable", (), said)
    texts = tuple(_text(b"".join(record.strings)) for record in answer.rrset or ())
    if not texts:
        said = f"the name {name} is there and has no TXT record; publish it at exactly this name"
        return Look(name, "no_record", (), said)
    return Look(name, "answered", texts, said_of(name, texts))


def _text(octets: bytes) -> str:
    """Return a record's text. A zone may hold any octet, and PostgreSQL stores no NUL."""
    return octets.decode("utf-8", "replace").replace("\0", "\ufffd").strip()


def said_of(name: str, texts: Sequence[str]) -> str:
    """Return what was found, in words, at a length for a table."""
    shown = ", ".join(f'"{text[:80]}"' for text in texts[:3])
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return f"{name} has {shown}{more}"
