"""`/domains` and `/audit`: Resend's shapes, real answers of a name server, and who did it from where."""

import pytest
from psycopg.types.json import Jsonb

from pgmail.config import Settings
from tests.api.conftest import EMAIL, client, new_key
from tests.nameserver import NameServer


@pytest.fixture
async def dns():
    async with NameServer() as made:
        yield made


@pytest.fixture
async def api(db, dns):
    """A client of the first tenant, which may send from verified domains only; its API asks the test's DNS."""
    with db.connect() as owner:
        owner.execute("select pgmail.set_senders('default', 'verified', 'a test')")
    settings = Settings(dns_servers=dns.setting)
    async with client(db.dsn_for("api"), new_key(db), settings=settings) as made:
        yield made


def publish(dns, domain):
    (record,) = domain["records"]
    dns.publish(record["name"], "v=other", record["value"])


async def test_a_domain_is_added_published_verified_and_then_sends(api, dns):
    refused = await api.post("/emails", json=EMAIL)
    assert refused.status_code == 403
    told = refused.json()
    assert (told["code"], told["field"]) == ("unverified_domain", "/from")
    assert "POST /domains" in told["detail"]
    made = (await api.post("/domains", json={"name": "Example.COM"})).json()
    assert (made["object"], made["name"], made["status"]) == ("domain", "example.com", "pending")
    (record,) = made["records"]
    assert (record["name"], record["type"], record["status"]) == ("_pgmail.example.com", "TXT", "pending")
    early = (await api.post(f"/domains/{made['id']}/verify")).json()
    assert early["status"] == "pending"
    assert "NXDOMAIN" in early["answer"]
    publish(dns, made)
    assert (await api.post("/domains/example.com/verify")).json()["status"] == "verified"
    assert (await api.post("/emails", json=EMAIL)).status_code == 200
    assert (await api.get("/domains")).json()["data"][0]["status"] == "verified"
    gone = (await api.delete(f"/domains/{made['id']}")).json()
    assert gone == {"object": "domain", "id": made["id"], "deleted": True}
    assert (await api.post("/emails", json=EMAIL)).status_code == 403


async def test_a_permissive_batch_takes_what_comes_from_verified_domains(api, dns):
    publish(dns, (await api.post("/domains", json={"name": "example.com"})).json())
    await api.post("/domains/example.com/verify")
    answer = await api.post(
        "/emails/batch",
        json=[EMAIL, {**EMAIL, "from": "a@example.net"}],
        headers={"x-batch-validation": "permissive"},
    )
    assert answer.status_code == 200
    assert [error["code"] for error in answer.json()["errors"]] == ["unverified_domain"]
    strict = await api.post("/emails/batch", json=[EMAIL, {**EMAIL, "from": "a@example.net"}])
    assert (strict.status_code, strict.json()["field"]) == (403, "/1/from")


@pytest.mark.parametrize(
    "name", ["", "com", "a b.com", "exa\nmple.com", "\u202eelpmaxe.com", "x" * 300, "1.2.3.4"]
)
async def test_what_is_no_domain_is_a_422(api, name):
    answer = await api.post("/domains", json={"name": name})
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (
        422,
        "invalid_domain",
        "/name",
    )


async def test_what_is_not_there_is_a_404(api):
    for answer in (
        await api.get("/domains/example.com"),
        await api.post("/domains/example.com/verify"),
        await api.delete("/domains/7e5b6c6e-0000-7000-8000-000000000000"),
        await api.get("/domains/%2e%2e%00"),
        await api.get("/domains", params={"after": "example.com"}),
    ):
        assert answer.status_code == 404, answer.text


async def test_domains_come_in_pages_by_name(api):
    for name in ("c.example", "a.example", "b.example"):
        await api.post("/domains", json={"name": name, "region": "eu-west-1"})
    first = (await api.get("/domains", params={"limit": "2"})).json()
    assert ([row["name"] for row in first["data"]], first["has_more"]) == (["a.example", "b.example"], True)
    rest = (await api.get("/domains", params={"after": "b.example"})).json()
    assert ([row["name"] for row in rest["data"]], rest["has_more"]) == (["c.example"], False)


