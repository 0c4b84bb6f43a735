"""Roll-ups equal a full count of the events, whatever commits when; and hold no more keys than they may."""

import time
from datetime import timedelta

import psycopg
import pytest

from tests.sql import kit
from tests.sql.kit import Hand
from tests.sql.test_ledger import Walk

KINDS = (
    "case when e.detail like 'fenced out, %%' and e.type <> 'email.in_doubt' then null else"
    " case e.type when 'email.bounced' then 'bounced_' || coalesce((select y.class from pgmail.reply_reason y"
    " where y.name = split_part(coalesce(e.detail, ''), ': ', 1)), 'other') when 'email.failed' then 'dead'"
    " else substr(e.type, 7) end end"
)
COUNTED = (
    "email.sent", "email.bounced", "email.deferred", "email.delayed", "email.suppressed", "email.expired",
    "email.cancelled", "email.failed", "email.in_doubt", "email.held",
)  # fmt: skip


def roll(connection, most=20_000, keys=500, texts=200):
    """Read to the end of what is there; how many events that were. The first end may be that of an earlier look."""
    read, ends = 0, 0
    while ends < 2:
        ((events, more),) = kit.rows(
            connection, "select * from pgmail.rollup_v1(%s, %s, %s)", [most, keys, texts]
        )
        read, ends = read + events, ends + (not more)
    return read


def rolled(connection, dim, grain):
    return {
        (tenant, key, at, kind): n
        for tenant, key, at, kind, n in kit.rows(
            connection,
            "select tenant_id, key, at, kind, n from pgmail.rollup"
            " where dim = %s and grain = %s and kind not in ('took', 'enqueued')",
            [dim, grain],
        )
    }


def counted(connection, dim, grain):
    """The same from the events themselves."""
    key = {
        "stream": "m.stream",
        "site": "coalesce(e.site, r.site)",
        "relay": "e.relay",
        "template": "m.template || coalesce('@' || m.template_version, '')",
        "tag": "t.name || '=' || t.value",
    }[dim]
    return {
        (tenant, key, at, kind): n
        for tenant, key, at, kind, n in kit.rows(
            connection,
            f"select e.tenant_id, {key}, date_trunc(%s, e.at, 'UTC'), {KINDS}, count(*) from pgmail.event e"
            " join pgmail.message m on m.tenant_id = e.tenant_id and m.id = e.message_id"
            " join pgmail.recipient r on r.tenant_id = e.tenant_id and r.id = e.recipient_id"
            + (
                " join pgmail.tag t on t.tenant_id = m.tenant_id and t.message_id = m.id"
                if dim == "tag"
                else ""
            )
            + f" where e.type = any (%s) and {key} is not null and ({KINDS}) is not null group by 1, 2, 3, 4",
            [grain, list(COUNTED)],
        )
    }


def agree(connection):
    for dim in ("stream", "site", "relay", "template", "tag"):
        for grain in ("minute", "hour", "day"):
            if grain != "minute" or dim in {"stream", "site", "relay"}:
                assert rolled(connection, dim, grain) == counted(connection, dim, grain), (dim, grain)
    took = kit.one(
        connection, "select sum(n) from pgmail.rollup where dim = 'site' and grain = 'day' and kind = 'took'"
    )
    sent = kit.one(
        connection, "select sum(n) from pgmail.rollup where dim = 'site' and grain = 'day' and kind = 'sent'"
    )
    assert took == sent


