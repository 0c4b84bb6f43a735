"""Over HTTP tenant B, with a key of its own and every id and name of A, learns and changes nothing of A.

The routes are those of the app's own OpenAPI document, so that new ones are tried as they come.
"""

import re

import pytest

from pgmail.domain.keys import make_key
from tests import neighbours
from tests.api.conftest import client
from tests.neighbours import SECRET, alike, state_of

PARAMETERS = {
    "id": "uuid", "recipient_id": "uuid", "email_id": "uuid", "key_id": "uuid",
}  # fmt: skip
QUERIES = [
    {}, {"stream": 0}, {"recipient": 3}, {"address": 4}, {"site": 5}, {"tag": 0}, {"state": "dead"}, {"q": 3},
    {"name": 1}, {"limit": "5"}, {"after": "uuid"}, {"before": "uuid"}, {"text": 3},
]  # fmt: skip


def bodies(values):
    """What may be posted: each by its key, whatever route it is meant for."""
    text, ids = values["text"], [str(one) for one in values["uuid"]]
    mail = {"from": "b@neighbour.example", "to": "x@neighbour.example", "subject": "s", "text": "t"}
    return [
        {},
        {"reason": "mine now"},
        mail | {"stream": text[0]},
        mail | {"to": text[4]},
        {"from": mail["from"], "to": mail["to"], "template": {"id": text[1]}},
        mail | {"attachments": [{"asset": text[2]}]},
        mail | {"idempotency_key": text[6]},
        [mail | {"stream": text[0]}, mail],
        {"scheduled_at": "2031-01-01T00:00:00Z"},
        {"ids": ids},
        {"recipient": text[3]},
        {"address": text[4], "reason": "manual"},
        {"site": text[5], "reason": "x"},
        {"stream": text[0], "reason": "x"},
        {"lane": text[8], "reason": "x"},
        {"name": text[1], "subject": "s", "text": "t"},
        {"name": text[2], "filename": "f", "content": "eA=="},
        {"name": text[0], "priority": "high"},
        {"how": "resend", "ids": ids, "reason": "x"},
        {"resolution": "assume_sent", "reason": "x"},
    ]


@pytest.fixture
async def beta(db, owner):
    """B's client and its own mail; A is filled first."""
    alpha = neighbours.make_alpha(db, owner)
    key, hint, hash_ = make_key()
    with db.connect("admin") as admin:
        owner.execute(
            "select pgmail.revoke_tenant('pgmail_admin'), pgmail.grant_tenant('pgmail_admin', 'neighbour')"
        )
        admin.execute("select pgmail.create_key('b', %s, %s)", [hint, hash_])
        owner.execute(
            "select pgmail.revoke_tenant('pgmail_admin'), pgmail.grant_tenant('pgmail_admin', 'default')"
        )
    async with client(db.dsn_for("api"), key) as made:
        yield made, alpha


async def calls(api, values):
    """Every route with every candidate, in one order: what to ask."""
    document = (await api.get("/schema")).json()
    for path, methods in sorted(document["paths"].items()):
        for method in sorted(set(methods) - {"parameters"}):
            if ("stream" in path.split("/")[-1:] and "events" in path) or path.endswith("/ws"):
                continue  # an endless answer
            names = re.findall(r"\{(\w+)\}", path)
            kinds = [values["uuid"], values["text"]] if names else [[""]]
            for kind in kinds:
                for value in kind:
                    where = re.sub(r"\{\w+\}", str(value).replace("/", "%2F").replace("@", "%40"), path)
                    if method == "get":
                        for query in QUERIES:
                            filled = {k: _value(values, v) for k, v in query.items()}
                            yield method, where, filled, None
                    elif method == "delete":
                        yield method, where, {}, None
                    else:
                        for body in (
                            bodies(values) if len(kind) < 2 or value in kind[:2] else bodies(values)[:2]
                        ):
                            yield method, where, {}, body


def _value(values, asked):
    if asked == "uuid":
        return str(values["uuid"][0])
    return values["text"][asked] if isinstance(asked, int) else asked


async def ask(api, method, where, query, body):
    more = {} if body is None else {"json": body}
    return await api.request(method.upper(), where, params=query, **more)


async def test_no_route_tells_or_changes_anything_of_another_tenant(owner, beta):
    api, alpha = beta
    before = state_of(owner)
    real = [call async for call in calls(api, alpha.real)]
    unreal = [call async for call in calls(api, alpha.unreal)]
    assert len(real) == len(unreal) > 300
    routes = set()
    for one, other in zip(real, unreal, strict=True):
        answer = await ask(api, *one)
        control = await ask(api, *other)
        asked = (one[0], one[1], one[2], one[3])
        assert answer.status_code < 500, (asked, answer.text)
        assert SECRET not in answer.text, asked
        if answer.status_code != control.status_code or _told(answer) != _told(control):
            # B's own rows may have come between the two: then A's name asked once more answers as the control does now.
            answer, control = await ask(api, *one), await ask(api, *other)
            assert answer.status_code == control.status_code, (asked, answer.text, control.text)
            assert _told(answer) == _told(control), asked
        routes.add((one[0], re.sub(r"/[0-9a-f-]{36}", "/{id}", one[1])))
    assert state_of(owner) == before


def _told(answer):
    """The body without what differs for every answer (a cursor counts transactions), and `instance`."""
    if answer.headers.get("content-type", "").startswith("text/plain; version="):  # figures of the process
        return re.findall(r"^# HELP .*", answer.text, re.MULTILINE)
    return re.sub(r'"(request_id|instance|trace_id|cursor)":\s*"[^"]*",?', "", alike(answer.text))
