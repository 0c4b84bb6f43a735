"""Alerts are told: by webhook, Slack's form and email, each target by itself, past the queue; certificates are seen."""

import asyncio
import base64
import email
import json
from datetime import UTC, datetime, timedelta
from email.policy import default
from types import SimpleNamespace
from uuid import UUID

import pytest
from aiohttp import web

from pgmail import alerting
from pgmail.config import Settings
from pgmail.domain.targets import networks_of
from pgmail.errors import KeyMissing, Refused, SealBroken
from pgmail.maintain import alert_forms as forms
from pgmail.maintain.alerts import AlertLook, AlertTeller
from pgmail.maintain.away import Away
from pgmail.maintain.certificates import Certificates
from pgmail.maintain.chores import Chores
from pgmail.sealing.keks import Keks
from pgmail.transport import certificates
from pgmail.transport.guarded_http import GuardedHttp
from pgmail.transport.relay_config import RelayConfig
from tests.receiver import Receiver
from tests.sql.kit import one, rows
from tests.waiting import eventually

LOOPBACK = "127.0.0.0/8"
KEKS = Keks({"k": bytes(range(32))})
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef").decode()


@pytest.fixture
async def receiver():
    async with Receiver() as made:
        yield made


@pytest.fixture
async def teller(pool, sink, open_relay):
    http = GuardedHttp(networks_of(LOOPBACK))
    yield AlertTeller(
        pool,
        keks=KEKS,
        http=lambda: http,
        relays=[open_relay(sink.port, "tls=none")],
        sender="pgmail@example.net",
        public_url="https://mail.example.net/",
    )
    await http.close()


async def add(db, name, *, keks=KEKS, **given):
    connection = await db.aconnect("admin")
    return await alerting.add_target(
        connection, keks, LOOPBACK, alerting.Target(name=name, **given), fleet=True
    )


def fence(owner):
    owner.execute("insert into pgmail.fence (noticed_by, reason) values ('me', 'an <hour> is missing')")


def mails(sink):
    return [email.message_from_bytes(mail.source, policy=default) for mail in sink.accepted]


async def test_each_kind_of_target_is_told_once_that_it_began_and_once_that_it_ended(
    db, owner, *, pool, teller, receiver, sink
):
    await add(db, "hook", kind="webhook", url=receiver.url + "/hook", secret=SECRET)
    await add(db, "slack", kind="slack", url=receiver.url + "/services/T0/B0/secret")
    await add(db, "ops", kind="email", to=["ada@example.org", "bob@example.org"])
    look = AlertLook(pool)
    fence(owner)
    for _ in range(2):
        await look.step()
        await teller.step()
    owner.execute("delete from pgmail.fence")
    for _ in range(2):
        await look.step()
        await teller.step()
    hooks = receiver.of("/hook")
    assert [got.json["type"] for got in hooks] == ["alert.firing", "alert.resolved"]
    assert all(got.verify(SECRET) for got in hooks)
    assert hooks[0].json["alert"]["rule"] == "restored_database"
    assert hooks[0].json["link"] == "https://mail.example.net/dashboard/queue"
    said = [got.json for got in receiver.of("/services/T0/B0/secret")]
    assert [set(one) for one in said] == [{"text", "blocks"}] * 2
    assert "an &lt;hour&gt; is missing" in said[0]["text"]
    told = mails(sink)
    assert [mail["To"] for mail in told] == ["ada@example.org", "bob@example.org"] * 2
    assert told[0]["Subject"] == "[pgmail] FIRING restored_database"
    assert told[0]["Auto-Submitted"] == "auto-generated"
    assert told[0]["References"] == told[2]["References"]
    assert "an <hour> is missing" in told[0].get_content()
    assert one(owner, "select count(*) from pgmail.message") == 0  # none of it went through the queue


async def test_an_email_goes_to_the_next_relay_where_the_first_is_away_and_says_so_where_all_are(
    db, owner, *, pool, open_sink, open_relay
):
    away, up = await open_sink(), await open_sink()
    await away.stop()
    made = AlertTeller(
        pool,
        keks=KEKS,
        http=lambda: None,
        relays=[open_relay(sink.port, "tls=none") for sink in (away, up)],
        sender="pgmail@example.net",
    )
    await add(db, "ops", kind="email", to=["ada@example.org", "bob@example.org"])
    fence(owner)
    await AlertLook(pool).step()
    await made.step()
    assert [mail["To"] for mail in mails(up)] == ["ada@example.org", "bob@example.org"]
    assert one(owner, "select failing_since from pgmail.alert_target") is None
    await up.stop()
    owner.execute("select pgmail.test_alert_target('ops', true)")
    await made.step()
    failing, answer = rows(owner, "select failing_since, answer from pgmail.alert_target")[0]
    assert failing is not None
    assert answer.startswith("ada@example.org: ")


