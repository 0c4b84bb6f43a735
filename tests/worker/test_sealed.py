"""Sealed mail from end to end: in by HTTP, sealed in every table, out as if it had never been sealed."""

import base64
import contextlib
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb

import pgmail
from pgmail.config_text import key_pairs
from pgmail.errors import Refused
from pgmail.sealing.keks import Keks, new_pair
from pgmail.store import sealing
from pgmail.worker import sender
from tests.api.conftest import client, new_key
from tests.fix_db import PREFIX
from tests.sql.kit import body, one, rows, state
from tests.waiting import eventually
from tests.worker.kit import Scripted

SECRET = "Parole-7f31"
KEY = new_pair("k1")
OTHER = new_pair("k2")


def keks(*pairs: str) -> Keks:
    return Keks(key_pairs(" ".join(pairs)))


@pytest.fixture
def owner(db):
    return db.connect()


@pytest.fixture
def sealed_stream(owner):
    owner.execute("select pgmail.save_stream('transactional', '{\"seal\": \"required\"}')")


@contextlib.asynccontextmanager
async def door(db: Any, *pairs: str):
    async with client(db.dsn_for("api"), new_key(db), keks=keks(*pairs)) as api:
        yield api


def mail(to: Any = "ada@example.org", **more: Any) -> dict[str, Any]:
    return body(to, subject=f"{SECRET} subject", text=f"{SECRET} text", html=f"<p>{SECRET}</p>", **more)


async def hand_over(db: Any, email: dict[str, Any], *pairs: str) -> UUID:
    async with door(db, *(pairs or (KEY,))) as api:
        answer = await api.post("/emails", json=email)
    assert answer.status_code == 200, answer.text
    return UUID(answer.json()["id"])


async def sent(crew: Any, *, keys: str = KEY, mails: int = 1) -> list[Any]:
    """What a worker with these keys hands to its relay."""
    relay = Scripted()
    await crew.hire({"default": relay}, seal_keys=keys)
    await eventually(lambda: len(relay.delivered) >= mails)
    return relay.delivered


async def test_a_mail_with_many_files_is_sealed_and_sent(db, owner, sealed_stream, crew):
    names = [f"Angebot Muster GmbH und Partner, Lageplan, Blatt {n:02}.pdf" for n in range(30)]
    files = [{"filename": name, "content": "QQ=="} for name in names]
    await hand_over(db, mail(attachments=files))
    (envelope,) = await sent(crew)
    assert envelope.body.count(b"Lageplan") >= len(names)


async def test_a_sealed_test_mail_is_recorded_and_kept_nowhere_in_the_clear(
    db, app, *, sealed_stream, crew, tmp_path
):
    id_ = await hand_over(db, mail(test=True))
    await crew.hire({"default": Scripted()}, seal_keys=KEY, test_folder=str(tmp_path / "kept"))
    await eventually(lambda: state(app, id_) == "sent")
    assert not list(tmp_path.glob("kept/*"))


def test_what_is_sealed_lies_in_no_temporary_file_on_its_way(db, app, owner):
    spilled = "select temp_bytes from pg_stat_database where datname = current_database()"
    files = [{"filename": f"{n}.bin", "content": "QUFB" * 900_000} for n in range(2)]
    with db.connect("producer") as sender:
        sender.execute("select pgmail.send(%s)", [Jsonb(mail(attachments=files))])
        sender.execute("select pgmail.send_many(%s)", [Jsonb([mail() | {"text": "a" * 2_800_000}] * 3)])
        sender.execute("select pg_stat_force_next_flush()")
    assert one(owner, spilled) == 0


def everything(owner: Any) -> str:
    """All rows of all tables, as text."""
    text = "select c.oid::regclass::text from pg_class c where relnamespace = 'pgmail'::regnamespace and relkind = 'r'"
    tables = rows(owner, text)
    return "\n".join(str(row) for (name,) in tables for row in rows(owner, f"select t::text from {name} t"))


def found_in(owner: Any, word: str) -> bool:
    text = everything(owner)
    return word in text or word.encode().hex() in text or base64.b64encode(word.encode()).decode()[:8] in text


