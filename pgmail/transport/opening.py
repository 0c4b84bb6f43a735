"""From a relay's configuration to a logged-in `Session`: connect, greet, secure, authenticate.

aiosmtplib speaks these steps. This names the step that failed (`Phase`), since "the relay is away" and "the
password is wrong" lead to different verdicts. TCP is connected here, so that a name that is not found, a
refused connection and a silent greeting can be told apart and have limits of their own. All time limits are
set here, around the steps: `asyncio.wait_for`, which aiosmtplib uses, may lose a cancellation (until 3.12).

A password goes over a connection without TLS only with `tls=none`, which says so, or to this machine itself:
otherwise whoever sits in between could take STARTTLS out of the EHLO reply and read it (RFC 3207, section 6).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiosmtplib

from pgmail.domain.reply import Phase, Reply, Result
from pgmail.transport.commands import Extensions
from pgmail.transport.relay_config import RelayConfig, Timeouts, Tls
from pgmail.transport.replies import make_reply, shown
from pgmail.transport.session import Session

# Everything that a remote, or the network between, can make aiosmtplib and asyncio raise. ValueError: an
# impossible host name, a challenge that is not base64. RuntimeError: TLS on a transport that just closed.
_REMOTE_FAULTS = (aiosmtplib.SMTPException, OSError, EOFError, ValueError, RuntimeError)


class _Refused(Exception):  # noqa: N818 - an outcome
    """A step came to `result`."""

    def __init__(self, phase: Phase, reply: Reply | None, error: str | None) -> None:
        super().__init__(error)
        self.phase = phase
        self.reply = reply
        self.error = error


def tls_context(config: RelayConfig) -> ssl.SSLContext | None:
    """Build the TLS context, or None with `tls=none`. Reads files; raises ValueError that names `ca`."""
    if config.tls == "none":
        return None
    try:
        context = ssl.create_default_context(cafile=config.ca)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ca: cannot be read: {config.ca}: {error}") from error
    if not config.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def open_session(config: RelayConfig, context: ssl.SSLContext | None) -> Session | Result:
    """Open one session. Returns a `Result` (never accepted) when the remote or the network is in the way."""
    started = time.monotonic()
    opening = _Opening(config, context)
    try:
        try:
            return await opening.run(config.tls)
        except _Refused as refused:
            if refused.phase is not Phase.STARTTLS or config.tls != "opportunistic":
                raise
            # RFC 7435: better in the clear than not at all, on a new connection.
            opening = _Opening(config, context)
            return await opening.run("none")
    except _Refused as refused:
        return Result(
            phase=refused.phase,
            reply=refused.reply,
            error=refused.error,
            remote_host=config.remote,
            ms=round((time.monotonic() - started) * 1000),
        )


class _Opening:
    """One attempt to open; holds the step it is at."""

    def __init__(self, config: RelayConfig, context: ssl.SSLContext | None) -> None:
        self._config = config
        self._context = context
        self._limits: Timeouts = config.timeouts
        self._phase = Phase.CONNECT

    async def run(self, tls: Tls) -> Session:
        """Go through all steps; raises `_Refused`."""
        smtp: aiosmtplib.SMTP | None = None
        try:
            smtp = await self._greet(tls)
            welcome = await self._ehlo(smtp)
            if tls in ("opportunistic", "starttls"):
                welcome = await self._starttls(smtp, welcome, required=tls == "starttls")
            if self._config.user is not None:
                welcome = await self._login(smtp)
            return self._take_over(smtp, welcome)
        except BaseException as error:
            if smtp is not None and smtp.transport is not None:
                _asyncio_transport(smtp).abort()
            if isinstance(error, _REMOTE_FAULTS):
                raise self._refused(error) from error
            raise

    async def _greet(self, tls: Tls) -> aiosmtplib.SMTP:
        config, limits = self._config, self._limits
        sock = await self._dial()
        self._phase = Phase.STARTTLS if tls == "implicit" else Phase.GREETING
        smtp = aiosmtplib.SMTP(
            hostname=config.host,
            sock=sock,
            local_hostname=config.helo or _own_name(sock),
            timeout=None,
            use_tls=tls == "implicit",
            start_tls=False,
            tls_context=self._context,
        )
        try:
            async with _limit(limits.greeting):
                await smtp.connect()
        except BaseException as error:
            if smtp.transport is not None:
                _asyncio_transport(smtp).abort()
            # With implicit TLS one call does the handshake and reads the greeting. What aiosmtplib itself
            # noticed came after the handshake, what asyncio or ssl raised was the handshake.
            if isinstance(error, aiosmtplib.SMTPResponseException) or isinstance(
                error.__cause__, aiosmtplib.SMTPException
            ):
                self._phase = Phase.GREETING
            raise
        return smtp

    async def _dial(self) -> socket.socket:
        """Connect over TCP to the first address that answers, all in `connect` seconds."""
        loop = asyncio.get_running_loop()
        limit = self._limits.connect
        deadline = loop.time() + limit
        host, port = self._config.host, self._config.port
        fault: OSError | None = None
        try:
            async with asyncio.timeout_at(deadline):
                found = await _addresses(host, port)
        except socket.gaierror as error:
            raise _Refused(Phase.CONNECT, None, f"name not found: {host}: {error.strerror}") from error
        except TimeoutError as error:
            raise _Refused(Phase.CONNECT, None, f"name not resolved in {limit:g} s: {host}") from error
        for index, (family, address) in enumerate(found):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                # A dead address must leave time for the next one.
                share = max(0.0, deadline - loop.time()) / (len(found) - index)
                async with asyncio.timeout(share):
                    await loop.sock_connect(sock, address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                fault = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        if isinstance(fault, TimeoutError):
            raise _Refused(Phase.CONNECT, None, f"not connected in {limit:g} s") from fault
        raise _Refused(Phase.CONNECT, None, f"cannot connect: {_why(fault)}") from fault

    async def _ehlo(self, smtp: aiosmtplib.SMTP) -> tuple[Phase, Reply]:
        self._phase = Phase.EHLO
        try:
            async with _limit(self._limits.command):
                answer = await smtp.ehlo()
        except aiosmtplib.SMTPHeloError as error:
            if not 500 <= error.code < 600 or not smtp.is_connected:
                raise
            # RFC 5321, section 3.2: an old server; HELO is its language.
            async with _limit(self._limits.command):
                answer = await smtp.helo()
        return Phase.EHLO, _reply(answer.code, answer.message)

    async def _starttls(
        self, smtp: aiosmtplib.SMTP, welcome: tuple[Phase, Reply], *, required: bool
    ) -> tuple[Phase, Reply]:
        if not smtp.supports_extension("starttls"):
            if required:
                raise _Refused(Phase.STARTTLS, None, "the relay does not offer STARTTLS, which is required")
            return welcome
        self._phase = Phase.STARTTLS
        async with _limit(self._limits.command):
            await smtp.starttls()
        return await self._ehlo(smtp)  # RFC 3207, section 4.2: what was offered before does not count

    async def _login(self, smtp: aiosmtplib.SMTP) -> tuple[Phase, Reply]:
        config = self._config
        self._phase = Phase.AUTH
        secure = smtp.get_transport_info("sslcontext") is not None
        if not secure and config.tls != "none" and not _is_local(smtp):
            raise _Refused(
                Phase.STARTTLS,
                None,
                "TLS is not to be had, and the password is not sent in the clear (tls=none would allow it)",
            )
        user, password = config.user or "", config.password or ""
        methods = {"plain": smtp.auth_plain, "login": smtp.auth_login, "cram-md5": smtp.auth_crammd5}
        # Without TLS the one that does not show the password goes first.
        order = ("plain", "login", "cram-md5") if secure else ("cram-md5", "plain", "login")
        offered = [name for name in order if name in smtp.server_auth_methods]
        if not offered:
            raise _Refused(Phase.AUTH, None, "the relay offers none of AUTH PLAIN, LOGIN, CRAM-MD5")
        for last, name in enumerate(offered, start=1 - len(offered)):
            try:
                async with _limit(self._limits.command):
                    answer = await methods[name](user, password)
            except aiosmtplib.SMTPAuthenticationError as error:
                # Only "not this mechanism" (RFC 4954, section 4) is worth another: each wrong
                # password more may lock the account.
                if not last or error.code not in (504, 534) or not smtp.is_connected:
                    raise
            else:
                return Phase.AUTH, _reply(answer.code, answer.message)
        raise AssertionError("the last mechanism returns or raises")

    def _take_over(self, smtp: aiosmtplib.SMTP, welcome: tuple[Phase, Reply]) -> Session:
        if not smtp.is_connected:
            raise aiosmtplib.SMTPServerDisconnected("the remote closed the connection")
        cipher = smtp.get_transport_info("cipher")
        return Session(
            _asyncio_transport(smtp),
            extensions=Extensions.from_ehlo(
                smtp.esmtp_extensions, pipelining=self._config.pipelining, chunking=self._config.chunking
            ),
            timeouts=self._limits,
            welcome=welcome,
            remote_host=self._config.remote,
            tls=f"{cipher[1]} {cipher[0]}" if cipher else None,
        )

    def _refused(self, error: BaseException) -> _Refused:
        if isinstance(error, aiosmtplib.SMTPResponseException):
            if 200 <= error.code < 600:
                # A reply that is neither success nor refusal cannot be acted on as a reply.
                if error.code < 400:
                    text = f"unexpected reply: {error.code} {shown(_octets(error.message))}"
                    return _Refused(self._phase, None, text)
                return _Refused(self._phase, _reply(error.code, error.message), None)
            return _Refused(self._phase, None, f"not an SMTP reply: {shown(_octets(error.message))}")
        return _Refused(self._phase, None, _why(error))


async def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    """Return the families and socket addresses of a host, in the order to be tried."""
    if "%" not in host:  # a zone has to be looked up
        with suppress(ValueError):
            # The resolver is a pool of threads: an address needs no place in its queue.
            family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
            return [(family, (host, port))]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


def _why(error: BaseException | None) -> str:
    """Say in one line what an exception means; certificates and resets in their usual words."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"certificate not accepted: {seen.verify_message}"
        if isinstance(seen, ssl.SSLError):
            return f"TLS failed: {seen.reason or seen}"
        if isinstance(seen, ConnectionRefusedError):
            return "connection refused"
        if isinstance(seen, ConnectionResetError) and not isinstance(seen, aiosmtplib.SMTPException):
            return "the remote reset the connection"
        if isinstance(seen, _TooSlow):
            return str(seen)
        if isinstance(seen, aiosmtplib.SMTPServerDisconnected) and seen.__cause__ is None:
            return "the remote closed the connection"
        seen = seen.__cause__
    message = getattr(error, "message", None) or getattr(error, "strerror", None) or str(error)
    return shown(_octets(message), 200) or type(error).__name__


