"""How to reach one relay: parsed from a URL once, then immutable.

    smtp://user:pass@host:587?tls=starttls&verify=true&timeout_scale=1
    smtps://user:pass@host

A wrong part is a `ValueError` that names the part and never shows the password; neither does `repr`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from pgmail.domain.reply import Phase

Tls = Literal["none", "opportunistic", "starttls", "implicit"]

_TLS: dict[str, Tls] = {
    "none": "none",
    "opportunistic": "opportunistic",
    "starttls": "starttls",
    "implicit": "implicit",
}
_PORTS: dict[Tls, int] = {"none": 25, "opportunistic": 25, "starttls": 587, "implicit": 465}


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds to wait for the remote at each step: RFC 5321, 4.5.3.2; `connect` and `quit` are ours."""

    connect: float = 30.0  # name look-up and TCP, all addresses together
    greeting: float = 300.0  # also TLS from the first octet
    command: float = 300.0  # EHLO, STARTTLS with its handshake, AUTH, RSET: each step
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    block: float = 180.0  # until a block of message octets is taken by the network
    dot: float = 600.0  # the remote may scan the whole mail before it answers
    quit: float = 5.0  # courtesy; nothing is lost without it

    def scaled(self, factor: float) -> Timeouts:
        """Return all of them times `factor`."""
        return Timeouts(**{name: getattr(self, name) * factor for name in self.__struct_fields__})

    def by_phase(self) -> dict[Phase, float]:
        """Return those for the replies to a mail, and for its blocks."""
        return {
            Phase.MAIL: self.mail,
            Phase.RCPT: self.rcpt,
            Phase.DATA: self.data,
            Phase.BODY: self.block,
            Phase.DOT: self.dot,
        }


class RelayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One relay. `password` is None without authentication; `host` may be a name or an address."""

    host: str
    port: int = 25
    user: str | None = None
    password: str | None = None
    tls: Tls = "opportunistic"
    verify: bool = False  # the certificate and the host's name in it; opportunistic TLS never does
    ca: str | None = None  # PEM file of the authorities to trust instead of the system's
    helo: str | None = None  # None: this machine's name if it is qualified, else an address literal
    max_connections: int = 10
    max_mails_per_connection: int = 1000
    idle_seconds: float = 30.0  # below the shortest idle limit met in the wild
    timeout_scale: float = 1.0
    pipelining: bool = True  # False: not used though the relay offers it (RFC 2920)
    chunking: bool = True  # the same for RFC 3030

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Parse a URL.

        Schemes: `smtp`, `smtps` (TLS from the first octet). Options, each at most once: `tls` (none,
        opportunistic, starttls, implicit; defaults to opportunistic, or implicit with smtps), `verify`
        (defaults to true with starttls and implicit), `ca`, `helo`, `max_connections`,
        `max_mails_per_connection`, `idle_seconds`, `timeout_scale`, `pipelining` and `chunking` (true or
        false; false for a relay that offers what it does badly). The port defaults to 25, to 587 with
        `tls=starttls` and to 465 with implicit TLS. User and password are percent-encoded (RFC 3986).
        Raises ValueError.
        """
        try:
            parts = urlsplit(url)
        except ValueError:
            # The standard library's text would repeat the part that may hold the password.
            raise ValueError("host: not a valid URL authority") from None
        if parts.scheme not in ("smtp", "smtps"):
            raise ValueError(f"scheme: must be smtp or smtps, not {parts.scheme!r}")
        if not parts.hostname:
            raise ValueError("host: is missing")
        if parts.path not in ("", "/") or parts.fragment:
            raise ValueError("path: a relay's URL has none")
        try:
            port = parts.port
        except ValueError:
            raise ValueError("port: must be a number from 1 to 65535") from None
        options = _options(parts.query)
        tls = _tls(parts.scheme, options.pop("tls", None))
        return cls(
            host=parts.hostname,
            port=_PORTS[tls] if port is None else _port(port),
            user=None if parts.username is None else unquote(parts.username),
            password=_password(parts.username, parts.password),
            tls=tls,
            verify=_verify(tls, options.pop("verify", None)),
            ca=_ca(tls, options.pop("ca", None)),
            helo=_helo(options.pop("helo", None)),
            pipelining=_flag("pipelining", options.pop("pipelining", "true")),
            chunking=_flag("chunking", options.pop("chunking", "true")),
            **_numbers(options),
        )

    @property
    def remote(self) -> str:
        """The remote as events show it: `host:port`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def shown(self) -> str:
        """The URL's public part: scheme, host and port."""
        return f"{'smtps' if self.tls == 'implicit' else 'smtp'}://{self.remote}"

    @property
    def timeouts(self) -> Timeouts:
        """The time limits, scaled."""
        return Timeouts().scaled(self.timeout_scale)

    def __repr__(self) -> str:
        return "RelayConfig(" + ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__()) + ")"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        """Name the fields for `repr` and for rich, which asks here; the password is masked."""
        return [
            (name, "***" if name == "password" and self.password else getattr(self, name))
            for name in self.__struct_fields__
        ]


_NUMBERS: dict[str, Callable[[str], float]] = {
    "max_connections": int,
    "max_mails_per_connection": int,
    "idle_seconds": float,
    "timeout_scale": float,
}
_OPTIONS = {"tls", "verify", "ca", "helo", "pipelining", "chunking", *_NUMBERS}


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise ValueError(f"{name}: unknown option; known are {', '.join(sorted(_OPTIONS))}")
        if name in options:
            raise ValueError(f"{name}: given twice")
        options[name] = value
    return options


def _tls(scheme: str, text: str | None) -> Tls:
    if text is None:
        return "implicit" if scheme == "smtps" else "opportunistic"
    if text not in _TLS:
        raise ValueError(f"tls: must be one of {', '.join(_TLS)}, not {text!r}")
    if scheme == "smtps" and text != "implicit":
        raise ValueError("tls: smtps means implicit; use smtp for anything else")
    return _TLS[text]


def _verify(tls: Tls, text: str | None) -> bool:
    if text is None:
        return tls in ("starttls", "implicit")
    verify = _flag("verify", text)
    if verify and tls in ("none", "opportunistic"):
        raise ValueError(f"verify: tls={tls} never verifies; use tls=starttls")
    return verify


def _flag(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{name}: must be true or false, not {text!r}")
    return text == "true"


def _password(user: str | None, password: str | None) -> str | None:
    if password is None:
        if user is not None:
            raise ValueError("password: is missing, though there is a user")
        return None
    if not user:
        raise ValueError("user: is missing, though there is a password")
    return unquote(password)


def _ca(tls: Tls, path: str | None) -> str | None:
    if path is not None and tls in ("none", "opportunistic"):
        raise ValueError(f"ca: tls={tls} never verifies; use tls=starttls")
    return path or None


def _helo(name: str | None) -> str | None:
    if name is None:
        return None
    # It stands alone on the EHLO line: a space or control character would add parameters or commands.
    if not name or not name.isascii() or any(char <= " " or char == "\x7f" for char in name):
        raise ValueError(f"helo: must be a host name or an address literal, not {name!r}")
    return name


def _port(port: int) -> int:
    if port == 0:
        raise ValueError("port: must be a number from 1 to 65535")
    return port


def _numbers(options: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in options.items():
        try:
            values[name] = _NUMBERS[name](text)
        except ValueError:
            raise ValueError(f"{name}: must be a number, not {text!r}") from None
        if not 0 < values[name] < 1e9:
            raise ValueError(f"{name}: must be greater than 0 and below 1e9, not {text}")
    return values