async def test_nothing_of_a_sealed_mail_can_be_read_in_the_database_and_the_receiver_reads_all_of_it(
    db, owner, sealed_stream, crew
):
    file = base64.b64encode(f"{SECRET} file".encode()).decode()
    await hand_over(
        db,
        mail(
            headers={"X-Case": f"{SECRET}-header"},
            attachments=[{"filename": f"{SECRET}.txt", "content": file}],
        ),
    )
    assert not found_in(owner, SECRET)
    assert one(owner, "select key_id from pgmail.message") == 1
    assert one(owner, "select key_id from pgmail.attachment") == 1
    (envelope,) = await sent(crew)
    wire = envelope.body.decode()
    for part in ("subject", "text", "-header"):
        assert f"{SECRET}{'' if part[0] == '-' else ' '}{part}" in wire
    assert f'filename="{SECRET}.txt"' in wire
    assert base64.b64encode(f"{SECRET} file".encode()).decode() in wire


async def test_templates_get_the_sealed_variables_of_the_mail_and_of_each_recipient(
    db, owner, sealed_stream, crew
):
    people = [
        {"address": "Ada@example.org", "name": "Ada", "variables": {"code": f"{SECRET}-1"}},
        {"address": "bob@example.org", "variables": {"code": f"{SECRET}-2"}},
        {"address": "ADA@example.org", "variables": {"code": f"{SECRET}-3"}},
    ]
    email = body(people, mode="personal", text="{{ hi }} {{ code }}", variables={"hi": f"{SECRET}-hi"})
    await hand_over(db, email)
    assert not found_in(owner, SECRET)
    got = {e.recipient: e.body.decode().partition("\r\n\r\n")[2].strip() for e in await sent(crew, mails=2)}
    assert got == {"Ada@example.org": f"{SECRET}-hi {SECRET}-1", "bob@example.org": f"{SECRET}-hi {SECRET}-2"}


async def test_a_stored_template_gets_variables_given_beside_its_name(db, owner, sealed_stream, crew):
    owner.execute(
        "select pgmail.save_template('welcome', 'Hi', '{{ name }} {{ code }}', null, '{name,code}', '{}', true)"
    )
    email = body(
        subject=None, text=None, template={"id": "welcome", "variables": {"name": "x", "code": SECRET}},
        variables={"name": "Ada"},
    )  # fmt: skip
    await hand_over(db, email)
    assert not found_in(owner, SECRET)
    (envelope,) = await sent(crew)
    assert envelope.body.decode().partition("\r\n\r\n")[2].strip() == f"Ada {SECRET}"


async def test_the_law_judges_a_sealed_mail_as_any_other(db, sealed_stream):
    async with door(db, KEY) as api:
        answer = await api.post("/emails", json=mail(headers={"Bcc": "x"}))
        assert (answer.status_code, answer.json()["field"]) == (422, "/headers/Bcc")
        answer = await api.post("/emails", json=mail() | {"sealed": {"id": "x"}})
        assert (answer.status_code, answer.json()["field"]) == (422, "/sealed")


async def test_a_stream_that_requires_sealing_refuses_what_comes_plain_and_one_where_it_is_possible_does_not(
    db, owner, sealed_stream
):
    app = db.connect("producer")
    with pytest.raises(Exception, match="takes sealed mail only") as refused:
        app.execute("select pgmail.send(%s)", [Jsonb(mail())])
    assert refused.value.diag.constraint_name == "sealing_required"
    assert refused.value.diag.message_detail == "/stream"
    async with client(db.dsn_for("api"), new_key(db)) as without:
        answer = await without.post("/emails", json=mail())
        assert (answer.status_code, answer.json()["field"]) == (422, "/stream")
    owner.execute("select pgmail.save_stream('transactional', '{\"seal\": \"where_possible\"}')")
    app.execute("select pgmail.send(%s)", [Jsonb(mail())])
    await hand_over(db, mail())
    assert rows(owner, "select key_id from pgmail.message order by id") == [(None,), (1,)]


async def test_a_stream_that_is_sealed_since_this_moment_is_sealed_by_a_process_that_thought_otherwise(
    db, owner
):
    async with door(db, KEY) as api:
        assert (await api.post("/emails", json=mail())).status_code == 200
        owner.execute("select pgmail.save_stream('transactional', '{\"seal\": \"required\"}')")
        assert (await api.post("/emails", json=mail())).status_code == 200
        assert (await api.post("/emails/batch", json=[mail(), mail()])).status_code == 200
    assert [key for (key,) in rows(owner, "select key_id from pgmail.message order by id")] == [None, 1, 1, 1]