class Late(Walk):
    """A walk in which some transactions stay open for a while, and some never commit; read in steps of any size."""

    def __init__(self, db, clock, seed):
        super().__init__(db, clock, seed)
        self.open = []
        self.readers = [db.connect("maintain"), db.connect("maintain")]

    def email(self):
        return super().email() | {"tags": {"batch": str(self.dice.randrange(3)), "kind": "walk"}}

    def step(self):
        if (roll := self.dice.random()) < 0.15:
            self.begin()
        elif roll < 0.3:
            self.end()
        elif roll < 0.45:
            self.dice.choice(self.readers).execute(
                "select pgmail.rollup_v1(%s)", [self.dice.randrange(1, 30)]
            )
        else:
            super().step()

    def begin(self):
        """Somebody cancels, or sends with a suppressed recipient, in a transaction that goes on."""
        held = self.db.connect("producer", autocommit=False)
        if self.ids and self.dice.random() < 0.6:
            held.execute("select pgmail.cancel(%s)", [self.dice.choice(self.ids)])
        kit.send_many(held, [kit.body(["u0@example.org", "w@late.example"], tags={"kind": "late"})])
        self.open.append(held)

    def end(self):
        if self.open:
            held = self.open.pop(self.dice.randrange(len(self.open)))
            if self.dice.random() < 0.3:
                held.rollback()
            else:
                held.commit()
            held.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_rollups_equal_a_full_count_after_late_commits_rollbacks_rescues_and_resurrections(
    db, db_clock, seed
):
    walk = Late(db, db_clock, seed)
    for _ in range(5):
        for _ in range(40):
            walk.step()
        while walk.dice.random() < 0.7 and walk.open:
            walk.end()
        # What is not committed yet is in neither.
        roll(walk.readers[0], most=walk.dice.randrange(3, 40))
        agree(walk.owner)
    while walk.open:
        walk.end()
    roll(walk.readers[0])
    agree(walk.owner)
    assert sum(rolled(walk.owner, "stream", "day").values()) > 30
    enqueued = (
        "select sum(n) from pgmail.rollup where kind = 'enqueued' and dim = 'stream' and grain = 'hour'"
    )
    walk.owner.execute("select pgmail.fold_tallies_v1()")
    assert kit.one(walk.owner, enqueued) == kit.count(walk.owner, "recipient")


def test_a_giant_transaction_is_read_in_steps_and_counted_once(app, owner, db):
    owner.execute("select pgmail.suppress('gone@example.org')")
    with app.transaction():
        for n in range(3):
            kit.send_many(app, [kit.body("gone@example.org", tags={"part": str(n)}) for _ in range(100)])
    reader = db.connect("worker")
    steps = 0
    while kit.rows(reader, "select * from pgmail.rollup_v1(7)")[0][1]:
        steps += 1
    assert steps == 300 // 7
    agree(owner)
    assert rolled(owner, "tag", "day").popitem()[1] == 100


def test_a_giant_transaction_that_was_open_at_the_last_look_is_read_in_steps_too(app, owner, db):
    owner.execute("select pgmail.suppress('gone@example.org')")
    reader = db.connect("worker")
    with db.connect("producer", autocommit=False) as held:
        kit.send_many(held, [kit.body("gone@example.org") for _ in range(40)])
        kit.send_many(app, [kit.body("gone@example.org") for _ in range(5)])
        assert roll(reader) == 5
        held.commit()
    assert roll(reader, most=7) == 40
    agree(owner)


def test_of_two_at_once_one_reads_and_the_other_does_nothing(app, owner, db):
    owner.execute("select pgmail.suppress('gone@example.org')")
    kit.send_many(app, [kit.body("gone@example.org") for _ in range(5)])
    first, second = db.connect("worker", autocommit=False), db.connect("worker")
    assert kit.rows(first, "select events from pgmail.rollup_v1()") == [(5,)]
    assert kit.rows(second, "select events from pgmail.rollup_v1()") == []
    first.rollback()  # its figures and its place in the feed are gone together
    assert kit.rows(second, "select events from pgmail.rollup_v1()") == [(5,)]
    agree(owner)


