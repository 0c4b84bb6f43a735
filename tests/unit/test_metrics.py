"""Figures: how they are counted, told and served."""

import asyncio
import contextlib
import re
import socket
import ssl
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgmail import sqlfiles
from pgmail.config import Settings
from pgmail.errors import SettingsError
from pgmail.metrics.counts import GROUPS, Histogram, Names, Sample
from pgmail.metrics.families import BY_TENANT, FAMILIES
from pgmail.metrics.listener import Listener
from pgmail.metrics.page import Page

DOCS = Path(sqlfiles.home()) / "ops" / "docs" / "metrics.md"


class Told:
    """A source that tells what a test wants."""

    def __init__(self, *samples):
        self.told = samples

    def samples(self):
        return iter(self.told)


async def well():
    return None


def one_of_each():
    """A sample of every family that there is."""
    for family in FAMILIES.values():
        value = Histogram() if family.kind == "histogram" else 1
        yield Sample(family.name, tuple("x" for _ in family.labels), value)


async def ask(port, path, *, method="GET", headers="", context=None):
    """Ask a listener; status, headers and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), body.decode()


def free_port():
    """A port that is free now; a listener takes the next one if it is not any more."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return min(one.getsockname()[1], 64_000)


async def listening(page=None, health=well, **settings):
    made = Listener(Settings(metrics_port=free_port(), **settings), page or Page("worker", []), health)
    await made.start()
    assert made.port
    return made


def test_a_histogram_counts_a_bound_in_its_bucket_and_all_in_the_last():
    counted = Histogram(GROUPS)
    for value in (1, 2, 3, 1000):
        counted.observe(value)
    buckets = dict(counted.buckets())
    assert (buckets["1.0"], buckets["2.0"], buckets["5.0"], buckets["200.0"]) == (1, 2, 3, 3)
    assert buckets["+Inf"] == counted.count == 4
    assert counted.total == 1006


def test_names_beyond_the_first_so_many_are_other_and_stay_so():
    some = Names(most=2)
    assert [some.of(name) for name in ("a", "b", "c", "a", "c")] == ["a", "b", "other", "a", "other"]
    named = Names(["gmail.com"])
    assert (named.of("gmail.com"), named.of("example.org")) == ("gmail.com", "other")


async def test_a_page_tells_every_family_so_that_prometheus_reads_it():
    body, media_type = await Page("worker", [Told(*one_of_each())]).write()
    assert media_type.startswith("text/plain")
    found = {family.name: family.type for family in text_string_to_metric_families(body.decode())}
    for family in FAMILIES.values():
        assert found[f"pgmail_{family.name}"] == family.kind


async def test_a_figure_that_nobody_knows_or_with_other_labels_is_a_fault():
    with pytest.raises(KeyError):
        await Page("worker", [Told(Sample("unheard_of", (), 1))]).write()
    with pytest.raises(ValueError, match="labels"):
        await Page("worker", [Told(Sample("relay_up", (), 1))]).write()


async def test_openmetrics_is_told_to_who_accepts_it():
    _, media_type = await Page("worker", []).write("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")


async def test_a_source_that_takes_for_ever_to_fetch_does_not_keep_the_page(monkeypatch):
    class Slow(Told):
        async def refresh(self):
            await asyncio.Event().wait()

    monkeypatch.setattr("pgmail.metrics.page.REFRESH_SECONDS", 0.01)
    body, _ = await Page("worker", [Slow(Sample("leading", (), 1))]).write()
    assert b"pgmail_leading 1.0" in body


async def test_each_listener_takes_the_next_free_port_and_answers_for_itself():
    one = await listening(Page("worker", []))
    two = await listening(Page("maintain", []))
    try:
        assert one.port != two.port
        for listener, role in ((one, "worker"), (two, "maintain")):
            status, head, body = await ask(listener.port, "/metrics")
            assert status == 200
            assert "text/plain" in head
            assert f'role="{role}"' in body
            assert "process_cpu_seconds_total" in body
    finally:
        await one.stop()
        await two.stop()
    await two.ended()


