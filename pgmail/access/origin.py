"""From which address a request comes: the peer's, or what a proxy that is trusted says.

Behind a proxy every peer is the proxy. It appends the address that it saw to `X-Forwarded-For`, so of that list
the end is trustworthy as long as each hop is a proxy of ours (PGMAIL_TRUSTED_PROXIES), and the first address from
the end that is none of them is the client's.

What can go wrong: the header is believed from anybody, and a client names the address that it likes. So without
the setting it is not read, and what is written further left than an unknown or malformed hop counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from pgmail.store.keys import Network

Address = IPv4Address | IPv6Address

MAX_HOPS = 32


class Origins:
    """Tells where requests come from. `trusted` are the proxies' networks."""

    def __init__(self, trusted: Iterable[Network] = ()) -> None:
        self._trusted = tuple(trusted)

    def of(self, scope: Any) -> str | None:
        """Return the address of a request's client from its ASGI scope; None where a socket has none."""
        client = scope.get("client")
        peer: str | None = client[0] if client else None
        if not self._trusted or not self._ours(peer):
            return peer
        lines = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        hops = b",".join(lines).decode("latin-1").split(",")[-MAX_HOPS:]
        for hop in reversed(hops):
            address = read(_without_port(hop.strip()))
            if address is None:
                break
            peer = str(address)
            if not self._ours(peer):
                break
        return peer

    def _ours(self, text: str | None) -> bool:
        address = read(text)
        return address is not None and inside(address, self._trusted)


def _without_port(hop: str) -> str:
    """Return a hop without the port that some proxies write after it: 192.0.2.7:4711, [2001:db8::7]:4711."""
    if hop.startswith("["):
        return hop.partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a setting, separated by blanks. Raises ValueError naming the one that is none."""
    found = []
    for word in text.split():
        try:
            found.append(ip_network(word))
        except ValueError:
            raise ValueError(f"{word[:50]!r} is no network such as 10.0.0.0/8") from None
    return tuple(found)


@lru_cache(maxsize=4096)  # a request asks about its address several times, and comes again from there
def read(text: str | None) -> Address | None:
    """Return an address as it is compared: an IPv4 one in IPv6 clothes as IPv4, without a zone; None for none."""
    if not text:
        return None
    try:
        address = ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def inside(address: Address, networks: Iterable[Network]) -> bool:
    """Tell whether an address lies in one of these networks."""
    return any(address.version == network.version and address in network for network in networks)


def group(text: str | None) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 that one IPv6 client has all of."""
    address = read(text)
    if address is None:
        return "unknown"
    return str(ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
