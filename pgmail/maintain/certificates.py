"""Looks at certificates twice a day, so that an alert can say in time that one ends: the API's, and those of relays.

The API's is seen where people see it, at PGMAIL_PUBLIC_URL, else in its file if this host has it. What can go wrong:
one cannot be seen, since its relay is away, or for the very reason that it has ended. Then what was seen last goes on
to count, and `pgmail doctor` tells since when and why it is not seen. One that nobody looks at any more counts for
three days.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from urllib.parse import urlsplit

import structlog

from pgmail.config import Settings
from pgmail.store import alerts as store
from pgmail.store.database import Database
from pgmail.transport import certificates
from pgmail.transport.relay_config import RelayConfig

SECONDS = 43_200.0
AGAIN_SECONDS = 1_800.0  # where one could not be seen

_log = structlog.get_logger()


class Certificates:
    """The chore that looks at certificates."""

    name = "certificates"

    def __init__(self, database: Database, settings: Settings, relays: Mapping[str, RelayConfig]) -> None:
        self._database, self._settings, self._relays = database, settings, relays

    async def step(self) -> float:
        """Look at each once."""
        missed = not await self._api()
        for name, config in self._relays.items():
            try:
                ends_at = await certificates.relay_ends_at(config)
            except (OSError, ValueError) as error:
                await self._missed(f"relay {name}", config.remote, error)
                missed = True
                continue
            if ends_at is not None:
                await self._saw(f"relay {name}", config.remote, ends_at)
        return AGAIN_SECONDS if missed else SECONDS

    async def _api(self) -> bool:
        url, path = urlsplit(self._settings.public_url), self._settings.api_tls_cert
        web = url.scheme == "https" and bool(url.hostname)
        place = f"{url.hostname}:{url.port or 443}" if web else path
        if not place:
            return True
        try:
            if web:
                ends_at = await certificates.web_ends_at(str(url.hostname), url.port or 443)
            else:
                ends_at = certificates.file_ends_at(place)
        except (OSError, ValueError) as error:
            await self._missed("api", place, error)
            return False
        await self._saw("api", place, ends_at)
        return True

    async def _missed(self, name: str, place: str, error: Exception) -> None:
        said = str(error) or type(error).__name__
        _log.info("certificate.not_seen", name=name, place=place, error=said)
        await store.missed_certificate(self._database, name, place, said)

    async def _saw(self, name: str, place: str, ends_at: datetime) -> None:
        await store.saw_certificate(self._database, name, place, ends_at)