async def test_health_says_what_is_wrong_and_no_other_path_or_method_is_answered():
    async def ill():
        return "the database cannot be reached"

    listener = await listening(health=ill)
    try:
        assert (await ask(listener.port, "/health/live"))[0] == 200
        status, _, body = await ask(listener.port, "/health/ready")
        assert status == 503
        assert "cannot be reached" in body
        assert (await ask(listener.port, "/elsewhere"))[0] == 404
        assert (await ask(listener.port, "/metrics", method="POST"))[0] == 405
        status, head, body = await ask(listener.port, "/metrics", method="HEAD")
        assert (status, body) == (200, "")
        assert int(re.search(r"Content-Length: (\d+)", head)[1]) > 0
    finally:
        await listener.stop()


async def test_a_fault_in_a_figure_is_an_answer_and_ends_nothing():
    listener = await listening(Page("worker", [Told(Sample("unheard_of", (), 1))]))
    try:
        assert (await ask(listener.port, "/metrics"))[0] == 500
        assert (await ask(listener.port, "/health/live"))[0] == 200
    finally:
        await listener.stop()


async def test_a_client_that_says_nothing_or_too_much_is_hung_up_on(monkeypatch):
    monkeypatch.setattr("pgmail.metrics.listener.PATIENCE_SECONDS", 0.05)
    listener = await listening()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * 10_000)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    finally:
        await listener.stop()


async def test_port_0_is_no_listener():
    listener = Listener(Settings(metrics_port=0), Page("worker", []), well)
    await listener.start()
    assert listener.port == 0
    await listener.stop()


async def test_without_a_free_port_a_process_goes_on(monkeypatch):
    monkeypatch.setattr("pgmail.metrics.listener.PORTS", 1)
    one = await listening()
    two = Listener(Settings(metrics_port=one.port), Page("worker", []), well)
    await two.start()
    assert two.port == 0
    await one.stop()
    await two.stop()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "PGMAIL_METRICS_NETWORKS"),
        ({"metrics_networks": "10.0.0.0/8"}, "PGMAIL_API_PLAIN_HTTP"),
        ({"metrics_networks": "10.0.0.0/8", "api_tls_cert": "/nowhere.pem"}, "PGMAIL_API_TLS_CERT"),
    ],
)
def test_a_listener_for_others_wants_to_know_for_whom_and_how(settings, said):
    with pytest.raises(SettingsError, match=said):
        Listener(Settings(metrics_host="0.0.0.0", **settings), Page("worker", []), well)


async def test_abroad_it_speaks_the_tls_of_the_api(tmp_path):
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
    listener = await listening(
        metrics_host="0.0.0.0", metrics_networks="10.0.0.0/8", api_tls_cert=str(tmp_path / "cert.pem")
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    try:
        assert (await ask(listener.port, "/metrics", context=context))[0] == 200  # from this machine
    finally:
        await listener.stop()


async def test_who_may_not_read_is_told_so_and_still_hears_of_health(monkeypatch):
    monkeypatch.setattr("pgmail.metrics.listener.may_read", lambda *_: False)
    listener = await listening()
    try:
        status, _, body = await ask(listener.port, "/metrics")
        assert status == 403
        assert "PGMAIL_METRICS_NETWORKS" in body
        assert "process_cpu" not in body
        assert (await ask(listener.port, "/health/live"))[0] == 200
    finally:
        await listener.stop()


def test_who_is_not_of_a_named_network_reads_no_figures():
    made = Listener(
        Settings(metrics_host="0.0.0.0", metrics_networks="10.0.0.0/8 fd00::/8", api_plain_http=True),
        Page("worker", []),
        well,
    )
    may = {
        peer: made._may_read((peer, 1)) for peer in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "192.0.2.1")
    }
    assert may == {"10.1.2.3": True, "::ffff:10.1.2.3": True, "fd00::1": True, "192.0.2.1": False}


def test_each_figure_has_its_line_with_its_labels_and_each_line_its_figure():
    lines = re.findall(
        r"^\| `(pgmail_\w+)`(?: \{([^}]*)\})? \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE
    )
    told = {name: tuple(re.findall(r"\w+", labels)) for name, labels in lines}
    assert told == {family.shown: family.labels for family in FAMILIES.values()}
    assert set(FAMILIES) >= BY_TENANT
