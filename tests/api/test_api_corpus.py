"""The corpus over HTTP: the same code, field and status as by every other way in."""

import json
from datetime import UTC, datetime

import pytest

from tests.corpus import cases

CASES = {case.name: case for case in cases(datetime.now(UTC), "http")}


def provide(db, need):
    """Put into the database what a case needs."""
    kind, _, name = need.partition(":")
    statements = {
        "template": "select pgmail.save_template(%s, 'Hi {{ name }}', 'Hello {{ name }}', null, '{name}', '{}', true)",
        "asset": "select pgmail.save_asset(%s, 'logo.png', 'image/png', 'x')",
        "suppressed": "select pgmail.suppress(%s)",
        "used_key": "select pgmail.send(sender => 'a@example.com', recipient => 'b@example.org', subject => 'other',"
        " text => 'other', idempotency_key => %s)",
        "full_stream": "select pgmail.save_stream(%s, '{\"max_queued\": 0}')",
    }
    with db.connect() as connection:
        connection.execute(statements[kind], [name])


async def ask(api, case):
    body, headers = case.body, {}
    if isinstance(body, dict) and isinstance(body.get("idempotency_key"), str):
        own = body["idempotency_key"]
        if own.isascii() and own.isprintable() and own.strip() == own:  # what a header can carry
            body = {key: value for key, value in body.items() if key != "idempotency_key"}
            headers = {"Idempotency-Key": own}
    # Half of a surrogate pair is written \ud800, which is JSON.
    raw = json.dumps(body, ensure_ascii=True)
    return await api.post("/emails", content=raw, headers=headers | {"Content-Type": "application/json"})


@pytest.mark.parametrize("part", range(6))
async def test_every_case_is_answered_as_the_law_says(api, db, part):
    wrong = []
    # Moments near now come first, before they are no longer near.
    fresh = sorted(cases(datetime.now(UTC), "http"), key=lambda case: "scheduled" not in case.name)
    for case in [case for case in fresh[part::6] if not case.needs]:
        wrong += judge(case, await ask(api, case))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.needs])
async def test_cases_that_need_something_stored(api, db, name):
    for need in CASES[name].needs:
        provide(db, need)
    wrong = judge(CASES[name], await ask(api, CASES[name]))
    assert not wrong, wrong


def judge(case, answer):
    found = answer.json()
    if case.expect is None:
        return [] if answer.status_code == 200 and found["id"] else [f"{case.name}: {answer.text}"]
    said = (found["code"], found["field"], answer.status_code) if "code" in found else found
    want = (case.expect.code, case.expect.field, case.expect.status)
    return [] if said == want else [f"{case.name}: {said} instead of {want}"]
