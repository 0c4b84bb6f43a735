"""Connection strings in settings: what is wrong with one, and how it may be shown.

A database is named by a URL or by libpq's `key=value` words, both with any number of hosts; a relay by an
`smtp://` or `smtps://` URL, several by `name=url` pairs. Only the form is judged here: the driver and the relay
read them for themselves.

What can go wrong: a password in a log. Masking therefore also works on strings that are malformed, and rather
hides too much; no fault names the string itself.
"""

from __future__ import annotations

import base64
import binascii
import re
from ipaddress import ip_network
from urllib.parse import urlsplit

_USERINFO = re.compile(r"(://[^:/@?\s]*):\S*@")
_SECRET_WORD = re.compile(r"(?i)\b((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'?|[^\s&]+)")
# libpq's own grammar: words separated by space, a value with spaces in single quotes, backslash escapes.
_WORD = re.compile(r"\s*([a-z_]+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)*)(?=\s|$)\s*")
_RELAY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_KEY_BYTES = 32  # AES-256
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^:\[\]@\s]*)(?::(\d*))?")


def mask_url(text: str) -> str:
    """Return a connection string with each password in it shown as `***`."""
    return _SECRET_WORD.sub(r"\1***", _USERINFO.sub(r"\1:***@", text))


def database_fault(text: str) -> str | None:
    """Return why `text` cannot name a PostgreSQL database, or None if it can."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _words_fault(text)
    if scheme not in {"postgres", "postgresql"}:
        return f"must be a postgresql:// URL or libpq keywords (host=... dbname=...), not {scheme[:20]}://"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    for host in authority.split(","):
        match = _HOST.fullmatch(host)
        if match is None:
            return "has a malformed host; if a password has @, / or : in it, write them as %40, %2F, %3A"
        if match[1] and not 1 <= int(match[1]) <= 65_535:
            return "has a port outside 1 to 65535"
    return None


def relay_fault(text: str) -> str | None:
    """Return why `text` cannot name an SMTP relay, or None if it can."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        return "has a port outside 1 to 65535" if "Port" in str(error) else "is not a URL"
    if url.scheme not in {"smtp", "smtps"}:
        return "must be smtp://host:port or smtps://host:port"
    if not url.hostname:
        return "names no host, as in smtp://relay.example.com:587"
    if port == 0:
        return "has a port outside 1 to 65535"
    if url.path not in {"", "/"} or url.fragment:
        return "has something after the host that is not an option (?tls=starttls)"
    return None


def relay_pairs(text: str) -> dict[str, str]:
    """Return the relays of `name=url name=url`, by name. ValueError says what is wrong, without the URL."""
    found: dict[str, str] = {}
    for part in text.split():
        name, separator, url = part.partition("=")
        if not separator or not _RELAY_NAME.fullmatch(name):
            raise ValueError(
                "must be name=url pairs separated by blanks, as in ses=smtps://user:password@host; "
                "a name is 1 to 63 of A-Z a-z 0-9 _ . -, led by a letter or digit"
            )
        if name == "default":
            raise ValueError("default is the name of PGMAIL_RELAY_URL")
        if name in found:
            raise ValueError(f"{name} comes twice")
        if fault := relay_fault(url):
            raise ValueError(f"{name} {fault}")
        found[name] = url
    return found


def relays_fault(text: str) -> str | None:
    """Return why `text` cannot name relays, or None if it can."""
    try:
        relay_pairs(text)
    except ValueError as error:
        return str(error)
    return None


def dns_servers_of(text: str) -> tuple[tuple[str, int], ...]:
    """Return name servers written as `192.0.2.1,192.0.2.2:5353,[2001:db8::1]:53`; none for an empty text.

    Raises ValueError with what is wrong: an entry that is no IP address, a port out of range.
    """
    from ipaddress import ip_address  # noqa: PLC0415 - few commands ask anything of DNS

    found = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        host, port = entry, "53"
        if entry.startswith("["):
            host, closed, rest = entry[1:].partition("]")
            if not closed:
                raise ValueError(f"{entry!r} has a [ without a ]")
            port = rest.removeprefix(":") or "53"
        elif entry.count(":") == 1:
            host, port = entry.split(":")
        try:
            address = str(ip_address(host))
        except ValueError:
            raise ValueError(f"{host!r} is no IP address of a name server") from None
        if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65_536):
            raise ValueError(f"{port!r} is no port")
        found.append((address, int(port)))
    return tuple(found)


def dns_servers_fault(text: str) -> str | None:
    """Return why a text names no name servers, or None if it does."""
    try:
        dns_servers_of(text)
    except ValueError as error:
        return str(error)
    return None


def key_pairs(text: str) -> dict[str, bytes]:
    """Return the keys of `name=base64 name=base64`. ValueError says what is wrong and shows no key."""
    found: dict[str, bytes] = {}
    for number, part in enumerate(text.split(), start=1):
        name, separator, encoded = part.partition("=")
        if not separator or not is_key_name(name):
            raise ValueError(
                f"entry {number} is not name=base64; `pgmail seal key` makes one, and a name is 1 to 63 of "
                "A-Z a-z 0-9 _ . -, led by a letter or digit"
            )
        try:
            key = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            raise ValueError(f"{name} is not base64") from None
        if len(key) != _KEY_BYTES:
            raise ValueError(f"{name} has {len(key)} octets; a key has {_KEY_BYTES}")
        if found.setdefault(name, key) != key:
            raise ValueError(f"{name} comes twice")
    return found


def keys_fault(text: str) -> str | None:
    """Return why `text` cannot hold keys, or None if it can."""
    try:
        key_pairs(text)
    except ValueError as error:
        return str(error)
    return None


def is_key_name(text: str) -> bool:
    """Tell whether `text` can name a key."""
    return _RELAY_NAME.fullmatch(text) is not None


def mask_keys(text: str) -> str:
    """Return keys with their names only. What is malformed is not shown at all."""
    try:
        return " ".join(f"{name}=***" for name in key_pairs(text))
    except ValueError:
        return "***" if text else ""


def relay_or_none_fault(text: str) -> str | None:
    """Return why `text` cannot name an SMTP relay, or None if it can or is empty."""
    return relay_fault(text) if text else None


def web_fault(text: str) -> str | None:
    """Return why `text` cannot be an address of the web, or None if it can or is empty."""
    if not text:
        return None
    try:
        url = urlsplit(text)
        if url.port == 0:
            return "has a port outside 1 to 65535"
    except ValueError:
        return "is not a URL"
    good = url.scheme in {"http", "https"} and url.hostname and not (url.fragment or url.username)
    return None if good and not any(letter <= " " for letter in text) else "must be https://host/path"


def mask_path(text: str) -> str:
    """Return where a URL leads without its path and query, which are the secret of Slack's and the like."""
    url = urlsplit(text)
    return f"{url.scheme}://{url.netloc}/***" if url.netloc else text


def networks_fault(text: str) -> str | None:
    """Return why `text` cannot be networks separated by blanks, or None if it can."""
    for word in text.split():
        try:
            ip_network(word)
        except ValueError:
            return "must be networks such as 10.0.0.0/8, separated by blanks"
    return None


def _words_fault(text: str) -> str | None:
    """Hold libpq keywords against their grammar."""
    at = 0
    while at < len(text):
        match = _WORD.match(text, at)
        if match is None:
            return "must be a postgresql:// URL or libpq keywords (host=... dbname=...)"
        at = match.end()
    return None