def test_a_day_takes_no_more_keys_than_it_may_and_loses_no_count(app, owner, db):
    owner.execute("select pgmail.suppress('gone@example.org')")
    reader = db.connect("worker")
    for part in range(3):
        kit.send_many(app, [kit.body("gone@example.org", tags={"order": f"{part}-{n}"}) for n in range(10)])
        roll(reader, keys=12)
    found = kit.rows(
        owner,
        "select key, sum(n)::int from pgmail.rollup where dim = 'tag' and grain = 'day' group by 1 order by 2 desc",
    )
    assert found[0] == ("(other)", 18)
    assert len(found) == 13
    assert rolled(owner, "stream", "day").popitem()[1] == 30


def test_without_the_feeds_whole_index_nothing_is_read(app, owner, db):
    owner.execute("drop index pgmail.event_feed")
    assert kit.rows(db.connect("worker"), "select * from pgmail.rollup_v1()") == []


def test_a_cursor_of_another_cluster_begins_anew_and_takes_nothing_of_before(app, owner, db):
    owner.execute("select pgmail.suppress('gone@example.org')")
    kit.send(app, "gone@example.org")
    owner.execute("update pgmail.insight_cursor set seen = '9000000000:9000000000:'")
    reader = db.connect("worker")
    assert roll(reader) == 0
    kit.send(app, "gone@example.org")
    # An event of before whose transaction number comes round here.
    owner.execute(
        "update pgmail.event set xid = pg_current_xact_id() where id = (select min(id::text)::uuid from pgmail.event)"
    )
    roll(reader)
    assert rolled(owner, "stream", "day").popitem()[1] == 1


@pytest.mark.parametrize(
    ("said", "address", "text"),
    [
        ("5.1.1 <Jane@example.org>: user jane unknown", "jane@example.org", "5.1.1 <address>: user <name> unknown"),
        ("no mailbox j.roe here", "j.roe@example.org", "no mailbox <name> here"),
        ("4.7.0 try again in 300 seconds, id 8ab3-77c", "a@b.c", "4.7.0 try again in # seconds, id #"),
        ("Our IP 192.0.2.17 is listed", None, "Our IP # is listed"),
        ("5.7.1 mail from 2001:db8::1 refused\r\n see https://x.example/a?b=12", None, "5.7.1 mail from # refused see https://x.example/a?#"),
        ("user unknown", "user@example.org", "user unknown"),
        ("", None, ""),
    ],
)  # fmt: skip
def test_a_cause_has_no_address_name_or_number_in_it(owner, said, address, text):
    assert kit.one(owner, "select pgmail.cause_text(%s, %s)", [said, address]) == text


def test_causes_group_alike_answers_with_examples_and_are_bounded(app, owner, db):
    hand = Hand(db.connect("worker"))
    for n in range(4):
        kit.send(app, f"someone{n}@example.org")
    for n, lease in enumerate(hand.claim()):
        hand.settle(
            lease, "bounced", reason="unknown_user", code=550, enhanced="5.1.1",
            reply=f"5.1.1 <someone{n}@example.org> unknown, ref {n}9-xy",
        )  # fmt: skip
    roll(hand.connection)
    ((kind, _, reason, code, text, n, examples),) = kit.rows(
        owner, "select kind, class, reason, code, text, n, cardinality(examples) from pgmail.cause"
    )
    assert (kind, reason, code, n, examples) == ("bounced", "unknown_user", 550, 4, 3)
    assert text == "5.1.1 <address> unknown, ref #"
    for n in range(6):
        kit.send(app, f"b{n}@example.org")
    for n, lease in enumerate(hand.claim()):
        hand.settle(lease, "deferred", reason="busy", code=451, reply="come back " + "later " * n, delay=1)
    roll(hand.connection, texts=3)
    assert kit.one(owner, "select sum(n) from pgmail.cause") == 10
    assert kit.one(owner, "select count(*) from pgmail.cause where text <> '(other)'") == 3


