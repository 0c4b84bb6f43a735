"""send and send_many: faults, what is stored, batches, and the caller's transaction."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgmail.sandbox.postgres import EmbeddedPostgres
from tests import fix_db
from tests.sql import kit
from tests.sql.kit import Refusal

pytestmark = pytest.mark.one_server

_HOT = (
    "message",
    "recipient",
    "queue",
    "lane_touch",
    "event",
    "outcome",
    "tally",
    "attachment",
    "tag",
    "idempotency",
)


def everything(owner):
    return {table: kit.count(owner, table) for table in _HOT}


def test_a_fault_carries_sqlstate_constraint_detail_and_a_message_led_by_the_field(app):
    with pytest.raises(psycopg.Error) as refused:
        kit.send(app, ["ada@example.org", "nobody"])
    error = refused.value
    assert kit.refusal(error) == Refusal("invalid_address", "/to/1", "PM422")
    assert error.diag.message_primary.startswith("/to/1: ")


def test_the_first_fault_in_table_order_is_told(app):
    # Each key below is wrong; mending them one by one walks down the table.
    wrong = {
        "from": ("nobody", "shop@example.com", "invalid_address"),
        "to": (7, "ada@example.org", "invalid_address"),
        "mode": ("loud", "envelope", "invalid_mode"),
        "reply_to": ("nobody", "r@example.com", "invalid_address"),
        "subject": ("a\nb", "Hi", "invalid_subject"),
        "text": (7, "Hello", "invalid_text"),
        "variables": ([], {}, "invalid_variables"),
        "headers": ({"From": "x"}, {}, "reserved_header"),
        "attachments": ({}, [], "invalid_attachment"),
        "tags": (7, [], "invalid_tag"),
        "metadata": ([], {}, "invalid_metadata"),
        "stream": ("nowhere", "transactional", "unknown_stream"),
        "priority": ("urgent", "high", "invalid_priority"),
        "scheduled_at": ("soon", None, "invalid_time"),
        "expires_at": ("late", None, "invalid_time"),
        "on_limit": ("panic", "delay", "invalid_on_limit"),
        "idempotency_key": ("", "k", "invalid_idempotency_key"),
    }
    email = {key: bad for key, (bad, _, _) in wrong.items()}
    told = []
    for good, code in [(good, code) for _, good, code in wrong.values()]:
        with pytest.raises(psycopg.Error) as refused:
            app.execute("select pgmail.send(%s)", [Jsonb(email)])
        told.append(refused.value.diag.constraint_name)
        assert told[-1] == code
        email[list(wrong)[len(told) - 1]] = good
    assert isinstance(kit.one(app, "select pgmail.send(%s)", [Jsonb(email)]), UUID)


@pytest.mark.parametrize("strict", [True, False])
def test_a_fault_leaves_nothing_behind(owner, strict):
    before = everything(owner)
    for bad in (kit.body("nobody", idempotency_key="k"), kit.body(stream="nowhere"), 7):
        with pytest.raises(psycopg.Error):
            owner.execute("select pgmail.send(%s)", [Jsonb(bad)])
    items = [kit.body(idempotency_key="k"), 7] if strict else [7, 8]
    try:
        kit.send_many(owner, items, strict=strict, key=None)
    except psycopg.Error:
        assert strict
    assert everything(owner) == before


def test_an_uncast_literal_finds_the_jsonb_form(app):
    literal = '{"from":"a@example.com","to":"b@example.org","subject":"x","text":"y"}'
    assert isinstance(kit.one(app, f"select pgmail.send('{literal}')"), UUID)


def test_named_arguments_send_what_the_jsonb_form_sends(app, owner):
    at = datetime.now(UTC) + timedelta(hours=1)
    named = kit.one(
        app,
        "select pgmail.send(sender => 'Shop <shop@example.com>', recipient => 'Ada@example.org', subject => 'Hi',"
        " \"text\" => 'Hello {{ name }}', variables => '{\"name\": \"Ada\"}', stream => 'broadcast',"
        " priority => 'high',"
        " send_at => %s, expires_at => %s, cc => '{c@example.org}', bcc => '{d@example.org}',"
        " reply_to => 'r@example.com', headers => '{\"X-A\": \"b\"}',"
        ' tags => \'{"t": "v"}\', metadata => \'{"m": 1}\', test => true)',
        [at, at + timedelta(hours=1)],
    )
    same = kit.send(
        app, "Ada@example.org", **{"from": "Shop <shop@example.com>"}, text="Hello {{ name }}",
        variables={"name": "Ada"}, stream="broadcast", priority="high", scheduled_at=at.isoformat(),
        expires_at=(at + timedelta(hours=1)).isoformat(), cc=["c@example.org"], bcc=["d@example.org"],
        reply_to="r@example.com", headers={"X-A": "b"}, tags={"t": "v"}, metadata={"m": 1}, test=True,
    )  # fmt: skip
    columns = (
        "stream, priority, mode, sender, recipients, scheduled_at, expires_at, size_bytes, tags, metadata, test,"
        " convert_from(content, 'UTF8')::jsonb"
    )
    first, second = kit.rows(owner, f"select {columns} from pgmail.message order by id")
    assert first == second
    assert first[5] == at
    assert kit.states(app, named) == kit.states(app, same) == ["scheduled"] * 3


def test_duplicate_addresses_over_to_cc_and_bcc_are_sent_to_once(app, owner):
    mail = kit.send(
        app,
        ["Ada@Example.org", "ada@example.org"],
        cc=["ADA@EXAMPLE.ORG", "b@example.org"],
        bcc=["b@example.org"],
    )
    found = kit.rows(
        owner,
        "select role, address, rcpt from pgmail.recipient where message_id = %s order by position",
        [mail],
    )
    assert found == [("to", "ada@example.org", "Ada@example.org"), ("cc", "b@example.org", None)]


def test_attachments_tags_and_assets_are_stored_once_with_their_message(app, owner):
    owner.execute("select pgmail.save_asset('logo', 'logo.png', 'image/png', 'abc')")
    kit.send(
        app,
        ["a@example.org", "b@example.org"],
        attachments=[{"filename": "a.txt", "content": "aGVsbG8="}, {"asset": "logo", "content_id": "logo"}],
        tags=[{"name": "kind", "value": "welcome"}],
    )
    assert kit.rows(
        owner,
        "select filename, content_type, content_id, asset, size_bytes, body from pgmail.attachment order by position",
    ) == [
        ("a.txt", None, None, None, 5, b"hello"),
        ("logo.png", "image/png", "logo", "logo", 3, None),
    ]  # fmt: skip
    assert kit.rows(owner, "select name, value from pgmail.tag") == [("kind", "welcome")]


def test_the_version_of_a_template_is_pinned_at_enqueue(app, owner):
    save = "select pgmail.save_template('t', 's', %s, null, '{}', '{}', %s)"
    owner.execute(save, ["one", True])
    owner.execute(save, ["two", False])
    kit.send(app, template="t", subject=None, text=None)
    assert kit.rows(owner, "select template, template_version from pgmail.message") == [("t", 1)]


def test_a_thousand_emails_in_one_call_keep_their_positions(app, owner):
    items = [kit.body([f"u{n}@example.org", f"v{n}@example.net"]) for n in range(1000)]
    answer = kit.send_many(app, items)
    assert [row[0] for row in answer] == list(range(1000))
    ids = [row[1] for row in answer]
    assert len(set(ids)) == 1000
    found = dict(kit.rows(owner, "select message_id, min(address) from pgmail.recipient group by 1"))
    assert [found[mail] for mail in ids] == [f"u{n}@example.org" for n in range(1000)]
    assert kit.rows(owner, "select kind, sum(n) from pgmail.tally group by 1") == [("enqueued", 2000)]
    assert kit.count(owner, "lane_touch") == 2


def test_a_lenient_batch_stores_the_good_and_tells_each_bad_one_its_own_fault(app, owner):
    items = [kit.body(), 7, kit.body("nobody"), kit.body("b@example.org"), kit.body(stream="nowhere")]
    answer = kit.send_many(app, items, strict=False)
    assert [(row[2], row[3]) for row in answer] == [
        (None, None),
        ("invalid_body", ""),
        ("invalid_address", "/to"),
        (None, None),
        ("unknown_stream", "/stream"),
    ]
    assert [row[1] is not None for row in answer] == [True, False, False, True, False]
    assert kit.count(owner, "message") == 2


def test_a_strict_batch_stores_all_or_nothing(app, owner):
    with pytest.raises(psycopg.Error) as refused:
        kit.send_many(app, [kit.body(), kit.body(["a@example.org", "nobody"]), 7])
    assert kit.refusal(refused.value) == Refusal("invalid_address", "/1/to/1", "PM422")
    assert kit.count(owner, "message") == 0


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ({"a": 1}, Refusal("invalid_body", "", "PM422")),
        (None, Refusal("invalid_body", "", "PM422")),
        ([1] * 10_001, Refusal("batch_too_large", "", "PM413")),
    ],
    ids=["an object", "null", "too many"],
)
def test_what_is_no_batch_is_refused_as_a_whole(app, items, expected):
    with pytest.raises(psycopg.Error) as refused:
        kit.send_many(app, items, strict=False)
    assert kit.refusal(refused.value) == expected


def test_an_empty_batch_is_fine(app):
    assert kit.send_many(app, []) == []
    assert kit.send_many(app, [], key="k") == kit.send_many(app, [], key="k") == []


def test_a_rollback_sends_nothing(db, owner):
    before = everything(owner)
    with db.connect("producer", autocommit=False) as connection:
        kit.send(connection, idempotency_key="k")
        kit.send_many(connection, [kit.body()] * 3)
        connection.rollback()
    assert everything(owner) == before


def test_a_rollback_to_a_savepoint_sends_nothing_and_the_commit_sends_once(db, owner):
    with db.connect("producer", autocommit=False) as connection:
        kept = kit.send(connection, "kept@example.org")
        with connection.transaction(force_rollback=True):
            kit.send(connection, "gone@example.org")
        with connection.transaction(), pytest.raises(psycopg.Error), connection.transaction():
            kit.send(connection, "nobody")
        connection.commit()
    assert kit.rows(owner, "select message_id, address from pgmail.recipient") == [(kept, "kept@example.org")]
    assert kit.count(owner, "queue") == 1


def test_a_hint_goes_out_only_while_a_worker_sleeps(db, app, hand):
    listener = db.connect("worker")
    listener.execute("listen pgmail")
    kit.send(app)
    hand.connection.execute("select pgmail.worker_beat_v1(%s, 'running', true)", [hand.epoch])
    kit.send(app, scheduled_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    assert list(listener.notifies(timeout=0.05)) == []
    kit.send(app)
    assert len(list(listener.notifies(timeout=10, stop_after=1))) == 1


@pytest.fixture
def two_phase(tmp_path_factory):
    """A database of a server that allows prepared transactions, which is not the default."""
    folder = Path(tmp_path_factory.mktemp("two-phase"))
    running = EmbeddedPostgres(folder / "pg", 18, durable=False, settings={"max_prepared_transactions": "2"})
    running.start()
    try:
        address = running.address
        server = fix_db.Server(18, address.host, address.port, address.password, "word", running.binaries)
        fix_db.make_template(server)
        yield fix_db.Database(fix_db.TEMPLATE, server)
    finally:
        running.remove()


def test_two_phase_commit_works_without_the_hint_and_fails_with_it_as_the_server_says(two_phase):
    db = two_phase
    hand = kit.Hand(db.connect("worker"))
    hand.connection.execute("select pgmail.worker_beat_v1(%s, 'running', true)", [hand.epoch])
    app = db.connect("producer")
    app.execute("begin")
    kit.send(app)
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
        app.execute("prepare transaction 'one'")
    app.execute("rollback")
    app.execute("begin")
    app.execute("set local pgmail.notify = 'off'")
    mail = kit.send(app)
    app.execute("prepare transaction 'two'")
    assert hand.claim() == []
    app.execute("commit prepared 'two'")
    assert [lease.message_id for lease in hand.claim()] == [mail]
    db.close()


def test_variables_of_one_recipient_make_templates_of_the_texts_for_all(app, owner):
    people = [{"address": "a@example.org", "variables": {"name": "Ada"}}, "b@example.org"]
    kit.send(app, people, mode="personal", text="Hi {{ name }}")
    content = kit.one(owner, "select convert_from(content, 'UTF8')::jsonb from pgmail.message")
    assert content["variables"] == {}
