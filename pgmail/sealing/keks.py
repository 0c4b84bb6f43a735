"""Key-encryption keys: what wraps data keys, and never comes near the database.

They come from settings, as `name=base64` pairs separated by blanks or lines: `PGMAIL_SEAL_KEYS` itself, the file
`PGMAIL_SEAL_KEY_FILE`, the output of `PGMAIL_SEAL_KEY_COMMAND` (a vault's client, say), read in this order. The
first of all wraps new data keys; the others open what they wrapped.

What can go wrong: a key that is lost is mail that is lost. Two keys of one name, a key of another size, a file
that cannot be read, a command that fails: each is a SettingsError at start, and none of them shows a key.
"""

from __future__ import annotations

import base64
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgmail.config_text import is_key_name, key_pairs
from pgmail.errors import KeyMissing, SealBroken, SettingsError
from pgmail.sealing.box import new_key, place, seal, unseal

COMMAND_SECONDS = 20.0


class Keks:
    """Key-encryption keys by name; the first wraps, all unwrap. Its `repr` shows names only."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = dict(keys)

    @property
    def names(self) -> list[str]:
        """Their names, the one that wraps first."""
        return list(self._keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __repr__(self) -> str:
        return f"Keks({', '.join(self._keys)})"

    def wrap(self, tenant: int, key: bytes) -> tuple[str, bytes]:
        """Wrap a tenant's data key; the name of the wrapping key, and 60 octets. Raises KeyMissing."""
        if not self._keys:
            raise KeyMissing("there is no key to seal with: PGMAIL_SEAL_KEYS is not set")
        name = self.names[0]
        return name, seal(self._keys[name], key, place(tenant, None, "data key"))

    def unwrap(self, tenant: int, name: str, wrapped: bytes) -> bytes:
        """Unwrap a tenant's data key. Raises KeyMissing, also where a key of this name is another one."""
        if name not in self._keys:
            raise KeyMissing(f"the key {name!r} is not in PGMAIL_SEAL_KEYS of this process")
        try:
            return unseal(self._keys[name], wrapped, place(tenant, None, "data key"))
        except SealBroken:
            raise KeyMissing(
                f"the key {name!r} of this process does not open what a key of that name wrapped"
            ) from None


def read(settings: Any) -> Keks:
    """Read the keys that settings name, which may be none. Raises SettingsError."""
    texts = [("PGMAIL_SEAL_KEYS", settings.seal_keys)]
    if settings.seal_key_file:
        try:
            texts.append(("PGMAIL_SEAL_KEY_FILE", Path(settings.seal_key_file).read_text(encoding="ascii")))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is not ASCII"
            raise SettingsError([f"PGMAIL_SEAL_KEY_FILE: {settings.seal_key_file}: {why}"]) from None
    if settings.seal_key_command:
        texts.append(("PGMAIL_SEAL_KEY_COMMAND", _output(settings.seal_key_command)))
    keys: dict[str, bytes] = {}
    for where, text in texts:
        try:
            found = key_pairs(text)
        except ValueError as error:
            raise SettingsError([f"{where}: {error}"]) from None
        if others := [name for name, key in found.items() if keys.setdefault(name, key) != key]:
            raise SettingsError([f"{where}: {others[0]} is another key than an earlier one of this name"])
    return Keks(keys)


def new_pair(name: str) -> str:
    """Return a new key as `name=base64`. ValueError for a name that is none."""
    if not is_key_name(name):
        raise ValueError("a name is 1 to 63 of A-Z a-z 0-9 _ . -, led by a letter or digit")
    return f"{name}={base64.b64encode(new_key()).decode()}"


def _output(command: str) -> str:
    """Return what a command prints; it is run without a shell."""
    try:
        argv = shlex.split(command)
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=COMMAND_SECONDS,
            text=True,
        )
    except subprocess.TimeoutExpired:
        fault = f"did not end within {COMMAND_SECONDS:g} s"
    except subprocess.CalledProcessError as error:
        fault = f"ended with {error.returncode}"  # what it printed may hold a key
    except (OSError, ValueError) as error:
        fault = f"cannot be run: {getattr(error, 'strerror', None) or error}"
    else:
        return done.stdout
    raise SettingsError([f"PGMAIL_SEAL_KEY_COMMAND: {fault}"])