async def test_an_idempotency_key_knows_the_sealed_mail_again_and_keeps_no_hash_that_tells_its_text(
    db, owner, sealed_stream
):
    async with door(db, KEY) as api:
        for path, email in (("/emails", mail()), ("/emails/batch", [mail(), mail("eve@example.org")])):
            headers = {"Idempotency-Key": f"order-{path}"}
            first = await api.post(path, json=email, headers=headers)
            again = await api.post(path, json=email, headers=headers)
            assert first.status_code == again.status_code == 200
            assert first.json() == again.json()
            other = body(text="another") if path == "/emails" else [body(text="another")]
            assert (await api.post(path, json=other, headers=headers)).status_code == 409
    plain = one(owner, "select pgmail.body_hash(%s)", [Jsonb(mail())])
    assert plain not in [row[0] for row in rows(owner, "select body_hash from pgmail.idempotency")]
    assert one(owner, "select count(*) from pgmail.message") == 3


async def test_the_api_shows_a_sealed_mail_where_it_has_the_key_and_says_that_it_is_sealed_where_not(
    db, sealed_stream
):
    made = await hand_over(db, mail(headers={"X-A": "b"}))
    async with door(db, KEY) as api:
        shown = (await api.get(f"/emails/{made}")).json()
        assert (shown["text"], shown["sealed"], shown["headers"]) == (f"{SECRET} text", False, {"X-A": "b"})
        (item,) = (await api.get("/emails")).json()["data"]
        assert (item["subject"], item["sealed"], item["from"]) == (None, True, "shop@example.com")
    for others in ([], [OTHER]):
        async with client(db.dsn_for("api"), new_key(db), keks=keks(*others)) as api:
            shown = (await api.get(f"/emails/{made}")).json()
            assert (shown["text"], shown["sealed"], shown["to"]) == (None, True, ["ada@example.org"])


@pytest.mark.parametrize("keys", ["", OTHER], ids=["none", "another"])
async def test_without_its_key_a_mail_waits_visibly_and_spends_no_attempt_until_the_key_is_there(
    db, owner, crew, monkeypatch, keys
):
    owner.execute("select pgmail.save_stream('transactional', '{\"seal\": \"required\"}')")
    monkeypatch.setattr(sender, "KEY_SECONDS", 0.2)
    made = await hand_over(db, mail())
    poor = Scripted()
    worker = await crew.hire({"default": poor}, seal_keys=keys)

    def delayed() -> bool:
        return (
            one(
                owner,
                "select count(*) from pgmail.event where type = 'email.delayed' and detail like '%%SEAL_KEYS%%'",
            )
            > 0
        )

    await eventually(delayed)
    assert state(owner, made) in {"queued", "sending"}
    with db.connect("producer") as app:
        assert "sealed with the key 'k1', which no running worker has" in one(
            app, "select pgmail.why(%s)", [made]
        )
    await worker.stop()
    assert not poor.delivered
    assert one(owner, "select attempts from pgmail.queue") == 0
    assert one(owner, "select tried_since from pgmail.queue") is None
    (envelope,) = await sent(crew)
    assert SECRET in envelope.body.decode()
    assert one(owner, "select max(attempt) from pgmail.event") == 1


async def test_who_lacks_the_key_leaves_sealed_mail_to_who_has_it_and_claims_none(db, owner, crew):
    owner.execute("select pgmail.save_stream('transactional', '{\"seal\": \"where_possible\"}')")
    rich, poor = Scripted(), Scripted()
    await hand_over(db, mail("first@example.org"))
    await crew.hire({"default": rich}, seal_keys=KEY)
    await eventually(lambda: len(rich.delivered) == 1)
    for keys in ("", OTHER):
        await crew.hire({"default": poor}, seal_keys=keys)
    await eventually(lambda: one(owner, "select count(*) from pgmail.worker_key where kek = ''") == 3)
    for n in range(5):
        await hand_over(db, mail([f"u{n}{i}@example{i}.org" for i in range(4)]))
    await eventually(lambda: len(rich.delivered) == 21)
    assert not poor.delivered
    assert one(owner, "select count(*) from pgmail.event where type = 'email.delayed'") == 0
    assert one(owner, "select count(*) from pgmail.event where type = 'email.sending'") == 21