def test_an_email_that_failed_often_is_one_example_of_a_cause(app, owner, db, db_clock):
    hand = Hand(db.connect("worker"))
    once = kit.send(app, "once@example.org")
    hand.settle(hand.claim(), "deferred", reason="busy", code=451, reply="later", delay=10_000)
    often = kit.send(app, "often@example.org")
    for times in (3, 1, 2):  # of one look, and of looks after it
        for _ in range(times):
            hand.settle(hand.claim(), "deferred", reason="busy", code=451, reply="later", delay=1)
            db_clock.advance(2)
        roll(hand.connection)
    ((n, examples),) = kit.rows(owner, "select sum(n)::integer, array_agg(examples)::text from pgmail.cause")
    assert (n, examples) == (7, f"{{{{{often},{once}}}}}")


def test_a_fault_as_long_as_it_may_be_that_names_no_reason_stops_no_figures(app, owner, db):
    hand = Hand(db.connect("worker"))
    kit.send(app)
    words = "".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(1000))  # what no compression makes small
    hand.settle(hand.claim(), "dead", error=words)
    assert roll(hand.connection) > 0
    assert kit.one(owner, "select sum(n) from pgmail.cause") == 1


def test_gauges_find_the_oldest_due_and_the_states_of_each_lane(app, owner, db, db_clock):
    db_clock.freeze()
    began = db_clock.now()
    kit.send(app, "a@example.org")
    db_clock.advance(60)
    kit.send(app, "b@example.org")
    kit.send(app, "c@example.net", scheduled_at=(began + timedelta(hours=1)).isoformat())
    reader = db.connect("maintain")
    assert kit.one(reader, "select pgmail.gauge_lanes_v1()") == 2
    assert kit.one(reader, "select pgmail.gauge_states_v1()") == 0
    gauges = "select site, oldest_due_at, queued, scheduled, sending from pgmail.gauge order by site desc"
    assert kit.rows(owner, gauges) == [("example.org", began, 2, 0, 0), ("example.net", None, 0, 1, 0)]
    hand = Hand(db.connect("worker"))
    hand.settle([lease for lease in hand.claim(1) if lease.due_at == began])
    kit.rows(reader, "select pgmail.gauge_lanes_v1(), pgmail.gauge_states_v1()")
    assert kit.rows(owner, gauges)[0] == ("example.org", began + timedelta(seconds=60), 1, 0, 0)


def test_depths_that_are_off_are_put_right_and_mail_on_its_way_is_no_difference(app, owner, db):
    kit.send_many(app, [kit.body(f"u{n}@example.org") for n in range(5)])
    reader = db.connect("maintain")
    with db.connect("producer", autocommit=False) as held:
        kit.send(held, "z@example.org")
        assert kit.one(reader, "select pgmail.gauge_states_v1()") == 0
        held.commit()
    owner.execute("update pgmail.tally set lanes = null, per_lane = null")  # as before an upgrade
    assert kit.one(reader, "select pgmail.gauge_states_v1()") == 6
    assert kit.misplaced(owner) == []
    owner.execute("select pgmail.fold_tallies_v1()")
    assert kit.misplaced(owner) == []
    assert kit.one(reader, "select pgmail.gauge_states_v1()") == 0


def test_what_is_past_its_time_goes_and_days_stay(owner, db, db_clock):
    for grain in ("minute", "hour", "day"):
        owner.execute(
            "insert into pgmail.rollup (tenant_id, dim, grain, at, key, kind, n)"
            " values (1, 'site', %s, %s, 'a', 'sent', 1)",
            [grain, db_clock.now()],
        )
    reader = db.connect("maintain")
    left = "select array_agg(grain order by grain) from pgmail.rollup"
    for hours, kept in ((47, ["day", "hour", "minute"]), (2, ["day", "hour"]), (24 * 34, ["day"])):
        db_clock.advance(hours * 3600)
        reader.execute("select pgmail.trim_rollups_v1()")
        assert kit.one(owner, left) == kept


