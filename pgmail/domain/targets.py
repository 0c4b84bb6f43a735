"""Which web addresses pgmail may call for a tenant: none that leads into the network that it runs in.

Two questions, both without I/O: what is wrong with a URL as it is written (`url_fault`, when it is stored), and
whether an IP address may be called (`reachable`, for each address at the moment of connecting: what a name led to
when it was looked at before says nothing).

What can go wrong: an address of a network that carries another address inside it (IPv4-mapped, 6to4, Teredo,
NAT64) and so leads where its own number does not tell. All of those are refused, unless an operator names their
network in PGMAIL_HOOK_NETWORKS; and then what they carry must be public or named there itself. Where all that one
carries is named, it may be called as what it leads to.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

MAX_URL = 2_000

# IANA's special-purpose registries (RFC 6890 and its updates), and what carries an IPv4 address inside.
REFUSED: dict[str, str] = {
    "0.0.0.0/8": "this host and network",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared by a provider's customers (CGNAT)",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local, where clouds serve their metadata",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "for protocols",
    "192.0.2.0/24": "for documentation",
    "192.31.196.0/24": "for AS112",
    "192.52.193.0/24": "for AMT",
    "192.88.99.0/24": "6to4 relays",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "for AS112",
    "198.18.0.0/15": "for benchmarks",
    "198.51.100.0/24": "for documentation",
    "203.0.113.0/24": "for documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved and broadcast",
    "::/8": "unspecified, loopback, IPv4-mapped and IPv4-compatible",
    "64:ff9b::/96": "NAT64",
    "64:ff9b:1::/48": "local NAT64",
    "100::/64": "discarded",
    "2001::/23": "for protocols, Teredo among them",
    "2001:db8::/32": "for documentation",
    "2002::/16": "6to4",
    "3fff::/20": "for documentation",
    "5f00::/16": "segment routing",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "fec0::/10": "site-local",
    "ff00::/8": "multicast",
}
_REFUSED = tuple(ip_network(text) for text in REFUSED)
_GLOBAL_V6 = ip_network("2000::/3")  # all that is given out so far
_V4 = (1 << 32) - 1
# IPv4-compatible, IPv4-mapped, IPv4-translated and NAT64's own: the IPv4 address is the end of it.
_LAST_32 = tuple(ip_network(text) for text in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
_LOCAL_NAT64 = ip_network("64:ff9b:1::/48")
_TEREDO = ip_network("2001::/32")
_SIX_TO_FOUR = ip_network("2002::/16")


def networks_of(text: str) -> tuple[Network, ...]:
    """Return the networks of a setting, separated by blanks. ValueError for what is none."""
    return tuple(ip_network(word) for word in text.split())


def within(address: str, networks: Sequence[Network]) -> bool:
    """Tell whether an IP address leads into one of these networks; nothing but an address leads into any.

    One that carries others does if all of them do, or if it is named almost by itself (by more than 96 bits).
    """
    found = _parsed(address)
    if found is None:
        return False
    named = _named(found, networks)
    if not (inside := _carried(found, named)):
        return bool(named)
    return _by_itself(named) or all(_named(each, networks) for each in inside)


def reachable(address: str, allowed: Sequence[Network] = ()) -> bool:
    """Tell whether an IP address may be called: a public one, or one that an operator allowed.

    One that carries others is if all of them are and its network is named, or if they are named themselves.
    """
    found = _parsed(address)
    if found is None:
        return False
    named = _named(found, allowed)
    if inside := _carried(found, named):
        return within(address, allowed) or (bool(named) and all(_open(each, allowed) for each in inside))
    return _open(found, allowed)


def _open(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether an address is public or allowed, whatever it may carry."""
    if _named(address, allowed):
        return True
    if isinstance(address, IPv6Address) and address not in _GLOBAL_V6:
        return False
    return not any(address in network for network in _REFUSED)