async def test_another_tenants_domains_and_acts_are_nowhere(api, db):
    with db.connect() as owner:
        owner.execute("select pgmail.create_tenant('other')")
        owner.execute("select pgmail.trust_domain('other.example', 'known', 'other')")
        owner.execute("select pgmail.set_limit('site', 'example.org', 1, 1, 1, 0, null)")
    assert (await api.get("/domains")).json()["data"] == []
    assert (await api.get("/domains/other.example")).status_code == 404
    acts = (await api.get("/audit", params={"limit": "100"})).json()["data"]
    assert {act["action"] for act in acts} == {"key.create", "tenant.set"}


async def test_the_audit_says_who_did_what_from_where_and_why(api):
    await api.post("/domains", json={"name": "example.com"})
    await api.post("/lanes/pause", json={"site": "example.org", "reason": "they asked"})
    acts = (await api.get("/audit", params={"limit": "2"})).json()
    assert acts["has_more"] is True
    pause, add = acts["data"]
    assert (pause["actor"], pause["action"], pause["on"], pause["reason"]) == (
        "key tests", "site.pause", "example.org", "they asked"
    )  # fmt: skip
    assert pause["source"] == "127.0.0.1"
    assert pause["application"] == "api-test"
    assert add["action"] == "domain.add"
    older = (await api.get("/audit", params={"after": add["id"], "action": "key.*"})).json()["data"]
    assert [act["action"] for act in older] == ["key.create"]


@pytest.mark.parametrize(
    ("filters", "actions"),
    [
        ({"action": "site.*"}, ["site.pause"]),
        ({"action": "site"}, []),
        ({"object": "example.org"}, ["site.pause"]),
        ({"object": "exam*"}, ["site.pause"]),
        ({"actor": "key tests"}, ["site.pause"]),
        ({"actor": "key%"}, []),
        ({"since": "2099-01-01T00:00:00Z"}, []),
        ({"until": "1999-01-01T00:00:00Z"}, []),
    ],
)
async def test_the_audit_is_filtered(api, filters, actions):
    await api.post("/lanes/pause", json={"site": "example.org", "reason": "they asked"})
    answer = await api.get("/audit", params=filters)
    assert [act["action"] for act in answer.json()["data"]] == actions


@pytest.mark.parametrize(
    "filters", [{"after": "x"}, {"after": "9" * 19}, {"since": "now"}, {"tenant": "other"}]
)
async def test_a_filter_that_means_nothing_is_refused(api, filters):
    assert (await api.get("/audit", params=filters)).json()["code"] == "invalid_parameter"


def test_no_role_but_the_apis_names_the_address_it_comes_from(db):
    with db.connect("admin") as admin, admin.transaction():
        admin.execute(
            "select set_config('pgmail.source', '198.51.100.1', true), set_config('pgmail.actor', 'x', true)"
        )
        admin.execute("select pgmail.pause_mail('site', 'example.org', 'a test')")
        said = admin.execute("select actor, source from pgmail.audit order by id desc limit 1").fetchone()
    assert said == ("pgmail_admin", "127.0.0.1")


async def test_a_name_that_shows_another_domain_is_refused_over_http_too(api, db):
    with db.connect() as owner:
        owner.execute("select pgmail.trust_domain('example.com', 'a test')")
    for name, status in (("Ada @ Shop", 200), ("ceo@bank.example", 403), ("c\u202eeo", 422)):
        answer = await api.post("/emails", json={**EMAIL, "from": f'"{name}" <shop@example.com>'})
        assert answer.status_code == status, answer.text


def test_the_rule_holds_for_sql_callers(db):
    with db.connect() as owner:
        owner.execute("select pgmail.set_senders('default', 'verified')")
    with db.connect("producer") as app, pytest.raises(Exception, match="no verified domain"):
        app.execute("select pgmail.send(%s)", [Jsonb(EMAIL)])
