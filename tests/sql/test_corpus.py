"""The corpus through SQL: every case answers with its code, field and status, whatever the form of the call."""

from datetime import UTC, datetime

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests import corpus
from tests.sql import kit
from tests.sql.kit import Refusal

_NAMED = {
    "from": "sender",
    "to": "recipient",
    "scheduled_at": "send_at",
    **{key: key for key in ("subject", "text", "html", "variables", "stream", "priority", "expires_at")},
    **{
        key: key
        for key in (
            "idempotency_key",
            "on_limit",
            "reply_to",
            "template",
            "headers",
            "attachments",
            "tags",
            "metadata",
        )
    },
}
_HUGE = 1_000_000  # octets of JSON; such bodies go through one form only


def provide(owner: kit.Connection, needs: tuple[str, ...]) -> None:
    """What a case says must stand in the database first, as tenant 1."""
    for need in needs:
        kind, _, name = need.partition(":")
        if kind == "template":
            owner.execute(
                "select pgmail.save_template(%s, 'Hi {{ name }}', 'Hello', null, '{name}', '{}', true)",
                [name],
            )
        elif kind == "asset":
            owner.execute("select pgmail.save_asset(%s, 'logo.png', 'image/png', %s)", [name, b"\x89PNG"])
        elif kind == "suppressed":
            owner.execute("select pgmail.suppress(%s)", [name])
        elif kind == "used_key":
            kit.send(owner, "another@example.org", idempotency_key=name)
        elif kind == "full_stream":
            kit.stream(owner, name, max_queued=0)
        else:
            raise AssertionError(need)


def expected(fault: corpus.Fault | None) -> Refusal | None:
    return fault and Refusal(fault.code, fault.field, f"PM{fault.status}")


def answer(connection: kit.Connection, statement: str, params: object) -> Refusal | None:
    """What a send said: None is accepted."""
    try:
        with connection.transaction(force_rollback=True):
            assert kit.one(connection, statement, params) is not None
    except psycopg.Error as error:
        return kit.refusal(error)
    return None


@pytest.fixture
def cases(pg_major):
    """All cases; the huge ones, which take most of the time, on the newest server."""
    chosen = corpus.cases(datetime.now(UTC), "sql")
    return [case for case in chosen if pg_major == 18 or len(str(case.body)) < _HUGE]


def run(owner, cases, ask):
    """Run each case beside what it needs; the cases whose answer is another than expected."""
    wrong = []
    for case in cases:
        with owner.transaction(force_rollback=True):
            provide(owner, case.needs)
            if (said := ask(case)) != expected(case.expect):
                wrong.append((case.name, said, case.expect))
    return wrong


def test_send_answers_every_case_with_its_code_field_and_status(owner, cases):
    assert run(owner, cases, lambda c: answer(owner, "select pgmail.send(%s)", [Jsonb(c.body)])) == []


@pytest.mark.one_server
def test_send_many_answers_each_item_as_send_does(owner, cases):
    def ask(case):
        status = {"too_large": 413, "idempotency_conflict": 409, "limit_reached": 429}
        items = [kit.body(), case.body, kit.body()]
        with owner.transaction(force_rollback=True):
            first, row, last = kit.send_many(owner, items, strict=False)
        assert (first[0], row[0], last[0]) == (0, 1, 2)
        assert first[1]
        assert last[1]
        _, mail, code, field, _ = row
        assert (mail is None) == (code is not None)
        return None if code is None else Refusal(code, field, f"PM{status.get(code, 422)}")

    small = [case for case in cases if len(str(case.body)) < _HUGE]
    assert run(owner, small, ask) == []


@pytest.mark.one_server
def test_strict_send_many_leads_the_field_by_the_position_of_the_item(owner, cases):
    def ask(case):
        items = [kit.body(), kit.body(), case.body]
        said = answer(
            owner, "select array_agg(id) from pgmail.send_many(%s, strict => true) as t", [Jsonb(items)]
        )
        if said is None:
            return None
        assert (said.field or "").startswith("/2")
        return said._replace(field=(said.field or "")[2:])

    small = [case for case in cases if len(str(case.body)) < _HUGE]
    assert run(owner, small, ask) == []


@pytest.mark.one_server
def test_named_arguments_answer_as_the_jsonb_form_does(owner, cases):
    def expressible(case):
        body = case.body
        return (
            isinstance(body, dict)
            and body.keys() <= _NAMED.keys() | {"cc", "bcc"}
            and len(str(body)) < _HUGE
            and all(isinstance(body.get(key), str | None) for key in _TEXTS)
            and all(_strings(body.get(key)) for key in ("cc", "bcc"))
            and case.expect != corpus.Fault("invalid_time", "/scheduled_at", 422)
            and case.expect != corpus.Fault("invalid_time", "/expires_at", 422)
        )

    def ask(case):
        body, names = case.body, ["sender => %s", "recipient => %s"]
        values = [body.get("from"), body.get("to")]
        for key, value in body.items():
            if key in {"from", "to"} or value is None:
                continue
            casts = {"cc": "text[]", "bcc": "text[]"}
            casts |= {"scheduled_at": "timestamptz", "expires_at": "timestamptz"}
            names.append(
                f'"{_NAMED.get(key, key)}" => %s::{casts.get(key, "jsonb" if key in _JSON else "text")}'
            )
            values.append(Jsonb(value) if key in _JSON else value)
        return answer(owner, f"select pgmail.send({', '.join(names)})", values)

    chosen = [case for case in cases if expressible(case)]
    assert len(chosen) > len(cases) / 3
    assert run(owner, chosen, ask) == []


_JSON = {"variables", "headers", "attachments", "tags", "metadata"}
_TEXTS = set(_NAMED) - _JSON


def _strings(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))