async def test_a_mail_whose_key_nobody_has_is_tried_ever_more_rarely(db, owner, crew):
    owner.execute("select pgmail.save_stream('transactional', '{\"seal\": \"required\"}')")
    await hand_over(db, mail())
    await crew.hire({"default": Scripted()})
    waits = []
    for tries in range(1, 8):
        await eventually(
            lambda tries=tries: one(owner, "select claims from pgmail.queue where leased_by is null") == tries
        )
        waits.append(one(owner, "select extract(epoch from due_at - pgmail.now())::int from pgmail.queue"))
        owner.execute("update pgmail.queue set due_at = pgmail.now() - interval '1 second'")
        owner.execute(
            "update pgmail.lane set rewind_to = '2000-01-01', version = nextval('pgmail.lane_version')"
        )
    assert [round(wait / 60) for wait in waits] == [1, 2, 4, 8, 15, 15, 15]


_JSON = "convert_from(content, 'UTF8')::jsonb"
_OCTETS = f"decode({_JSON}->>'sealed', 'base64')"


def _put(sealed: str) -> str:
    """Store another text in place of what is sealed."""
    return f"update pgmail.message set content = convert_to(jsonb_set({_JSON}, '{{sealed}}', {sealed})::text, 'UTF8')"


TAMPERING = {
    "one bit of the content": _put(
        f"to_jsonb(encode(set_bit({_OCTETS}, 200, 1 - get_bit({_OCTETS}, 200)), 'base64'))"
    ),
    "the content of another mail": (
        "update pgmail.message m set content = o.content from pgmail.message o where o.id <> m.id"
    ),
    "a content that is cut short": _put("'\"AAAA\"'"),
    "a content without what was sealed": (
        f"update pgmail.message set content = convert_to(({_JSON} - 'sealed')::text, 'UTF8')"
    ),
    "one bit of a file": "update pgmail.attachment set body = set_bit(body, 150, 1 - get_bit(body, 150))",
    "a file of another mail": (
        "update pgmail.attachment a set body = o.body from pgmail.attachment o where o.message_id <> a.message_id"
    ),
    "a file that is cut short": "update pgmail.attachment set body = substring(body for 20)",
    "another key": "update pgmail.message set key_id = 2",
    "a mail that says it is not sealed": "update pgmail.message set key_id = null",
}  # fmt: skip


@pytest.mark.parametrize("how", TAMPERING)
async def test_what_was_tampered_with_ends_as_a_dead_letter_and_harms_no_other_mail(
    db, owner, sealed_stream, crew, how
):
    file = base64.b64encode(b"some octets").decode()
    email = mail(attachments=[{"filename": "a.txt", "content": file}])
    mails = [await hand_over(db, email) for _ in range(2)]
    # Another data key of the tenant, which opens nothing of this.
    kek, wrapped = keks(KEY).wrap(1, b"x" * 32)
    owner.execute("select pgmail.add_data_key('default', %s, %s, 'test')", [wrapped, kek])
    owner.execute(TAMPERING[how])
    owner.execute("select pgmail.save_stream('transactional', '{\"seal\": \"off\"}')")
    owner.execute("select pgmail.send(%s)", [Jsonb(body("eve@example.org"))])
    (envelope,) = await sent(crew)
    assert envelope.recipient == "eve@example.org"
    await eventually(lambda: [state(owner, mail_id) for mail_id in mails] == ["dead", "dead"])
    reasons = {row[0] for row in rows(owner, "select reason from pgmail.dead_letter")}
    assert reasons <= {"seal_broken", "poison"}
    assert SECRET not in str(rows(owner, "select error from pgmail.dead_letter"))


async def test_a_wrapped_key_of_another_tenant_opens_nothing(db, owner, sealed_stream):
    await hand_over(db, mail())
    owner.execute("select pgmail.create_tenant('other')")
    (row,) = rows(owner, "select wrapped, kek from pgmail.data_key")
    with pytest.raises(Exception, match="does not open what a key of that name wrapped"):
        keks(KEY).unwrap(2, row[1], row[0])


async def test_rotation_of_both_kinds_of_keys_stops_nothing_and_old_mail_stays_readable(
    db, owner, sealed_stream, crew
):
    await hand_over(db, mail())
    async with await db.aconnect() as connection:
        kek, wrapped = keks(KEY).wrap(1, b"y" * 32)
        assert await sealing.add(connection, "default", kek, wrapped, "yearly") == 2
        await hand_over(db, mail())
        both = keks(OTHER, KEY)
        for row in await sealing.listing(connection):
            name, again = both.wrap(1, both.unwrap(1, row.kek, row.wrapped))
            was = sealing.Wrapped(row.id, row.kek, row.wrapped)
            assert await sealing.rewrap(connection, 1, was, name, again, reason="leaked")
            assert not await sealing.rewrap(connection, 1, was, name, again, reason="too late")
    assert rows(owner, "select key_id from pgmail.message order by id") == [(1,), (2,)]
    await hand_over(db, mail(), OTHER)
    delivered = await sent(crew, keys=OTHER, mails=3)
    assert all(SECRET in envelope.body.decode() for envelope in delivered)
    acts = rows(
        owner, "select action, object, reason from pgmail.audit where action like 'data_key%%' order by id"
    )
    assert [act for act, _, _ in acts] == ["data_key.create"] * 2 + ["data_key.rewrap"] * 2
    assert acts[1] == ("data_key.create", "2", "yearly")