def test_a_trim_takes_a_part_of_each_table_at_a_time_whoever_owns_it(owner, db):
    owner.execute("select pgmail.create_tenant('second')")
    for table, columns, values in (
        (
            "rollup",
            "dim, grain, at, key, kind, n",
            "'site', 'minute', now() - interval '3 days', n::text, 'sent', 1",
        ),
        ("pulse", "stream, at, enqueued, sent", "n::text, now() - interval '1 day', 1, 1"),
        (
            "cause",
            "at, kind, class, reason, code, enhanced, text, n, last_at, examples",
            "now() - interval '40 days', 'dead', 'hard', 'x', 1, '', n::text, 1, now(), '{}'",
        ),
    ):
        owner.execute(
            f"insert into pgmail.{table} (tenant_id, {columns})"
            f" select t, {values} from generate_series(1, 2) t, generate_series(1, 15) n"
        )
    reader, gone = db.connect("maintain"), []
    while (n := kit.one(reader, "select pgmail.trim_rollups_v1(10)")) > 0:
        gone.append(n)
    assert gone == [30, 30, 30]


def test_a_tenant_sees_its_own_figures_only(app, owner, db):
    owner.execute("select pgmail.suppress('gone@example.org')")
    kit.send(app, "gone@example.org", tags={"a": "b"})
    owner.execute("select pgmail.fold_tallies_v1()")
    roll(db.connect("worker"))
    owner.execute("select pgmail.create_tenant('second')")
    api = db.connect("api", autocommit=False)
    for tenant, seen in ((1, True), (2, False)):
        with api.transaction():
            api.execute("select set_config('pgmail.tenant', %s, true)", [str(tenant)])
            for table in ("rollup", "pulse"):
                assert (kit.count(api, table) > 0) is seen
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute("select * from pgmail.rollup")


def test_gauged_states_are_those_that_state_of_tells(app, owner, db):
    for n in range(12):
        kit.send(app, f"u{n}@d{n % 2}.example.org")
    owner.execute(
        """with q as (select id, row_number() over (order by id) as n from pgmail.queue)
        update pgmail.queue x set leased_by = case when q.n in (1, 2) then 7 end, in_doubt = q.n = 5,
          due_at = case when q.n in (2, 3, 4, 5) then 'infinity'
                        when q.n in (6, 7, 8) then pgmail.now() + interval '1 hour' else x.due_at end,
          wait = case when q.n in (3, 6, 9) then 'scheduled' when q.n in (4, 7, 10) then 'deferred'
                      when q.n in (8, 11) then 'delayed' end
        from q where x.id = q.id"""
    )
    assert kit.one(db.connect("worker"), "select pgmail.gauge_states_v1()") == 0
    words = ("queued", "scheduled", "deferred", "held", "sending", "in_doubt")
    told = kit.rows(owner, f"select {', '.join(f'sum({word})::int' for word in words)} from pgmail.gauge")[0]
    states = dict(
        kit.rows(
            owner,
            "select pgmail.state_of(null, false, true, leased_by is not null, due_at, wait, pgmail.now()),"
            " count(*)::int from pgmail.queue group by 1",
        )
    )
    assert states == {"queued": 5, "scheduled": 1, "deferred": 1, "held": 3, "sending": 2}
    assert dict(zip(words, told, strict=True)) == states | {"in_doubt": 1}


