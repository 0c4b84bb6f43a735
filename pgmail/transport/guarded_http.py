"""A POST to a URL that a stranger chose: for webhooks and alerts. One guarded client a process.

Where a call goes is judged at the moment of connecting, for each address that the name leads to, and the connection
is made to the very address that was judged: a name that answers differently the next time (DNS rebinding) gains
nothing. `domain.targets` says which addresses may be called. No redirect is followed, no proxy of the environment is
used, no cookie is kept, TLS is verified, nothing is unpacked, and of the answer no more than a bound is read. Before it
come `MOST_INTERIM` interim ones (1xx; RFC 9110, section 15.2) at most: a flood of them would keep a core busy.

What went wrong is a value with words for people, never an exception: the other end's troubles are its owner's to
read. What a name leads to is not told, nor whether a name exists that may not be called: the names of our network
are nobody's business.

What can go wrong: a name server that lets us wait holds up its own call for `DNS_SECONDS` and no thread. TLS
certificates of an authority of one's own are trusted where SSL_CERT_FILE names them.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from pgmail.domain.targets import Network, reachable, url_fault, within
from pgmail.transport.http_answer import Answer

__all__ = ["NOWHERE", "Answer", "GuardedHttp", "Names"]

DNS_SECONDS = 5.0
CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0
MOST_BYTES = 4_096
MOST_INTERIM = 20
CONNECTIONS = 100
KEEPALIVE_SECONDS = 30.0
NOWHERE = "its host leads to no public address (others are for PGMAIL_HOOK_NETWORKS)"

Lookup = Callable[[str], Awaitable[Sequence[str]]]


class GuardedHttp:
    """Posts to where it may. Its connections are kept a while, and closed by `close`."""

    def __init__(
        self,
        allowed: Sequence[Network] = (),
        *,
        name_servers: Sequence[tuple[str, int]] = (),
        tls: ssl.SSLContext | None = None,
        lookup: Lookup | None = None,
    ) -> None:
        """`allowed` networks may be called beside public addresses, and alone by plain HTTP.

        `name_servers` instead of the host's; `tls` instead of the usual context; `lookup` instead of DNS.
        """
        self._allowed = tuple(allowed)
        self._tls = tls
        self._lookup = lookup or Names(name_servers)
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        seconds: float = TOTAL_SECONDS,
        most_bytes: int = MOST_BYTES,
    ) -> Answer:
        """POST octets and return what came of it, after `seconds` at most. Raises nothing but its cancellation."""
        began = time.monotonic()

        def failed(why: str) -> Answer:
            return Answer(None, _ms(began), error=why)

        if (fault := url_fault(url, self._allowed)) is not None:
            return failed(f"the URL {fault}")
        try:
            async with asyncio.timeout(seconds):
                return await self._post(url, body, headers, most_bytes, began)
        except TimeoutError:
            return failed(f"no answer within {seconds:g} s")
        except aiohttp.ClientConnectorCertificateError as error:
            return failed(f"TLS: {_certificate(error.certificate_error)}")
        except aiohttp.ClientSSLError as error:
            return failed(f"TLS: {getattr(error.os_error, 'reason', None) or 'no secure connection'}")
        except aiohttp.ClientConnectorDNSError:
            return failed(NOWHERE)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, _NowhereError):
                return failed(NOWHERE)
            return failed(f"cannot connect: {error.os_error.strerror or type(error.os_error).__name__}")
        except _NoEndError:
            return failed(f"more than {MOST_INTERIM} interim answers (1xx), and none that counts")
        except aiohttp.ServerDisconnectedError:
            return failed("it closed the connection without an answer")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return failed(f"no answer that HTTP knows ({type(error).__name__})")

    async def close(self) -> None:
        """Close all connections. Twice is fine."""
        sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            await session.close()

    async def _post(
        self, url: str, body: bytes, headers: Mapping[str, str], most_bytes: int, began: float
    ) -> Answer:
        scheme = urlsplit(url).scheme
        session = self._sessions.get(scheme)
        if session is None:
            session = self._sessions[scheme] = self._session(plain=scheme == "http")
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
            head = b""
            while len(head) < most_bytes and (piece := await answer.content.read(most_bytes - len(head))):
                head += piece
            if not answer.content.at_eof():
                answer.close()  # the rest is not wanted, and so neither is the connection
            return Answer(
                answer.status,
                _ms(began),
                text=head.decode("utf-8", "replace"),
                retry_after=answer.headers.get("Retry-After"),
            )

    def _session(self, *, plain: bool) -> aiohttp.ClientSession:
        guard = _Guard(self._lookup, self._allowed, plain=plain)
        connector = aiohttp.TCPConnector(
            # Its base class asks for a running loop and no more; ours needs none.
            resolver=cast("AbstractResolver", guard),
            use_dns_cache=False,
            limit=CONNECTIONS,
            keepalive_timeout=KEEPALIVE_SECONDS,
            ssl=self._tls or True,
            socket_factory=guard.socket,
        )
        return aiohttp.ClientSession(
            connector=connector,
            response_class=_Response,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
            max_line_size=8_190,
            max_field_size=8_190,
        )


class _NowhereError(OSError):
    """An address that may not be called, found at the last moment."""


class _NoEndError(ValueError):
    """More interim answers than anybody needs."""


class _Response(aiohttp.ClientResponse):
    """An answer that may come late, after interim ones, but not after any number of them."""

    async def start(self, connection: Any) -> Self:
        """Read up to the headers of the answer that counts. Raises _NoEndError instead of reading for ever."""
        protocol, left = connection.protocol, MOST_INTERIM
        read = protocol.read

        async def bounded() -> Any:
            nonlocal left
            if left < 0:
                raise _NoEndError
            left -= 1
            return await read()

        # The library's own loop over interim answers has no bound, and yields to nobody while more of them are there.
        protocol.read = bounded
        try:
            await super().start(connection)
        finally:
            del protocol.read
        return self


class _Guard:
    """Leads from a host to the addresses that may be called: all of what aiohttp connects to comes through here."""

    def __init__(self, lookup: Lookup, allowed: Sequence[Network], *, plain: bool) -> None:
        self._lookup, self._allowed, self._plain = lookup, allowed, plain

    def _may(self, address: str) -> bool:
        return within(address, self._allowed) if self._plain else reachable(address, self._allowed)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host that may be called; OSError if there are none."""
        found = [address for address in await self._lookup(host) if self._may(address)]
        if not found:
            raise _NowhereError(errno.EACCES, NOWHERE)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found
            if family in {socket.AF_UNSPEC, socket.AF_INET6 if ":" in address else socket.AF_INET}
        ]

    def socket(self, info: tuple[Any, ...]) -> socket.socket:
        """Make the socket for one address, judged once more: a host that is an address was never looked up."""
        family, kind, proto, _, address = info
        if not self._may(str(address[0])):
            raise _NowhereError(errno.EACCES, NOWHERE)
        made = socket.socket(family, kind, proto)
        made.setblocking(False)
        return made

    async def close(self) -> None:
        """Nothing of it is open."""


