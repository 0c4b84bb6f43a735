"""The settings of a demo, as a file: the one thing that its processes, and a person who looks around, need.

    PGMAIL_CONFIG=.pgmail/demo-1000/run/pgmail.toml pgmail trace ID

Everything of pgmail's in the environment is left out for its processes, and so is a `pgmail.toml` nearby: a
demo that picked up a real relay would send real mail.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pgmail.store.scratch import Scratch

DOMAIN = "demo.example.com"
DRAIN_SECONDS = 3
CONCURRENCY = 20
_KEPT = frozenset({"PGMAIL_DEBUG"})


def write_settings(folder: Path, scratch: Scratch, *, sink_port: int, api_port: int) -> Path:
    """Write `pgmail.toml`, for this user's eyes only (there are passwords in it); its path."""
    values: dict[str, str | int] = {
        "database_url": scratch.dsn("admin"),
        "owner_database_url": scratch.owner,
        "worker_database_url": scratch.dsn("worker"),
        "api_database_url": scratch.dsn("api"),
        "role_prefix": scratch.prefix,
        "relay_url": f"smtp://127.0.0.1:{sink_port}?tls=none",
        "helo_name": DOMAIN,
        "message_id_domain": DOMAIN,
        "api_host": "127.0.0.1",
        "api_port": api_port,
        "worker_concurrency": CONCURRENCY,
        "drain_seconds": DRAIN_SECONDS,
        "log_format": "json",
        "state_dir": str(folder / "state"),
    }
    path = folder / "pgmail.toml"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write("# Of a demo: its database, its processes, a server that delivers nothing to anybody.\n")
        # A JSON string is a TOML basic string.
        file.writelines(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
    return path


def changes(config: Path | None = None) -> dict[str, str]:
    """What to change in this process's environment for a process of the demo: the demo's settings, no others.

    An empty variable is as if absent.
    """
    others = {name: "" for name in os.environ if name.startswith("PGMAIL_") and name not in _KEPT}
    return others | ({"PGMAIL_CONFIG": str(config)} if config else {})


def environment(config: Path | None = None) -> dict[str, str]:
    """The whole environment of a process of the demo."""
    return dict(os.environ) | changes(config)
