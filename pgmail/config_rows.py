"""What one setting is: a row with a type, a range, a unit, a line of text. And how a text becomes its value.

Rows stand in the annotations of `config.Settings`; this module reads them and knows nothing of any single
setting.

What can go wrong: a value of the wrong type or out of range, a misspelt name. Each becomes one line that
names the setting where the user wrote it; a secret's value never stands in such a line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, get_type_hints

import msgspec

PREFIX = "PGMAIL_"
Value = str | int | float | bool

_BOOLEANS = MappingProxyType(
    {**dict.fromkeys(("true", "1", "yes", "on"), True), **dict.fromkeys(("false", "0", "no", "off"), False)}
)
# What Kubernetes puts into each pod for a Service whose name begins with "pgmail"; no person wrote these.
_SERVICE_LINK = re.compile(
    r"PGMAIL_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP)(?:_\w+)?)"
)
_SERVICE_LINK_VALUE = re.compile(r"(?:tcp|udp)://")


class Row(msgspec.Struct, frozen=True):
    """What is known of a setting besides its name, type and default.

    `low` and `high` bound a number, both included. `fault` judges a text and returns what is wrong with it.
    `empty` says in words what an empty default comes to. `mask` shows a secret that is no connection string.
    """

    text: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    words: tuple[str, ...] = ()
    secret: bool = False
    fault: Callable[[str], str | None] | None = None
    empty: str = ""
    mask: Callable[[str], str] | None = None


class Setting(msgspec.Struct, frozen=True):
    """One setting: `kind` is str, int, float or bool."""

    name: str
    kind: type
    default: Any
    row: Row

    @property
    def env_name(self) -> str:
        """The name in the environment."""
        return PREFIX + self.name.upper()


def rows_of(struct: type[msgspec.Struct]) -> dict[str, Setting]:
    """Return the settings that a struct's annotations describe, in their order."""
    hints = get_type_hints(struct, include_extras=True)
    found = {}
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        row = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Row)), None)
        if row is not None:
            found[field.name] = Setting(field.name, hint.__origin__, field.default, row)
    return found


def read_text(setting: Setting, text: str) -> Value:
    """Return the value that a text from the environment or an option means.

    Raises ValueError saying what is wrong with it.
    """
    text = text.strip()
    if setting.kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(f"must be true or false, not {_show(setting, text)}")
        return _BOOLEANS[text.lower()]
    if setting.kind is str:
        return judge(setting, text)
    try:
        value = setting.kind(text)
    except ValueError:
        raise ValueError(f"must be {_number(setting)}, not {_show(setting, text)}") from None
    return judge(setting, value)


def judge(setting: Setting, value: object) -> Value:
    """Return a value of the setting's own type, as TOML gives it, if it is in range. Raises as above."""
    shown = _show(setting, value)
    if setting.kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, not {shown}")
        return value
    row = setting.row
    if setting.kind is str:
        if not isinstance(value, str):
            raise ValueError(f"must be a text, not {shown}")
        if row.words and value not in row.words:
            raise ValueError(f"must be {', '.join(row.words[:-1])} or {row.words[-1]}, not {shown}")
        if row.fault and (fault := row.fault(value)):
            raise ValueError(fault)
        return value
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"must be {_number(setting)}, not {shown}")  # noqa: TRY004 - a setting
    low = -math.inf if row.low is None else row.low
    high = math.inf if row.high is None else row.high
    # A number that is not one (nan) fails the comparison, too.
    if not low <= value <= high or math.isinf(value) or (setting.kind is int and isinstance(value, float)):
        raise ValueError(f"must be {_number(setting)}, not {shown}")
    return float(value) if setting.kind is float else value


def did_you_mean(name: str, names: Mapping[str, object] | list[str]) -> str:
    """Return `; did you mean X?` for the nearest of `names`, or nothing."""
    near = get_close_matches(name, list(names), n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def allowed(setting: Setting) -> str:
    """Say briefly what a setting takes: `true, false`, `1 to 256` or words; nothing for free text."""
    row = setting.row
    if setting.kind is bool:
        return "true, false"
    if row.low is not None and row.high is not None:
        return f"{row.low:,} to {row.high:,}"
    return ", ".join(row.words)


def is_service_link(name: str, value: str) -> bool:
    """Tell whether Kubernetes made this variable out of a Service's name."""
    if _SERVICE_LINK.fullmatch(name):
        return True
    return name.endswith("_PORT") and _SERVICE_LINK_VALUE.match(value) is not None


def _number(setting: Setting) -> str:
    """Say which numbers a setting takes, with their unit."""
    row = setting.row
    text = "a whole number" if setting.kind is int else "a number"
    if row.unit:
        text += f" of {row.unit}"
    if row.low is not None and row.high is not None:
        text += f" from {row.low:,} to {row.high:,}"
    elif row.low is not None:
        text += f" from {row.low:,}"
    return text


def _show(setting: Setting, value: object) -> str:
    """Show a wrong value, if it may be shown."""
    return "what is given" if setting.row.secret else repr(value)[:60]
