"""What the API tells of its requests, and to whom."""

from prometheus_client.parser import text_string_to_metric_families

from pgmail.config import Settings
from tests.api.conftest import EMAIL, client


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def requests(found, method, route, status):
    key = ("pgmail_http_requests_total", ("method", method), ("route", route), ("status", str(status)))
    return found.get(key, 0)


async def test_requests_are_counted_by_the_route_they_fit_and_no_id_makes_a_label(api):
    sent = await api.post("/emails", json=EMAIL)
    await api.post("/emails", json={})
    await api.get(f"/emails/{sent.json()['id']}")
    await api.get("/emails/not-an-id")
    await api.get("/no/such/route/of-ada@example.org")
    answer = await api.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found = samples(answer.text)
    assert requests(found, "POST", "/emails", 200) == 1
    assert requests(found, "POST", "/emails", 422) == 1
    assert requests(found, "GET", "/emails/{id}", 200) == 1
    assert requests(found, "GET", "none", 404) == 1
    assert found["pgmail_http_request_seconds_count", ("route", "/emails")] == 2
    assert found["pgmail_coalesced_emails_count",] >= 1
    assert found["pgmail_http_in_progress",] == 1  # this one
    assert not any("ada" in str(key) or sent.json()["id"] in str(key) for key in found)


async def test_figures_are_for_keys_and_for_networks_that_were_named(db, key):
    async with client(db.dsn_for("api"), None) as nobody:
        assert (await nobody.get("/metrics")).status_code == 401
    async with client(db.dsn_for("api"), None, settings=Settings(metrics_networks="127.0.0.0/8")) as near:
        assert (await near.get("/metrics")).status_code == 200
    async with client(db.dsn_for("api"), None, settings=Settings(metrics_networks="10.0.0.0/8")) as far:
        assert (await far.get("/metrics")).status_code == 401


async def test_a_port_that_several_processes_share_tells_no_figures_of_one_of_them(db, key):
    async with client(db.dsn_for("api"), key, settings=Settings(api_processes=2)) as api:
        answer = await api.get("/metrics")
    assert answer.status_code == 409
    assert answer.json()["code"] == "several_processes"
    assert "PGMAIL_METRICS_PORT" in answer.json()["detail"]
