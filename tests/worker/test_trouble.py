"""Workers in trouble: relays and databases that go away, restarts, workers that die. Nothing is lost."""

import asyncio
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from pgmail.domain.reply import Phase
from pgmail.errors import DatabaseAway
from pgmail.sandbox import postgres
from pgmail.sandbox.postgres import EmbeddedPostgres
from pgmail.sandbox.sink_rules import Answer, Asked
from pgmail.store import migrate
from pgmail.store.faults import FencedOut
from pgmail.transport.relay import SmtpRelay
from pgmail.worker import claimer, lanes, lookback, process
from pgmail.worker.content import Library
from tests.fix_db import Database, Server
from tests.sql.kit import differences, events, one, recipients, rows, send, send_many, state, stream
from tests.waiting import eventually
from tests.worker.cable import cable_to
from tests.worker.kit import AWAY, RESCUES, Crew, Scripted, doubts, leased, settled


def many(app, n, to="x{}@example.org"):
    send_many(
        app, [{"from": "a@example.com", "to": to.format(i), "subject": "s", "text": "t"} for i in range(n)]
    )


def relay_row(owner):
    return rows(owner, "select state, coalesce(reason, '') from pgmail.relay where name = 'default'")[0]


async def test_a_mail_server_that_is_away_delays_mail_spends_no_attempt_and_comes_back_by_itself(
    db, app, owner, open_sink
):
    sink = await open_sink()
    await sink.stop()
    crew = Crew(db, sink)
    await crew.hire()
    mail = send(app)
    await eventually(lambda: relay_row(owner)[0] == "away")
    await eventually(lambda: "delayed" in events(app, mail))
    assert "relay_unreachable" in relay_row(owner)[1]
    assert state(app, mail) == "queued"
    assert "relay default is away" in one(app, "select pgmail.why(%s)", [mail])
    await sink.start()
    await eventually(lambda: state(app, mail) == "sent")
    assert relay_row(owner) == ("up", "")
    assert one(owner, "select attempts from pgmail.outcome") == 1
    assert events(app, mail).count("deferred") == 0
    assert differences(owner) == [0]
    await crew.dismiss()


async def test_a_wrong_password_pauses_the_relay_bounces_nobody_and_resuming_sends(db, app, owner, open_sink):
    sink = await open_sink(user="mailer", password="right")
    crew = Crew(db, sink)
    first = await crew.hire({"default": crew.relay("tls=none", "mailer:wrong@")})
    many(app, 5)
    await eventually(lambda: relay_row(owner)[0] == "paused")
    assert relay_row(owner)[1].startswith("authentication_refused: 535")
    await eventually(lambda: leased(owner) == 0)
    assert settled(owner) == {"queued": 5}
    assert sink.total == 0
    await first.stop()
    # The password is mended, and the operator says so.
    await crew.hire({"default": crew.relay("tls=none", "mailer:right@")})
    assert relay_row(owner)[0] == "paused"
    owner.execute("select pgmail.resume_relay('default', 'new password')")
    await eventually(lambda: settled(owner) == {"sent": 5})
    assert relay_row(owner)[0] == "up"
    await crew.dismiss()


@pytest.mark.parametrize("at", ["greeting", "ehlo", "auth"])
async def test_a_relay_that_refuses_in_no_utf_8_is_only_a_relay_that_refuses(
    app, owner, crew, open_script, at
):
    async def talk(reader, writer):
        for step in ("greeting", "ehlo", "auth"):
            if step == at:
                writer.write(b"554 caf\xe9 ferm\xe9\r\n")
                break
            writer.write(b"220 hi\r\n" if step == "greeting" else b"250-hi\r\n250 AUTH PLAIN\r\n")
            await reader.readline()
        await writer.drain()
        await reader.read(100)

    port = await open_script(talk)
    hired = await crew.hire({"default": crew.relay(port=port, login="u:p@")})
    mail = send(app)
    await eventually(lambda: relay_row(owner)[0] != "up")
    await eventually(lambda: "delayed" in events(app, mail) and leased(owner) == 0)
    assert state(app, mail) == "queued"
    assert not hired.task.done()


async def test_a_database_connection_that_falls_silent_stops_no_worker(
    *, db, app, owner, crew, sink, monkeypatch
):
    monkeypatch.setattr(process, "ANSWER_SECONDS", 0.7)
    async with cable_to(db.dsn_for("worker")) as cable:
        hired = await crew.hire(dsn=cable.dsn(db.dsn_for("worker")), silence_seconds=6.0)
        mail = send(app)
        await eventually(lambda: state(app, mail) == "sent")
        before = one(owner, "select beat from pgmail.worker")
        cable.silence()
        mail = send(app)
        await eventually(lambda: state(app, mail) == "sent", 20)
        await eventually(lambda: one(owner, "select max(beat) from pgmail.worker") > before + 3, 20)
        await hired.stop()
    assert sink.total == 2
    assert doubts(owner) == 0


