"""Erasure over HTTP, and what the routes answer of mail whose content has gone."""

from datetime import timedelta

import pytest

from tests.api.conftest import EMAIL
from tests.sql.kit import Hand, differences, one


@pytest.fixture
def hand(db):
    return Hand(db.connect("worker"))


async def sent(api, hand, **more):
    made = (await api.post("/emails", json=EMAIL | {"to": "ada@example.org"} | more)).json()["id"]
    assert hand.settle(hand.claim()) == ["settled"]
    return made


async def test_a_person_is_erased_and_the_email_is_still_shown_without(api, owner, hand):
    mail = await sent(api, hand, tags=[{"name": "kind", "value": "x"}])
    dry = (
        await api.post("/erase", json={"address": "ada@example.org", "reason": "asked", "dry_run": True})
    ).json()
    assert (dry["recipients"], dry["dry_run"]) == (1, True)
    answer = await api.post("/erase", json={"address": "Ada@Example.org", "reason": "asked"})
    assert answer.status_code == 200
    told = answer.json()
    assert told | {"person": ""} == {
        "object": "erasure", "person": "", "recipients": 1, "messages": 1, "cancelled": 0, "discarded": 0,
        "too_late": 0, "waiting": 0, "suppressions": 0, "next": None, "dry_run": False, "complete": True,
    }  # fmt: skip
    for shown in ((await api.get(f"/emails/{mail}")).text, (await api.get("/emails")).text):
        assert "ada@" not in shown
        assert told["person"] in shown
    assert (await api.get("/emails", params={"recipient": told["person"]})).json()["data"]
    assert one(owner, "select actor from pgmail.audit where action = 'person.erase'") == "key tests"
    assert differences(owner) == [0]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"address": "x"}, "/reason"),
        ({"address": "x", "reason": "y"}, "/address"),
        ({"reason": "y"}, "/address"),
    ],
)
async def test_what_is_no_erasure_is_refused_by_its_field(api, body, field):
    answer = await api.post("/erase", json=body)
    assert answer.status_code == 422
    assert answer.json()["field"] == field


async def test_an_email_whose_content_was_emptied_is_shown_and_one_whose_content_has_gone_is_not_found(
    db_clock, api, owner, hand
):
    owner.execute("""select pgmail.save_stream('transactional', '{"keep_content_days": 1}')""")
    mail = await sent(api, hand)
    db_clock.advance(timedelta(days=2))
    assert one(owner, "select pgmail.empty_content_v1()") == 1
    shown = await api.get(f"/emails/{mail}")
    assert shown.status_code == 200
    assert shown.json()["text"] is None
    assert (await api.get("/emails")).json()["data"][0]["to"] == ["ada@example.org"]
    db_clock.advance(timedelta(days=45))
    owner.execute("select pgmail.make_partitions_v1()")
    while one(owner, "select name from pgmail.drop_partition_v1('message')"):
        pass
    assert (await api.get(f"/emails/{mail}")).status_code == 404
    assert (await api.get("/emails")).json()["data"] == []
    assert (await api.get(f"/emails/{mail}/events")).status_code == 200
