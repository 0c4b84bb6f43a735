"""Settings: from the environment (`PGMAIL_*`), then `pgmail.toml`, then defaults.

`config_settings` declares them. `load` checks all of them at start and names every fault at once; `describe` shows
each with its value and where it came from, secrets masked.

What can go wrong: a misspelt name would silently leave a default in force, so an unknown `PGMAIL_*` variable
or key of the file is a fault, not a remark. An empty variable is as if absent, as Compose files write it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import msgspec

from pgmail.config_rows import (
    PREFIX,
    Row,
    Setting,
    Value,
    allowed,
    did_you_mean,
    is_service_link,
    judge,
    read_text,
    rows_of,
)
from pgmail.config_settings import Role, Settings
from pgmail.config_text import mask_url
from pgmail.errors import SettingsError

__all__ = ["Described", "Role", "Row", "Setting", "Settings", "allowed", "describe", "judge", "load", "rows"]

CONFIG_ENV = "PGMAIL_CONFIG"
CONFIG_FILE = "pgmail.toml"


class Described(msgspec.Struct, frozen=True):
    """One setting as shown to people: all texts, secrets masked."""

    name: str
    value: str
    source: str
    unit: str
    default: str
    text: str


@cache
def rows() -> dict[str, Setting]:
    """Return each setting's row by its name, in the order of `Settings`."""
    return rows_of(Settings)


def load(
    environ: Mapping[str, str] | None = None,
    *,
    folder: Path | None = None,
    options: Mapping[str, str] | None = None,
) -> Settings:
    """Read and check all settings. Raises SettingsError with a line for every fault.

    `environ` defaults to the process's; `pgmail.toml` is looked for in `folder` (default: the working
    directory) unless `PGMAIL_CONFIG` names a file. `options` are texts from a command line, by name, and win
    over both.
    """
    environ = os.environ if environ is None else environ
    reading = _Reading()
    reading.file(environ.get(CONFIG_ENV, ""), folder or Path())
    reading.environ(environ)
    for name, text in (options or {}).items():
        reading.take(rows()[name], text, "option", f"--{name.replace('_', '-')}")
    if reading.faults:
        raise SettingsError(reading.faults)
    settings = Settings(**reading.values, sources=reading.sources)  # type: ignore[arg-type]  # by name, each as its row says
    if faults := _check_together(settings):
        raise SettingsError(faults)
    return settings


def describe(settings: Settings) -> list[Described]:
    """Return each setting with its value, source, unit, default and text, fit for a terminal or a page."""
    return [
        Described(
            name=setting.env_name,
            value=_shown(setting, getattr(settings, setting.name)) or setting.row.empty,
            source=settings.sources.get(setting.name, "default"),
            unit=setting.row.unit,
            default=_shown(setting, setting.default) or setting.row.empty,
            text=setting.row.text,
        )
        for setting in rows().values()
    ]


class _Reading:
    """What was read so far: later sources win, faults add up."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.sources = dict.fromkeys(rows(), "default")
        self.faults: list[str] = []

    def file(self, named: str, folder: Path) -> None:
        """Take the settings of the named file, which must exist, or else of `pgmail.toml`, which may."""
        path = folder / (named or CONFIG_FILE)
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if named:
                self.faults.append(f"{CONFIG_ENV}: there is no file {path}")
            return
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            self.faults.append(f"{path}: cannot be read: {error}")
            return
        for key, value in content.items():
            where = f"{path.name}: {key}"
            if setting := rows().get(key):
                self.take(setting, value, path.name, where)
            else:
                self.faults.append(f"{where}: no such setting{did_you_mean(key, rows())}")

    def environ(self, environ: Mapping[str, str]) -> None:
        """Take the settings of the environment, and refuse names that are none."""
        known = {setting.env_name: setting for setting in rows().values()}
        for name in sorted(environ):
            text = environ[name]
            if not name.startswith(PREFIX) or name == CONFIG_ENV or not text.strip():
                continue
            if is_service_link(name, text):
                continue
            if setting := known.get(name):
                self.take(setting, text, "environment", name)
            else:
                self.faults.append(f"{name}: no such setting{did_you_mean(name, known)}")

    def take(self, setting: Setting, value: object, source: str, where: str) -> None:
        """Take one value or note its fault. Only a file gives values with types; the others give texts."""
        typed = source not in {"environment", "option"}
        try:
            self.values[setting.name] = judge(setting, value) if typed else read_text(setting, str(value))
            self.sources[setting.name] = source
        except ValueError as error:
            self.faults.append(f"{where}: {error}")


def _check_together(settings: Settings) -> list[str]:
    """Return the faults that no setting has alone."""
    faults = []
    if settings.silence_seconds * 1_000 < 2 * settings.beat_interval_ms:
        faults.append(
            "PGMAIL_SILENCE_SECONDS: must be at least two of PGMAIL_BEAT_INTERVAL_MS, "
            "or a process that is well counts as dead"
        )
    return faults


def _shown(setting: Setting, value: Value) -> str:
    """Show a value: booleans as they are written in settings, passwords masked."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return (setting.row.mask or mask_url)(text) if setting.row.secret else text