@pytest.mark.usefixtures("trusted")
async def test_draining_finishes_what_is_on_the_wire_and_returns_the_rest_at_once(app, owner, crew):
    transport = Scripted()
    transport.gate = asyncio.Event()
    hired = await crew.hire({"default": transport}, concurrency=3)
    many(app, 20)
    await eventually(lambda: transport.begun == 3 and leased(owner) == 6)
    hired.until.set()
    await eventually(lambda: leased(owner) == 3)  # before the wire is free
    transport.gate.set()
    await hired.ended()
    assert settled(owner) == {"sent": 3, "queued": 17}
    assert transport.begun == 3
    assert doubts(owner) == 0
    assert one(owner, "select count(*) from pgmail.worker") == 0
    assert one(owner, "select epoch from pgmail.leader") is None
    await crew.hire()
    await eventually(lambda: settled(owner) == {"sent": 20})


async def test_mail_that_outlasts_the_drain_is_in_doubt_and_given_back_with_the_goodbye(app, owner, crew):
    transport = Scripted()
    transport.gate = asyncio.Event()
    hired = await crew.hire({"default": transport}, concurrency=2, drain_seconds=0.2)
    mail = send(app)
    await eventually(lambda: transport.begun == 1)
    await hired.stop()
    assert state(app, mail) == "queued"
    assert doubts(owner, recipients(app, mail)[0]) == 1
    assert differences(owner) == [0]


async def test_mail_that_outlasts_the_drain_and_surely_was_not_sent_is_given_back_and_not_in_doubt(
    app, owner, crew
):
    met = asyncio.Event()

    async def silent(reader, writer):  # takes connections, and never greets
        met.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        relay = SmtpRelay.from_url(f"smtp://127.0.0.1:{port}")
        hired = await crew.hire({"default": relay}, concurrency=2, drain_seconds=0.2)
        mail = send(app)
        await met.wait()
        await hired.stop()
    assert state(app, mail) == "queued"
    assert doubts(owner, recipients(app, mail)[0]) == 0
    assert one(owner, "select max(rescues) from pgmail.queue") == 0
    assert differences(owner) == [0]


@pytest.mark.usefixtures("trusted")
async def test_a_worker_that_was_declared_dead_stops_at_once(app, owner, crew):
    transport = Scripted()
    transport.gate = asyncio.Event()
    hired = await crew.hire({"default": transport}, concurrency=2)
    many(app, 10)
    await eventually(lambda: transport.begun == 2)
    (epoch,) = rows(owner, "select epoch from pgmail.worker")[0]
    one(owner, "select pgmail.rescue_v1(%s)", [epoch])
    with pytest.raises(FencedOut):
        await asyncio.wait_for(hired.ended(), 5)
    assert not transport.delivered
    assert leased(owner) == 0
    await crew.hire()
    await eventually(lambda: settled(owner) == {"sent": 10})
    assert doubts(owner) == 4  # what it held


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("on_doubt", ["resend", "hold"])
async def test_a_fenced_worker_calls_back_what_is_not_sent_and_records_what_is(
    db, app, owner, open_sink, on_doubt
):
    owner.execute("update pgmail.stream set on_doubt = %s", [on_doubt])
    asked: list[tuple[Phase, str]] = []

    def rule(step: Asked) -> Answer | None:
        asked.append((step.phase, step.recipient))
        if step.phase is Phase.RCPT and step.recipient.startswith("begun"):
            return Answer(text="250 2.1.5 Ok, after a while", delay_seconds=1.5)
        if step.phase is Phase.DOT and step.recipient.startswith("sent"):
            return Answer(text="250 2.0.0 Ok, after a while", delay_seconds=1.5)
        return None

    sink = await open_sink(rule=rule)
    crew = Crew(db, sink)
    hired = await crew.hire({"default": crew.relay("tls=none&max_connections=2")}, concurrency=3)
    mails = {name: send(app, f"{name}@example.org") for name in ("sent", "begun")}
    await eventually(lambda: any(phase is Phase.DOT for phase, _ in asked))
    await eventually(lambda: (Phase.RCPT, "begun@example.org") in asked)
    (epoch,) = rows(owner, "select epoch from pgmail.worker")[0]
    # Not on the worker's own loop: a claim that is under way holds the row.
    await asyncio.to_thread(one, owner, "select pgmail.rescue_v1(%s)", [epoch])
    with pytest.raises(FencedOut):
        await asyncio.wait_for(hired.ended(), 10)
    assert (Phase.DOT, "begun@example.org") not in asked
    assert [mail.recipient for mail in sink.accepted] == ["sent@example.org"]
    told = rows(
        owner, "select message_id from pgmail.event where type = 'email.sent' and worker = %s", [epoch]
    )
    assert told == [(mails["sent"],)]
    assert state(app, mails["begun"]) == "queued"
    await crew.dismiss()


