"""What a reply means: rules as `sql/rules/replies.toml` has them, evaluated as `pgmail.classify` does in SQL.

A reply becomes a `Meaning`: a reason, its class (hard, soft, block, other), who is to blame, and what follows.
The first rule that fits decides; the last one fits everything, so there is always an answer. Pure:
`pgmail.shaping.rulebook` reads the file.

What can go wrong: a rule file that does not hold together is a ValueError, which names the rule.
A reply in a language or of a server that no rule knows falls through to its enhanced code (RFC 3463) and then
to its code (RFC 5321, section 4.2); such an answer never suppresses but for what RFC 3463 calls a bad address.
"""

# ruff: noqa: RUF001 - letters of several alphabets are folded here
from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec

from pgmail.domain.needles import needles

Class = Literal["hard", "soft", "block", "other"]
Blame = Literal["recipient", "message", "sender_reputation", "sender_configuration", "remote", "ours"]
Follows = Literal["code", "retry", "bounce"]

FOLD_FROM = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯЁё"
    "áàâäãåāăąçćčďđéèêëēėęěíìîïīğñńňóòôöõøōőŕřśšşșťţțúùûüūůűýÿžźżłœæß"
    "ÁÀÂÄÃÅĂĄÇĆČĎĐÉÈÊËĖĘĚÍÌÎÏİĞÑŃŇÓÒÔÖÕØŐŔŘŚŠŞȘŤŢȚÚÙÛÜŮŰÝŽŹŻŁŒÆı"
    '’‘`´“”„«»"‐‑–—\t\r\n\f\v\u00a0'
)
FOLD_TO = (
    "abcdefghijklmnopqrstuvwxyzабвгдежзийклмнопрстуфхцчшщъыьэюяее"
    "aaaaaaaaacccddeeeeeeeeiiiiignnnoooooooorrsssstttuuuuuuuyyzzzloas"
    "aaaaaaaacccddeeeeeeeiiiiignnnooooooorrsssstttuuuuuuyzzzloai"
    "''''''''''----      "
)
"""The letters of `FOLD_FROM` become those of `FOLD_TO`: small, without accents. `pgmail.fold_reply` has the same."""

_FOLD = str.maketrans(FOLD_FROM, FOLD_TO)
_ADDRESS = re.compile(r"[a-z0-9._%+=&*$!#/?{}|~^'-]+@[a-z0-9._-]+")
_LINE_CODE = re.compile(r"(^| )[245][0-9][0-9][ -]#?[245]\.[0-9]{1,3}\.[0-9]{1,3}( |$)|(^| )[45][0-9][0-9]-")
_SPACES = re.compile(r" {2,}")
_CODE = re.compile(r"(^|[^0-9.])([245][0-9][0-9])([ -]|$)")
_ENHANCED = re.compile(r"(^|[^0-9.])([245]\.[0-9]{1,3}\.[0-9]{1,3})($|[^0-9.]|\.$|\.[^0-9])")
MOST_TEXT = 2000  # characters that are looked at


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """A word for why, and what follows from it; the columns of `pgmail.reply_reason`."""

    name: str
    class_: Class = msgspec.field(name="class")
    blame: Blame
    follows: Follows  # code: 4xx waits, 5xx bounces. retry: waits even after a 5xx. bounce: as code
    means: str
    suppress: bool = False  # a bounce stops later mail to the address
    slow: bool = False  # several within a minute pause the site
    alert: bool = False  # a person should look


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule, as the file has it; see there. What is None is not asked."""

    name: str
    reason: str
    final: bool | None = None
    code: str | None = None
    enhanced: str | None = None
    phase: tuple[str, ...] | None = None
    text: tuple[str, ...] | None = None
    unless: tuple[str, ...] | None = None


class Meaning(msgspec.Struct, frozen=True):
    """What a reply means, and the name of the rule that said so."""

    reason: Reason
    rule: str

    @property
    def suppress(self) -> bool:
        """Whether a bounce with this reply stops later mail to the address."""
        return self.reason.suppress


class Pattern:
    """One pattern, run only where one of its needles is in the text, and compiled when it first is."""

    __slots__ = ("_search", "needles", "text")

    def __init__(self, text: str) -> None:
        """ValueError for one that Python and PostgreSQL may read differently."""
        self.text = text
        self.needles = tuple(sorted(needles(text) or ("",)))
        self._search: Callable[[str], object] | None = None

    def found(self, folded: str) -> bool:
        """Whether it is in a folded text."""
        for word in self.needles:  # a loop: any() with a generator takes four times as long
            if word in folded:
                if self._search is None:
                    self._search = re.compile(self.text).search
                return self._search(folded) is not None
        return False


def patterns(texts: Iterable[str] | None) -> list[Pattern]:
    """A rule's list of patterns. ValueError for one that Python and PostgreSQL may read differently."""
    return [Pattern(text) for text in texts or ()]