class Names:
    """From a name to its addresses, by the host's file of names and then DNS, which holds no thread meanwhile."""

    def __init__(self, servers: Sequence[tuple[str, int]] = (), hosts: Path = Path("/etc/hosts")) -> None:
        self._servers, self._path = tuple(servers), hosts
        self._resolver: Any = None
        self._read: tuple[float, dict[str, list[str]]] = (-1.0, {})

    async def __call__(self, host: str) -> Sequence[str]:
        """Return the addresses; none where there is no such name, or no answer about it in time."""
        name = host.rstrip(".").lower()
        if name == "localhost" or name.endswith(".localhost"):
            return ["127.0.0.1", "::1"]  # RFC 6761, section 6.3
        if listed := self._hosts().get(name):
            return listed
        import dns.asyncresolver  # noqa: PLC0415 - a tenth of a second that most processes never need
        import dns.exception  # noqa: PLC0415
        import dns.nameserver  # noqa: PLC0415
        import dns.resolver  # noqa: PLC0415

        try:
            if self._resolver is None:
                resolver = dns.asyncresolver.Resolver(configure=not self._servers)
                if self._servers:
                    resolver.nameservers = [
                        dns.nameserver.Do53Nameserver(at, port) for at, port in self._servers
                    ]
                resolver.cache = dns.resolver.LRUCache(1_000)
                self._resolver = resolver
            found = await self._resolver.resolve_name(host, lifetime=DNS_SECONDS)
        except (dns.exception.DNSException, OSError, UnicodeError):
            return []
        return list(found.addresses())

    def _hosts(self) -> dict[str, list[str]]:
        """Return the host's own names, read again when their file changed."""
        try:
            changed = self._path.stat().st_mtime
            if changed != self._read[0]:
                found: dict[str, list[str]] = {}
                for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
                    address, *names = line.partition("#")[0].split() or [""]
                    for name in names:
                        found.setdefault(name.lower(), []).append(address)
                self._read = changed, found
        except OSError:
            self._read = -1.0, {}
        return self._read[1]


def _ms(began: float) -> int:
    return round((time.monotonic() - began) * 1_000)


def _certificate(error: Any) -> str:
    """Say in words what is wrong with a certificate."""
    return str(
        getattr(error, "verify_message", None) or getattr(error, "reason", None) or "certificate refused"
    )