async def test_a_silent_worker_is_rescued_by_another_and_its_late_results_are_recorded(db, app, owner, crew):
    stuck = Scripted()
    stuck.gate = asyncio.Event()
    async with cable_to(db.dsn_for("worker")) as cable:
        hired = await crew.hire(
            {"default": stuck}, dsn=cable.dsn(db.dsn_for("worker")), concurrency=2, lead=False, notify=False,
            **RESCUES,
        )  # fmt: skip
        mail = send(app)
        await eventually(lambda: stuck.begun == 1)
        cable.cut()
        await crew.hire(**RESCUES)
        await eventually(lambda: state(app, mail) == "sent")
        assert doubts(owner, recipients(app, mail)[0]) == 1
        stuck.gate.set()  # the first one was not dead: it sent a copy
        await eventually(lambda: len(stuck.delivered) == 1)
        cable.mend()
        with pytest.raises(FencedOut):
            await asyncio.wait_for(hired.ended(), 10)
        await eventually(
            lambda: one(owner, "select count(*) from pgmail.event where detail like 'fenced out%%'") == 1
        )
    assert differences(owner) == [0]


async def test_a_notification_that_is_missed_costs_one_poll_at_most(app, owner, crew, sink):
    await crew.hire(poll_interval_ms=700)
    await eventually(lambda: one(owner, "select bool_or(asleep) from pgmail.worker"))
    with app.transaction():
        app.execute("set local pgmail.notify = 'off'")
        send(app)
    await sink.wait_for(1, seconds=5)


async def test_a_sleeping_worker_is_woken_by_the_commit(app, owner, crew, sink):
    await crew.hire(poll_interval_ms=60_000)
    send(app)  # the lane is known
    await sink.wait_for(1)
    await eventually(lambda: one(owner, "select bool_or(asleep) from pgmail.worker"))
    send(app, "ada@a-new-lane.example")
    await sink.wait_for(2, seconds=10)


async def test_without_notify_polling_alone_brings_the_mail(app, owner, crew, sink):
    await crew.hire(notify=False)
    await eventually(lambda: one(owner, "select count(*) from pgmail.worker"))
    send(app)
    await sink.wait_for(1, seconds=5)
    assert not one(
        owner, "select bool_or(asleep) from pgmail.worker"
    )  # nobody to tell: a NOTIFY would be refused


@pytest.mark.parametrize("by", ["look back", "sweep", "look beside", "sweep beside"])
async def test_a_transaction_left_open_long_after_its_send_loses_nothing(
    db, app, owner, crew, monkeypatch, *, by
):
    """The heads have moved on by then: looking back finds it, and what is older still a sweep.

    Where that is dear for a claim, since nothing of what was sent is cleared away, somebody looks beside.
    """
    if "beside" in by:
        monkeypatch.setattr(lanes, "DEAR_SECONDS", 0.0)
        monkeypatch.setattr(lookback, "DEAR_SECONDS", 0.0)
        monkeypatch.setattr(lookback, "LOOK_FAR_EVERY", 0.2)
        monkeypatch.setattr(lanes, "LOOK_BACK", timedelta(0))
        if by == "sweep beside":
            monkeypatch.setattr(lookback, "LOOK_FAR", timedelta(0))
            monkeypatch.setattr(claimer, "SWEEP_SECONDS", 0.5)
    if by == "sweep":
        monkeypatch.setattr(lanes, "LOOK_BACK", timedelta(0))
        monkeypatch.setattr(claimer, "SWEEP_SECONDS", 0.5)
    await crew.hire()
    first = send(app)
    await eventually(lambda: state(app, first) == "sent")  # the lane is active: no touch will tell of it
    with db.connect("producer", autocommit=False) as slow:
        late = send(slow)
        for _ in range(3):
            newer = send(app)
            await eventually(lambda newer=newer: state(app, newer) == "sent")
        slow.commit()
    await eventually(lambda: state(app, late) == "sent")
    assert one(owner, "select count(*) from pgmail.lane_touch") == 0


