"""Looks at certificates twice a day, so that an alert can say in time that one ends: the API's, and those of relays.

The API's is seen where people see it, at PGMAIL_PUBLIC_URL, else in its file if this host has it. What can go wrong: a
relay that is away. That is another alert's matter; what was seen last counts for three days.
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
                _log.info("certificate.not_seen", relay=name, error=str(error) or type(error).__name__)
                missed = True
                continue
            if ends_at is not None:
                await self._saw(f"relay {name}", config.remote, ends_at)
        return AGAIN_SECONDS if missed else SECONDS

    async def _api(self) -> bool:
        url = urlsplit(self._settings.public_url)
        try:
            if url.scheme == "https" and url.hostname:
                port = url.port or 443
                await self._saw(
                    "api", f"{url.hostname}:{port}", await certificates.web_ends_at(url.hostname, port)
                )
            elif self._settings.api_tls_cert:
                path = self._settings.api_tls_cert
                await self._saw("api", path, certificates.file_ends_at(path))
        except (OSError, ValueError) as error:
            _log.info("certificate.not_seen", error=str(error) or type(error).__name__)
            return False
        return True

    async def _saw(self, name: str, place: str, ends_at: datetime) -> None:
        await store.saw_certificate(self._database, name, place, ends_at)