class _TooSlow(TimeoutError):  # noqa: N818 - what it is
    """A step took too long."""


@asynccontextmanager
async def _limit(seconds: float) -> AsyncIterator[None]:
    """Bound a step. The time limit's own error would have no text."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():  # TCP gave up by itself
            raise
        raise _TooSlow(f"no reply for {seconds:g} s") from error


def _reply(code: int, text: str) -> Reply:
    """Make a reply of aiosmtplib's ours: octets that are no UTF-8 are surrogates there, which no database takes."""
    return make_reply(code, _octets(text).decode("utf-8", "replace"))


def _octets(text: str) -> bytes:
    return str(text).encode("utf-8", "surrogateescape")


def _asyncio_transport(smtp: aiosmtplib.SMTP) -> Any:
    return smtp.transport


def _is_local(smtp: aiosmtplib.SMTP) -> bool:
    with suppress(ValueError, TypeError, IndexError):
        return ipaddress.ip_address(smtp.get_transport_info("peername")[0]).is_loopback
    return False


def _own_name(sock: socket.socket) -> str:
    """Name this machine in EHLO: its qualified name, else an address literal (RFC 5321, 4.1.3 and 4.1.4)."""
    name = socket.gethostname()
    if "." in name.strip(".") and name.isascii():
        return name
    address = sock.getsockname()[0].partition("%")[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"