async def test_workers_that_never_lead_sweep_too(app, owner, db, crew, monkeypatch):
    """The leader may be a process that only leads and claims nothing."""
    monkeypatch.setattr(lanes, "LOOK_BACK", timedelta(0))
    monkeypatch.setattr(claimer, "SWEEP_SECONDS", 0.05)
    await crew.hire(lead=False)
    first = send(app)
    await eventually(lambda: state(app, first) == "sent")
    with db.connect("producer", autocommit=False) as slow:
        late = send(slow)
        newer = send(app)
        await eventually(lambda: state(app, newer) == "sent")
        slow.commit()
    await eventually(lambda: state(app, late) == "sent")


async def test_a_lease_whose_row_is_locked_is_given_back_once_it_is_free(db, app, owner, crew):
    transport = Scripted()
    transport.gate = asyncio.Event()
    hired = await crew.hire({"default": transport}, concurrency=1)
    many(app, 2)
    await eventually(lambda: transport.begun == 1 and leased(owner) == 2)
    with db.connect(autocommit=False) as holder:
        holder.execute("select from pgmail.queue for update")
        hired.until.set()
        await eventually(lambda: one(owner, "select state from pgmail.worker") == "draining")
        transport.gate.set()
        holder.rollback()
    await hired.ended()
    assert leased(owner) == 0
    assert settled(owner) in ({"sent": 1, "queued": 1}, {"sent": 2})  # its slot may have been quicker
    assert doubts(owner) == 0


async def test_a_locked_row_that_a_blocked_relay_gives_back_is_not_forgotten(db, app, owner, crew):
    """A cancel that came too late may hold the row's lock until its transaction ends."""
    transport = Scripted()
    transport.gate = asyncio.Event()
    await crew.hire({"default": transport}, concurrency=1)
    many(app, 2)
    await eventually(lambda: transport.begun == 1 and leased(owner) == 2)
    transport.otherwise = transport.otherwise.__class__(phase=Phase.CONNECT, error="gone")
    with db.connect(autocommit=False) as holder:
        holder.execute("select from pgmail.queue for update")
        transport.gate.set()
        await eventually(lambda: relay_row(owner)[0] == "away")
        assert leased(owner) == 2
        transport.otherwise = Scripted().otherwise
        holder.rollback()
    await eventually(lambda: settled(owner) == {"sent": 2})
    assert doubts(owner) == 0


async def test_a_database_that_goes_between_the_claim_and_its_content_costs_nothing(
    app, owner, crew, monkeypatch
):
    real, failed = Library.load, []

    async def load(self: Library, *arguments: object) -> object:
        if not failed:
            failed.append(True)
            raise DatabaseAway("gone for a moment")
        return await real(self, *arguments)

    monkeypatch.setattr(Library, "load", load)
    await crew.hire()
    many(app, 5)
    await eventually(lambda: settled(owner) == {"sent": 5})
    assert failed
    assert one(owner, "select max(attempts) from pgmail.outcome") == 1


async def test_a_lane_goes_idle_after_a_quiet_time_and_wakes_with_its_next_mail(
    app, owner, crew, monkeypatch
):
    monkeypatch.setattr(claimer, "TIDY_SECONDS", 0.1)
    monkeypatch.setattr(lanes, "QUIET_SECONDS", 0.2)
    await crew.hire()
    mail = send(app)
    await eventually(lambda: state(app, mail) == "sent")
    owner.execute("update pgmail.lane set changed_at = now() - interval '1 hour'")
    await eventually(lambda: not one(owner, "select active from pgmail.lane"))
    again = send(app)
    await eventually(lambda: state(app, again) == "sent")


@pytest.mark.usefixtures("trusted")
async def test_draining_with_the_database_away_ends_and_what_it_held_is_rescued(db, app, owner, crew):
    transport = Scripted()
    transport.gate = asyncio.Event()
    async with cable_to(db.dsn_for("worker")) as cable:
        hired = await crew.hire(
            {"default": transport}, dsn=cable.dsn(db.dsn_for("worker")), concurrency=2, drain_seconds=0.5
        )
        many(app, 8)
        await eventually(lambda: transport.begun == 2 and leased(owner) == 4)
        cable.cut()
        await asyncio.wait_for(hired.stop(), 60)
        assert leased(owner) == 4
    await crew.hire(**RESCUES)
    await eventually(lambda: settled(owner) == {"sent": 8})
    assert doubts(owner) == 4