async def test_a_dead_target_keeps_no_other_waiting_and_hears_of_it_later(db, owner, pool, teller, receiver):
    gate = asyncio.Event()

    async def never(_):
        await gate.wait()
        return web.Response(status=204)

    receiver.answers["/dead"] = never
    await add(db, "dead", kind="webhook", url=receiver.url + "/dead")
    await add(db, "good", kind="webhook", url=receiver.url + "/good")
    await add(db, "refuses", kind="webhook", url=receiver.url + "/refuses")
    receiver.answers["/refuses"] = lambda _: web.Response(status=500, text="broken")
    fence(owner)
    await AlertLook(pool).step()
    telling = asyncio.create_task(teller.step())
    async with asyncio.timeout(10):
        await eventually(lambda: receiver.of("/good") and receiver.of("/refuses"))
        owner.execute("delete from pgmail.fence")
        await AlertLook(pool).step()
        # While the dead one still does not answer.
        await eventually(lambda: len(receiver.of("/good")) == 2)
    assert not telling.done()
    gate.set()
    await telling
    assert [got.json["type"] for got in receiver.of("/dead")] == ["alert.firing", "alert.resolved"]
    shown = dict(rows(owner, "select name, answer from pgmail.alert_target where failing_since is not null"))
    assert shown == {"refuses": "HTTP 500: broken"}


async def test_what_a_stop_breaks_off_is_told_at_once_by_the_next_process(db, owner, pool, teller, receiver):
    gate = asyncio.Event()

    async def slow(_):
        await gate.wait()
        return web.Response(status=204)

    receiver.answers["/slow"] = slow
    await add(db, "slow", kind="webhook", url=receiver.url + "/slow")
    fence(owner)
    await AlertLook(pool).step()
    chores = Chores([teller])
    chores.lead()
    async with asyncio.timeout(10):
        await eventually(lambda: receiver.of("/slow"))
        await chores.rest()
    assert rows(owner, "select state, attempts, due_at <= pgmail.now() from pgmail.alert_delivery") == [
        ("waiting", 0, True)
    ]
    gate.set()
    async with asyncio.timeout(10):
        await teller.step()
    assert rows(owner, "select state, attempts from pgmail.alert_delivery") == [("sent", 1)]
    assert len({got.headers["webhook-id"] for got in receiver.of("/slow")}) == 1


async def test_where_alerts_go_is_sealed_and_opens_at_its_own_place_only(db, owner, receiver):
    id_ = await add(db, "slack", kind="slack", url=receiver.url + "/services/T0/B0/secret")
    kek, octets, shown = rows(owner, "select kek, secret, shown from pgmail.alert_target")[0]
    assert kek == "k"
    assert b"T0" not in octets
    assert shown == receiver.url + "/..."
    assert alerting.opened(KEKS, None, id_, kek, octets).url.endswith("secret")
    with pytest.raises(KeyMissing):
        alerting.opened(Keks({}), None, id_, kek, octets)
    with pytest.raises((SealBroken, KeyMissing)):
        alerting.opened(KEKS, 1, id_, kek, octets)


async def test_without_the_key_a_target_says_so_and_is_told_when_it_is_there(
    db, owner, pool, teller, receiver
):
    other = Keks({"other": bytes(32)})
    await add(db, "hook", kind="webhook", url=receiver.url + "/hook", keks=other)
    fence(owner)
    await AlertLook(pool).step()
    await teller.step()
    assert "sealed" in one(owner, "select answer from pgmail.alert_target")
    assert receiver.got == []


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"kind": "webhook"}, "/url"),
        ({"kind": "webhook", "url": "http://10.0.0.1/x"}, "/url"),
        ({"kind": "slack", "url": "https://169.254.169.254/latest"}, "/url"),
        ({"kind": "email"}, "/to"),
        ({"kind": "email", "to": ["nobody"]}, "/to/0"),
        ({"kind": "pager"}, "/kind"),
        ({"kind": "webhook", "url": "https://x.example/", "secret": "short"}, "/secret"),
    ],
)
async def test_a_target_that_is_none_is_refused_at_its_field(db, given, field):
    with pytest.raises(Refused) as error:
        await add(db, "one", **given)
    assert error.value.field == field