def test_due_mail_by_the_gauge_is_what_no_pause_of_any_scope_keeps(app, owner, db):
    two = kit.one(owner, "select pgmail.create_tenant('two')")
    kit.send(app, "u@a.example.org")
    kit.send(app, "u@b.example.org")
    kit.rows(db.connect("worker"), "select pgmail.gauge_lanes_v1()")
    owner.execute(
        "insert into pgmail.gauge (tenant_id, lane, stream, priority, site, oldest_due_at)"
        " values (%s, 5, 'transactional', 2, 'a.example.org', pgmail.now())",
        [two],
    )

    def due(tenant, scope, name):
        owner.execute("delete from pgmail.pause")
        if scope:
            owner.execute(
                "insert into pgmail.pause (tenant_id, scope, name, reason) values (%s, %s, %s, 'x')",
                [tenant, scope, name],
            )
        found = kit.rows(owner, "select tenant_id, site from pgmail.gauge_due() order by 1, 2")
        return " ".join(f"{tenant_id}{site[0]}" for tenant_id, site in found)

    everything = f"1a 1b {two}a"
    assert due(None, None, None) == everything
    assert due(None, "site", "a.example.org") == "1b"
    assert due(two, "site", "a.example.org") == "1a 1b"
    assert due(None, "stream", "transactional") == ""
    assert due(1, "stream", "transactional") == f"{two}a"
    assert due(None, "lane", "transactional/normal/b.example.org") == f"1a {two}a"
    assert due(1, "lane", "transactional/normal/a.example.org") == f"1b {two}a"
    assert due(1, "tenant", "default") == f"{two}a"
    assert due(1, "site", "transactional") == everything  # a site by the name of a stream


def test_the_age_of_mail_is_asked_of_the_queue_where_nobody_gauges(app, owner, db):
    kit.send(app, "u@a.example.org")
    kit.one(owner, "select pgmail.fold_touches_v1()")
    of_queue = "select tenant_id from pgmail.oldest_due()"
    figure = "select value from pgmail.metrics_queue_v1() where figure = 'oldest_due_seconds'"
    assert (kit.rows(owner, of_queue), len(kit.rows(owner, figure))) == ([(1,)], 1)
    kit.rows(db.connect("worker"), "select pgmail.gauge_lanes_v1(), pgmail.gauge_states_v1()")
    owner.execute("update pgmail.gauge set oldest_due_at = null")  # as it would say once that is claimed
    assert (kit.rows(owner, of_queue), kit.rows(owner, figure)) == ([], [])
    owner.execute("update pgmail.insight_cursor set gauged_at = gauged_at - interval '4 minutes'")
    assert (kit.rows(owner, of_queue), len(kit.rows(owner, figure))) == ([(1,)], 1)


def test_a_gauge_planned_while_there_was_none_costs_by_the_lane(db, owner):
    """The leader's session keeps its plans, and its first look comes before there is any gauge."""
    lanes = 4000
    owner.execute(
        "insert into pgmail.lane (tenant_id, id, stream, priority, site)"
        " select 1, g, 'transactional', 2, g || '.example' from generate_series(1, %s) g",
        [lanes],
    )
    owner.execute("insert into pgmail.backlog select 1, id, 1 from pgmail.lane")
    owner.execute("vacuum analyze pgmail.gauge")
    look = "select pgmail.gauge_lanes_v1()"
    assert kit.one(owner, look) == lanes
    with db.connect() as fresh:
        kit.one(fresh, look)
        took = {owner: [], fresh: []}
        for session in (owner, fresh) * 3:
            began = time.perf_counter()
            assert kit.one(session, look) == lanes
            took[session].append(time.perf_counter() - began)
    assert min(took[owner]) < min(took[fresh]) * 4


def test_a_look_at_nothing_new_costs_nothing_of_what_is_kept(db, owner):
    leader = db.connect("maintain")
    roll(leader)
    explain = "explain (analyze, buffers, format json) select * from pgmail.rollup_v1()"

    def blocks():
        plans = [kit.one(leader, explain)[0] for _ in range(3)]
        return min(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] for plan in plans)

    before = blocks()
    owner.execute(
        "insert into pgmail.event (tenant_id, recipient_id, message_id, type)"
        " select 1, pgmail.uuid7(), pgmail.uuid7(), 'email.sending' from generate_series(1, 30000)"
    )
    roll(leader)
    assert blocks() - before < 50  # an index of 30,000 events has some 250