async def test_a_worker_that_finds_no_database_at_its_start_can_be_stopped(db, crew):
    async with cable_to(db.dsn_for("worker")) as cable:
        cable.cut()
        hired = await crew.hire(dsn=cable.dsn(db.dsn_for("worker")))
        await eventually(lambda: cable.refused >= 2)
        await asyncio.wait_for(hired.stop(), 12)


async def test_one_relay_that_says_nothing_keeps_no_other_away(app, owner, crew):
    class Silent(Scripted):
        async def probe(self):
            self.probed += 1
            await let.wait()
            return AWAY

    let = asyncio.Event()
    silent, other = Silent(otherwise=AWAY), Scripted(AWAY)
    await crew.hire({"default": Scripted(), "a": silent, "b": other})
    await eventually(lambda: one(owner, "select count(*) from pgmail.relay where name in ('a', 'b')") == 2)
    stream(owner, "sa", relay="a")
    stream(owner, "sb", relay="b")
    send(app, stream="sa")
    await eventually(lambda: silent.probed)
    mail = send(app, "x@b.example", stream="sb")
    try:
        await eventually(lambda: state(app, mail) == "sent")
    finally:
        let.set()
    assert other.probed


async def test_a_worker_that_finds_no_database_at_its_start_waits_for_it(db, app, crew, sink):
    mail = send(app)
    async with cable_to(db.dsn_for("worker")) as cable:
        cable.cut()
        hired = await crew.hire(dsn=cable.dsn(db.dsn_for("worker")))
        await eventually(lambda: cable.refused >= 2)
        assert not hired.task.done()
        cable.mend()
        await eventually(lambda: state(app, mail) == "sent", 20)
        await hired.stop()
    assert sink.total == 1


async def test_a_network_that_breaks_under_load_costs_no_mail_and_no_copy(db, app, owner, crew, sink):
    async with cable_to(db.dsn_for("worker")) as cable:
        hired = await crew.hire(dsn=cable.dsn(db.dsn_for("worker")), silence_seconds=30.0)
        many(app, 150)
        for n in (30, 80):
            await sink.wait_for(n, seconds=20)
            cable.cut()
            await eventually(lambda: cable.refused)
            cable.mend()
            cable.refused = 0
        await eventually(lambda: settled(owner) == {"sent": 150}, 30)
        await hired.stop()
    assert set(sink.by_message_id.values()) == {1}
    assert doubts(owner) == 0
    assert differences(owner) == [0]


async def test_a_restart_of_postgres_under_load_loses_nothing_and_workers_come_back_by_themselves(
    open_sink, tmp_path: Path
):
    server = EmbeddedPostgres(tmp_path / "pg", durable=False)
    await asyncio.to_thread(server.start)
    try:
        migrate.upgrade(server.dsn(), prefix="pgmail_", roles=False)
        address = server.address
        there = Server(18, address.host, address.port, address.password, address.password, server.binaries)
        db = _Single(server.dsn(), there)
        sink = await open_sink(
            rule=lambda asked: (
                Answer(text="250 2.0.0 ok", delay_seconds=0.01) if asked.phase is Phase.DOT else None
            )
        )
        crew = Crew(db, sink)
        workers = [await crew.hire(concurrency=4, silence_seconds=10.0) for _ in range(2)]
        with psycopg.connect(server.dsn(), autocommit=True) as app:
            many(app, 300)
        await sink.wait_for(60, seconds=20)
        await asyncio.to_thread(_restart, server, address.port)
        await sink.wait_for(300, seconds=30)
        with psycopg.connect(server.dsn(), autocommit=True) as owner:
            await eventually(lambda: settled(owner) == {"sent": 300}, 30)
            assert differences(owner) == [0]
            copies = sum(n - 1 for n in sink.by_message_id.values())
            assert copies <= doubts(owner)
            assert sum(sink.by_message_id.values()) - copies == 300
        assert not any(hired.task.done() for hired in workers)
        await crew.dismiss()
    finally:
        await asyncio.to_thread(server.remove)


class _Single(Database):
    """A database where one user is everybody."""

    def __init__(self, dsn: str, server: Server) -> None:
        super().__init__("postgres", server)
        self._dsn = dsn

    def dsn_for(self, role: str) -> str:
        return self._dsn


def _restart(server: EmbeddedPostgres, port: int) -> None:
    """Stop and start it again where it was."""
    real = postgres.free_port
    postgres.free_port = lambda: port
    try:
        server.stop()
        server.start()
    finally:
        postgres.free_port = real