async def test_a_test_is_tried_once_and_its_answer_kept(db, owner, teller, receiver):
    await add(db, "hook", kind="webhook", url=receiver.url + "/hook")
    receiver.answers["/hook"] = lambda _: web.Response(status=404)
    made = one(owner, "select pgmail.test_alert_target('hook', true)")
    await teller.step()
    assert rows(owner, "select state, answer from pgmail.alert_delivery_state(%s, true)", [made]) == [
        ("failed", "HTTP 404")
    ]
    assert receiver.got[0].json["type"] == "alert.test"


def a_row(**changes):
    at = datetime(2026, 11, 22, 12, tzinfo=UTC)
    told = {"event": "firing", "target": "ops", "made_at": at, "id": UUID(int=2), "alert_id": UUID(int=1)}
    alert = {
        "rule": "oldest_due",
        "subject": "broadcast",
        "tenant": "shop",
        "severity": "warning",
        "path": "/queue",
    }
    figures = {
        "value": 1.0,
        "threshold": 0.5,
        "since": at,
        "fired_at": at,
        "resolved_at": None,
        "words": "Late.",
    }
    return SimpleNamespace(**(told | alert | figures | changes))


def test_words_of_others_put_no_header_into_an_email_and_no_link_into_slack():
    row = a_row(subject="x\r\nBcc: eve@example.org", words="<https://evil.example|click>")
    made = email.message_from_bytes(
        forms.email(row, "a@example.net", "b@example.net", "", datetime.now(UTC)), policy=default
    )
    assert made["Bcc"] is None
    assert "<https" not in json.loads(forms.slack(row, ""))["text"]


def test_when_a_certificate_ends_is_read_from_its_octets(certificate_authority, tmp_path):
    at = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
    path = tmp_path / "cert.pem"
    certificate_authority.issue_cert("mail.example.org", not_after=at).cert_chain_pems[0].write_to_path(path)
    assert certificates.file_ends_at(str(path)) == at
    late = datetime(2060, 1, 1, tzinfo=UTC)  # written with four digits of the year
    certificate_authority.issue_cert("mail.example.org", not_after=late).cert_chain_pems[0].write_to_path(
        path
    )
    assert certificates.file_ends_at(str(path)) == late
    for broken in (b"", b"\x30", b"\x30\x03\x02\x01\x01", b"\x30\x84\xff\xff\xff\xff"):
        with pytest.raises(ValueError):
            certificates.ends_at(broken)


async def test_the_certificate_of_a_relay_is_seen_and_one_that_ends_fires(pool, owner, open_sink, server_tls):
    sink = await open_sink(tls=server_tls)
    config = RelayConfig.from_url(f"smtp://127.0.0.1:{sink.port}")
    chore = Certificates(pool, Settings(), {"default": config})
    assert await chore.step() > 10_000
    ((name, ends_at),) = rows(owner, "select name, ends_at from pgmail.certificate")
    assert name == "relay default"
    assert ends_at > datetime.now(UTC) + timedelta(days=1)
    await sink.stop()
    assert await chore.step() < 10_000  # again, soon


async def test_a_process_without_its_database_tells_once_and_once_that_it_is_back(receiver):
    now = [0.0]
    away = Away(receiver.url + "/away", seconds=60, clock=lambda: now[0])
    for _ in range(3):
        away.missed()
        now[0] += 25
    assert receiver.got == []
    receiver.answers["/away"] = lambda _: web.Response(status=500)
    away.missed()
    await eventually(lambda: len(receiver.got) == 1)
    await eventually(away._telling.done)
    receiver.answers.clear()
    now[0] += 20
    away.missed()
    await eventually(lambda: away._told)
    away.missed()
    away.reached()
    await eventually(lambda: not away._told)
    away.reached()
    await away.close()
    assert [got.json["type"] for got in receiver.got] == ["alert.firing", "alert.firing", "alert.resolved"]
    assert "cannot reach the database" in receiver.got[0].json["text"]


async def test_one_slow_look_keeps_nobody_blind_and_slow_ones_come_more_rarely(monkeypatch):
    now, costs = [1000.0], [3.0, 0.1, 3.0, 3.0]

    async def slow(_):
        now[0] += costs.pop(0)
        return []

    async def nothing(_):
        return 0

    monkeypatch.setattr("pgmail.maintain.alerts.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("pgmail.maintain.alerts.store.step", slow)
    monkeypatch.setattr("pgmail.maintain.alerts.store.purge", nothing)
    look = AlertLook(None, seconds=10.0)
    assert [round(await look.step()) for _ in range(4)] == [10, 10, 10, 150]
