"""HTTPS: what the API's socket speaks, and where it may speak plain HTTP.

A bearer key that goes over a network in the clear is everybody's. So plain HTTP is for this machine alone, unless
PGMAIL_API_PLAIN_HTTP says that somebody else cares for it: a proxy that ends TLS, or a container's private network
(ops/docs/tls.md).

What can go wrong: a certificate and a key that do not fit, or files that cannot be read. Both are SettingsErrors at
start. A certificate that was renewed is read at the next start.
"""

from __future__ import annotations

import ipaddress
import ssl
from typing import Any

from pgmail.config import Settings
from pgmail.errors import SettingsError


def server_options(settings: Settings, address: str) -> dict[str, Any]:
    """Return uvicorn's options for TLS; none where plain HTTP may be spoken on this address.

    Raises SettingsError.
    """
    certificate, key = settings.api_tls_cert, settings.api_tls_key
    if not certificate and key:
        raise SettingsError(["PGMAIL_API_TLS_KEY: there is no PGMAIL_API_TLS_CERT that it belongs to"])
    if certificate:
        _try(certificate, key or None)
        return {"ssl_certfile": certificate, "ssl_keyfile": key or None}
    if settings.api_plain_http or _is_loopback(address):
        return {}
    fault = (
        f"PGMAIL_API_HOST: {address} is not this machine alone, and keys would go over the network in the clear; set "
        "PGMAIL_API_TLS_CERT and PGMAIL_API_TLS_KEY, or PGMAIL_API_PLAIN_HTTP=true behind a proxy that speaks TLS"
    )
    raise SettingsError([fault])


def _try(certificate: str, key: str | None) -> None:
    """Load the files as uvicorn will, to say which one is wrong."""
    for name, path in (("PGMAIL_API_TLS_CERT", certificate), ("PGMAIL_API_TLS_KEY", key)):
        try:
            if path is not None:
                with open(path, "rb"):  # noqa: PTH123 - a Path would change what the message shows
                    pass
        except OSError as error:
            raise SettingsError([f"{name}: {path}: {error.strerror}"]) from None
    try:
        # An empty word: a key that wants one is a fault, not a question on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        why = getattr(error, "reason", None) or str(error)
        raise SettingsError(
            [f"PGMAIL_API_TLS_CERT and PGMAIL_API_TLS_KEY: not a PEM certificate chain with its key: {why}"]
        ) from None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
