"""A suspended tenant over HTTP: its mail is taken and waits, and says for what; other wishes are answered."""

from tests.api.conftest import EMAIL


async def test_mail_of_a_suspended_tenant_is_taken_and_waits_for_a_reason_that_can_be_seen(api, owner):
    owner.execute("select pgmail.suspend_tenant('default', 'unpaid since May')")
    answer = await api.post("/emails", json=EMAIL)
    assert answer.status_code == 200
    found = (await api.get(f"/emails/{answer.json()['id']}")).json()
    assert found["last_event"] == "queued"
    queue = (await api.get("/queue")).json()
    assert "tenant default is suspended by" in str(queue)
    assert "unpaid since May" in str(queue)
    (pause,) = (await api.get("/lanes")).json()["pauses"]
    assert (pause["scope"], pause["name"], pause["fleet"]) == ("tenant", "default", False)


async def test_a_batch_and_a_single_mail_are_refused_only_if_they_ask_for_it(api, owner):
    owner.execute("select pgmail.suspend_tenant('default', 'unpaid')")
    refused = await api.post("/emails", json=EMAIL | {"on_limit": "error"})
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:pgmail:tenant_suspended")
    held = await api.post("/emails", json=EMAIL | {"on_limit": "hold"})
    assert held.status_code == 200
    found = (await api.get(f"/emails/{held.json()['id']}")).json()
    assert "the tenant is suspended since" in str(found)
    batch = await api.post("/emails/batch", json=[EMAIL, EMAIL])
    assert batch.status_code == 200


async def test_no_key_lifts_its_tenants_suspension(api, owner):
    owner.execute("select pgmail.suspend_tenant('default', 'unpaid')")
    for body in (
        {"tenant": "default"},
        {"scope": "tenant", "name": "default"},
        {"site": "default"},
        {"stream": "default"},
    ):
        answer = await api.post("/lanes/resume", json=body | {"reason": "please"})
        assert answer.status_code in (404, 422), answer.text
    assert owner.execute("select count(*) from pgmail.pause where scope = 'tenant'").fetchone() == (1,)