async def test_an_erased_person_leaves_the_open_lists_and_a_mail_of_its_own_whole(
    db, owner, sealed_stream, crew
):
    await hand_over(db, mail("ada@example.org"))
    await hand_over(db, mail(["ada@example.org", "bob@example.org"]))
    await sent(crew, mails=3)
    await eventually(lambda: one(owner, "select count(*) from pgmail.queue") == 0)
    done = one(owner, "select pgmail.erase('ada@example.org', 'asked to')")
    assert done["recipients"] == 2
    assert "ada@example.org" not in everything(owner)
    assert rows(owner, "select key_id from pgmail.message order by id") == [(None,), (1,)]
    made = one(owner, "select id from pgmail.message where key_id is not null")
    async with door(db, KEY) as api:
        assert (await api.get(f"/emails/{made}")).json()["text"] == f"{SECRET} text"


async def test_a_producer_can_neither_store_a_key_nor_read_one_nor_seal_with_one_of_another(
    db, sealed_stream
):
    await hand_over(db, mail())
    app = db.connect("producer")
    for text in (
        "select * from pgmail.data_key",
        "select pgmail.first_data_key_v1(''::bytea, 'k')",
        "select pgmail.add_data_key('default', ''::bytea, 'k', null)",
    ):
        with pytest.raises(Exception, match="permission denied"):
            app.execute(text)
    form = {"tenant": 1, "id": "019a0000-0000-7000-8000-000000000000", "key": 1, "content": "A" * 44}
    for change, field in (
        ({}, "/sealed/id"),
        ({"key": "x"}, "/sealed"),
        ({"id": 5}, "/sealed"),
        ({"tenant": 2}, "/sealed/tenant"),
    ):
        with pytest.raises(Exception) as refused:
            app.execute("select pgmail.send(%s)", [Jsonb(mail() | {"sealed": form | change})])
        assert refused.value.diag.message_detail == field


async def test_the_python_client_seals_on_sync_and_async_connections(db, owner, sealed_stream, crew):
    sealer = pgmail.Sealer(KEY)
    app = db.connect("producer")
    with pytest.raises(Refused, match="pgmail seal rotate") as unready:
        pgmail.send(app, mail(), seal=sealer)
    assert unready.value.status == 503
    kek, wrapped = keks(KEY).wrap(1, b"z" * 32)
    owner.execute("select pgmail.add_data_key('default', %s, %s, 'first')", [wrapped, kek])
    sealer = pgmail.Sealer(KEY)
    first = pgmail.send(app, mail(idempotency_key="once"), seal=sealer)
    assert pgmail.send(app, mail(idempotency_key="once"), seal=sealer) == first
    pgmail.send_many(app, [mail(), mail()], seal=sealer)
    other = await db.aconnect("producer")
    await pgmail.send(other, mail(), seal=pgmail.Sealer(KEY))
    await pgmail.send_many(other, [mail()], seal=sealer)
    assert not found_in(owner, SECRET)
    assert [key for (key,) in rows(owner, "select key_id from pgmail.message")] == [1] * 5
    delivered = await sent(crew, mails=5)
    assert all(SECRET in envelope.body.decode() for envelope in delivered)
    with pytest.raises(Refused, match="takes sealed mail only"):
        pgmail.send(app, mail())
    assert KEY.partition("=")[2] not in repr(sealer)


async def test_one_sealer_is_for_one_tenant(db, owner, sealed_stream):
    await hand_over(db, mail())
    sealer = pgmail.Sealer(KEY)
    pgmail.send(db.connect("producer"), mail(), seal=sealer)
    owner.execute("select pgmail.create_tenant('other')")
    owner.execute(
        "select pgmail.revoke_tenant(%(role)s), pgmail.grant_tenant(%(role)s, 'other')",
        {"role": f"{PREFIX}producer"},
    )
    with pytest.raises(Refused, match="another tenant"):
        pgmail.send(db.connect("producer"), mail(), seal=sealer)