def _one_found(those: list[Pattern], folded: str) -> bool:
    for pattern in those:  # noqa: SIM110 - as above
        if pattern.found(folded):
            return True
    return False


class _Compiled(msgspec.Struct, frozen=True):
    meaning: Meaning
    final: bool | None
    code: re.Pattern[str] | None
    enhanced: re.Pattern[str] | None
    phase: frozenset[str] | None
    text: list[Pattern]  # empty: not asked
    unless: list[Pattern]


def fold(text: str) -> str:
    """A reply's text as patterns see it: small letters without accents, one space, addresses as @.

    The code and enhanced code that lead each line are taken out, since a phrase may run over a line's end.
    """
    folded = _SPACES.sub(" ", text[:MOST_TEXT].translate(_FOLD))
    return _SPACES.sub(" ", _LINE_CODE.sub(" ", _ADDRESS.sub("@", folded))).strip(" ")


def codes(code: int | None, enhanced: str | None, text: str) -> tuple[str, str]:
    """Code and enhanced code, read from the text where they are not given; empty if they are nowhere.

    An enhanced code alone stands for a code of its first digit ("500", "400").
    """
    digits = "" if code is None else str(code)
    if not digits and (found := _CODE.search(text)):
        digits = found[2]
    wide = (enhanced or "").strip(" #")
    if not wide and (found := _ENHANCED.search(text)):
        wide = found[2]
    if not digits and wide:
        digits = wide[0] + "00"
    return digits, wide


class RuleBook:
    """All rules, compiled. Safe for threads; `classify` remembers what it was asked last."""

    def __init__(self, text: str) -> None:
        """`text` is the file's. ValueError names what does not hold together."""
        data: dict[str, Any] = tomllib.loads(text)
        self.reasons: dict[str, Reason] = {
            name: _read({"name": name} | body, Reason, f"reason {name}")
            for name, body in data["reasons"].items()
        }
        self.rules: list[Rule] = [
            _read(body, Rule, f"rule {body.get('name', number)}") for number, body in enumerate(data["rule"])
        ]
        names = [rule.name for rule in self.rules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"rules with the same name: {', '.join(sorted(twice))}")
        self._compiled = [self._compile(rule) for rule in self.rules]
        last = self.rules[-1]
        if any(
            x is not None for x in (last.final, last.code, last.enhanced, last.phase, last.text, last.unless)
        ):
            raise ValueError(f"rule {last.name}: the last one must fit every reply")
        self.classify = functools.lru_cache(maxsize=1024)(self._classify)

    def _compile(self, rule: Rule) -> _Compiled:
        if rule.reason not in self.reasons:
            raise ValueError(f"rule {rule.name}: there is no reason {rule.reason}")
        try:
            return _Compiled(
                meaning=Meaning(self.reasons[rule.reason], rule.name),
                final=rule.final,
                code=re.compile(rule.code) if rule.code else None,
                enhanced=re.compile(rule.enhanced) if rule.enhanced else None,
                phase=frozenset(rule.phase) if rule.phase else None,
                text=patterns(rule.text),
                unless=patterns(rule.unless),
            )
        except (re.error, ValueError) as error:
            raise ValueError(f"rule {rule.name}: {error}") from error

    def table(self) -> dict[str, list[dict[str, Any]]]:
        """The rules as `pgmail.load_reply_rules` takes them: reasons, rules, and patterns with their needles."""
        found: list[dict[str, Any]] = []
        for position, rule in enumerate(self._compiled):
            for unless, those in ((False, rule.text), (True, rule.unless)):
                found += [
                    {"rule": position, "unless": unless, "pattern": p.text, "needles": list(p.needles)}
                    for p in those
                ]
        rules = [
            {"position": position, "asks_text": rule.text is not None}
            | {name: getattr(rule, name) for name in ("name", "reason", "final", "code", "enhanced", "phase")}
            for position, rule in enumerate(self.rules)
        ]
        reasons = [msgspec.to_builtins(reason) for reason in self.reasons.values()]
        return {"reasons": reasons, "rules": rules, "patterns": found}

    def _classify(self, code: int | None, enhanced: str | None, phase: str | None, text: str) -> Meaning:
        """What a reply means. `code` 200..599, `enhanced` "5.1.1", `phase` a word of `Phase`; None if not known.

        Never raises: the last rule fits every reply.
        """
        digits, wide = codes(code, enhanced, text)
        folded = fold(text)
        final = digits.startswith("5") and not wide.startswith("4")
        for rule in self._compiled:
            if (
                (rule.final is None or rule.final is final)
                and (rule.code is None or rule.code.fullmatch(digits))
                and (rule.enhanced is None or rule.enhanced.fullmatch(wide))
                and (rule.phase is None or phase in rule.phase)
                and (not rule.text or _one_found(rule.text, folded))
                and not _one_found(rule.unless, folded)
            ):
                return rule.meaning
        raise AssertionError("the last rule fits every reply")


def _read(body: dict[str, Any], kind: Any, what: str) -> Any:
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{what}: {error}") from error