def _named(address: Address, networks: Sequence[Network]) -> list[Network]:
    """Those of these networks that hold an address."""
    return [network for network in networks if address in network]


def _by_itself(named: Sequence[Network]) -> bool:
    return any(network.version == 6 and network.prefixlen > 96 for network in named)


def _carried(address: Address, named: Sequence[Network]) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 address carries inside, to each of which it may lead.

    A local NAT64 prefix may be of 48, 56, 64 or 96 bits (RFC 6052, section 2.2), and only who set it up knows: it is
    as long as the network that is `named`, and of 96 bits where that is of another length.
    """
    if not isinstance(address, IPv6Address):
        return ()
    bits = int(address)
    if any(
        address in network for network in _LAST_32
    ):  # ::1 and :: carry nothing that is not refused as well
        return (IPv4Address(bits & _V4),)
    if address in _TEREDO:  # RFC 4380, section 4: its server, and the client behind a NAT, inverted
        return IPv4Address(bits >> 64 & _V4), IPv4Address(~bits & _V4)
    if address in _SIX_TO_FOUR:  # RFC 3056, section 2
        return (IPv4Address(bits >> 80 & _V4),)
    if address in _LOCAL_NAT64:
        lengths = {network.prefixlen for network in named} & {48, 56, 64} or {96}
        return tuple(_translated(bits, length) for length in sorted(lengths))
    return ()


def _translated(bits: int, length: int) -> IPv4Address:
    """What an address translates to behind a NAT64 prefix of so many bits: around the octet of bits 64 to 71."""
    without = (bits >> 64 << 56) | (bits & ((1 << 56) - 1))  # 120 bits
    return IPv4Address(bits & _V4 if length == 96 else without >> (120 - length - 32) & _V4)


def url_fault(text: str, allowed: Sequence[Network] = ()) -> str | None:
    """Return why this URL cannot be called, as far as it shows without DNS; None if it can.

    https, or http where networks are allowed (and then only into those, which shows at connecting); a host; the
    port of the scheme, or one from 1024 on; no user, no password and no fragment; up to 2,000 visible ASCII characters.
    """
    if len(text) > MAX_URL:
        return f"is longer than {MAX_URL:,} characters"
    if not all("!" <= letter <= "~" for letter in text) or "\\" in text:
        return "has blanks or other characters that belong percent-encoded, a host in A-labels"
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        return "is not a URL"
    if parts.scheme not in {"https", "http"} or not host:
        return "must be https://host/path"
    if parts.username is not None or parts.password is not None:
        return "has a user or password in it, which would be shown to who looks; use the signature"
    if "#" in text:
        return "has a fragment (#), which is never sent"
    if parts.scheme == "http" and not allowed:
        return "must be https; http is for networks in PGMAIL_HOOK_NETWORKS"
    own = 443 if parts.scheme == "https" else 80
    if port is not None and port != own and not 1_024 <= port <= 65_535:
        return f"has the port {port}; it may be {own}, or 1024 and above"
    if parts.scheme == "http" and _parsed(host) is not None and not within(host, allowed):
        return "must be https; http is for networks in PGMAIL_HOOK_NETWORKS"
    if (_parsed(host) is not None or _numeric(host)) and not reachable(host, allowed):
        return "leads to no public address; others are for PGMAIL_HOOK_NETWORKS"
    return None


def shown_url(text: str) -> str:
    """Return a URL fit for a log: its query, which often holds a secret, is left out."""
    return text.partition("?")[0].partition("#")[0]


def _parsed(text: str) -> Address | None:
    try:
        found = ip_address(text.strip("[]"))
    except ValueError:
        return None
    # A zone (fe80::1%eth0) names an interface of ours.
    return None if isinstance(found, IPv6Address) and found.scope_id else found


def _numeric(host: str) -> bool:
    """Whether a host is a number to some resolvers: 2130706433, 0x7f.1, 127.1."""
    last = host.rstrip(".").rpartition(".")[2]
    return last.isdigit() or last.lower().startswith("0x")
