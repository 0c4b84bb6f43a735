"""From a claimed row to the bytes of its mail."""

import asyncio
import base64
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgmail.errors import TemplateFault
from pgmail.store import work
from pgmail.worker import content as module
from pgmail.worker.content import Impossible, Library, Message
from tests.fix_db import PREFIX
from tests.sql.kit import Hand, one, send, stream
from tests.worker.kit import header


class Reader:
    """Claims what is queued and makes its mail."""

    def __init__(self, pool: Any, hand: Hand) -> None:
        self.library = Library(pool, "mail.example.com")
        self._hand = hand

    async def load(self) -> list[tuple[Message, Any]]:
        leases = [
            work.Lease(1, x.id, x.message_id, x.lane, x.due_at, x.claims, x.attempts, x.rescues, x.expires_at)
            for x in self._hand.claim()
        ]
        (found,) = await self.library.load([(1, "transactional", leases)])
        return [found[lease.id] for lease in leases]

    async def wires(self) -> dict[str, bytes]:
        """By the address sent to."""
        return {
            person.rcpt: (await self.library.wire(1, message, person, eightbit=False)).body
            for message, person in await self.load()
        }

    async def wire(self) -> bytes:
        (only,) = (await self.wires()).values()
        return only


@pytest.fixture
def hand(db):
    return Hand(db.connect("worker"))


@pytest.fixture
def reader(pool, hand) -> Reader:
    return Reader(pool, hand)


@pytest.fixture
def queries(monkeypatch) -> Counter[str]:
    """How often each thing was fetched: round trips (`contents`), and the `messages` that they asked for."""
    counted: Counter[str] = Counter()

    def count(name: str) -> None:
        real = getattr(work, name)

        async def counting(*arguments: Any) -> Any:
            counted[name] += 1
            if name == "contents":
                counted["messages"] += sum(len(messages) for *_, messages in arguments[1])
            return await real(*arguments)

        monkeypatch.setattr(work, name, counting)

    for name in ("contents", "attachments", "template"):
        count(name)
    return counted


def publish(owner: Any, name: str, *, text: str, subject: str | None = "S", depends: str = "{}") -> int:
    return one(
        owner,
        "select pgmail.save_template(%s, %s, %s, null, '{}', %s::jsonb, true)",
        [name, subject, text, depends],
    )


async def test_in_envelope_mode_all_recipients_get_the_same_bytes_made_once(app, reader, queries):
    mail = send(app, ["Ada <ada@example.org>", "bob@example.org"], cc="eve@example.org")
    found = await reader.load()
    wires = [await reader.library.wire(1, message, person, eightbit=False) for message, person in found]
    assert len(wires) == 3
    assert all(wire is wires[0] for wire in wires)
    assert header(wires[0].body, "To") == "Ada <ada@example.org>, bob@example.org"
    assert header(wires[0].body, "Cc") == "eve@example.org"
    assert header(wires[0].body, "Message-ID") == f"<{mail.hex}@mail.example.com>"
    assert queries["messages"] == 1


async def test_a_blind_copy_never_shows(app, reader):
    send(app, "ada@example.org", bcc=["secret@example.org"])
    wires = await reader.wires()
    assert set(wires) == {"ada@example.org", "secret@example.org"}
    for wire in wires.values():
        assert header(wire, "Bcc") is None
        assert b"secret" not in wire


async def test_in_personal_mode_each_has_its_own_header_id_and_variables(app, reader):
    people = [
        {"address": "ada@example.org", "name": "Ada", "variables": {"n": 1}},
        {"address": "bob@example.org", "variables": {"n": 2, "greeting": "Ho"}},
    ]
    send(app, people, mode="personal", subject="{{ n }}", text="{{ greeting }}", variables={"greeting": "Hi"})
    wires = await reader.wires()
    assert header(wires["ada@example.org"], "To") == "Ada <ada@example.org>"
    assert header(wires["bob@example.org"], "To") == "bob@example.org"
    assert [header(wire, "Subject") for wire in wires.values()] == ["1", "2"]
    assert b"\r\n\r\nHi" in wires["ada@example.org"]
    assert b"\r\n\r\nHo" in wires["bob@example.org"]
    assert len({header(wire, "Message-ID") for wire in wires.values()}) == 2


async def test_variables_of_one_recipient_make_templates_of_its_texts(app, reader):
    send(app, [{"address": "ada@example.org", "variables": {"n": 1}}], mode="personal", text="{{ n }}!")
    assert b"\r\n\r\n1!" in await reader.wire()


async def test_without_variables_everything_is_literal(app, reader):
    send(app, subject="{{ x }}", text="{% if %} {{ y }}")
    wire = await reader.wire()
    assert header(wire, "Subject") == "{{ x }}"
    assert b"{% if %} {{ y }}" in wire


async def test_every_attempt_is_the_same_email_to_the_byte(app, reader, pool, hand):
    send(app, "ada@example.org", html="<p>{{ n }}</p>", variables={"n": 1})
    first = await reader.wire()
    hand.connection.execute("select pgmail.rescue_v1(%s)", [hand.epoch])
    other = Reader(pool, Hand(hand.connection))
    assert await other.wire() == first


async def test_the_date_of_scheduled_mail_is_the_moment_it_was_meant_for(app, owner, reader):
    due = datetime.now(UTC) + timedelta(days=2)
    send(app, scheduled_at=due.isoformat())
    owner.execute("update pgmail.queue set due_at = now()")
    assert due.strftime("%d %b %Y %H:%M:%S") in header(await reader.wire(), "Date")


async def test_without_a_setting_the_senders_domain_stands_in_the_message_id(app, pool, hand):
    send(app)
    reader = Reader(pool, hand)
    reader.library = Library(pool, "")
    assert header(await reader.wire(), "Message-ID").endswith("@example.com>")


async def test_a_stored_template_renders_with_the_layouts_pinned_when_it_was_published(
    app, owner, reader, queries
):
    footer = publish(owner, "footer", text="old footer")
    layout = publish(
        owner,
        "layout",
        text="<{% block b %}{% endblock %}> {% include 'footer' %}",
        depends=f'{{"footer": {footer}}}',
    )
    new_footer = publish(owner, "footer", text="new footer")
    publish(
        owner, "welcome", subject="To {{ name }}",
        text="{% extends 'layout' %}{% block b %}Hi {{ name }}{% endblock %}",
        depends=f'{{"layout": {layout}, "footer": {new_footer}}}',
    )  # fmt: skip
    publish(owner, "layout", text="another layout")
    publish(owner, "footer", text="newest footer")
    for name in ("Ada", "Bob"):
        send(
            app,
            f"{name}@example.org",
            subject=None,
            text=None,
            template={"id": "welcome"},
            variables={"name": name},
        )
    wires = await reader.wires()
    assert header(wires["Ada@example.org"], "Subject") == "To Ada"
    assert b"<Hi Ada> new footer" in wires["Ada@example.org"]
    assert b"<Hi Bob> new footer" in wires["Bob@example.org"]
    assert queries["template"] == 3  # three sources, once for both


async def test_an_email_may_bring_a_subject_of_its_own_to_a_template(app, owner, reader):
    publish(owner, "welcome", subject="Theirs", text="Hi {{ name }}")
    send(app, text=None, subject="Mine, {{ name }}", template={"id": "welcome", "variables": {"name": "Ada"}})
    assert header(await reader.wire(), "Subject") == "Mine, Ada"


async def test_a_template_that_is_gone_can_be_made_by_nobody(app, owner, reader):
    publish(owner, "welcome", text="Hi")
    send(app, subject=None, text=None, template={"id": "welcome"})
    owner.execute("delete from pgmail.template")
    with pytest.raises(Impossible, match="template welcome version 1 is gone"):
        await reader.wire()


async def test_a_missing_variable_names_itself_and_its_place(app, reader):
    send(app, text="Dear\n{{ name }}", variables={})
    with pytest.raises(TemplateFault, match=r"text, line 2: .*name"):
        await reader.wire()


async def test_an_inline_template_is_compiled_once_for_all_mail_that_brings_it(app, reader, monkeypatch):
    compiled = []
    real = module.compile_bundle
    monkeypatch.setattr(
        module, "compile_bundle", lambda bundle, **more: compiled.append(bundle) or real(bundle, **more)
    )
    for n in range(3):
        send(app, f"a{n}@example.org", text="n is {{ n }}", variables={"n": n})
    assert len(await reader.wires()) == 3
    assert len(compiled) == 1


async def test_attachments_and_assets_come_along_fetched_once(app, owner, reader, queries):
    owner.execute("select pgmail.save_asset('logo', 'logo.png', 'image/png', 'PNG!'::bytea)")
    pdf = base64.b64encode(b"%PDF-1").decode()
    files = [
        {"filename": "a.pdf", "content": pdf},
        {"filename": "x.unknown-kind", "content": pdf},
        {"filename": "old.eml", "content": pdf},
        {"asset": "logo", "content_id": "logo"},
    ]
    send(app, ["ada@example.org", "bob@example.org"], html="<img src='cid:logo'>", attachments=files)
    wire = (await reader.wires())["bob@example.org"]
    assert queries["attachments"] == 1
    for words in (
        b"application/pdf",
        b"application/octet-stream",
        b"image/png",
        b"<logo>",
        base64.b64encode(b"PNG!"),
    ):
        assert words in wire
    assert b"message/rfc822" not in wire


async def test_slots_that_need_the_same_attachments_fetch_them_once(app, reader, queries):
    content = base64.b64encode(b"x" * 1000).decode()
    people = [f"p{n}@example.org" for n in range(10)]
    send(app, people, mode="personal", attachments=[{"filename": "a.bin", "content": content}])
    found = await reader.load()
    await asyncio.gather(*(reader.library.wire(1, m, p, eightbit=False) for m, p in found))
    assert queries["attachments"] == 1


async def test_an_asset_that_is_gone_can_be_made_by_nobody(app, owner, reader):
    owner.execute("select pgmail.save_asset('logo', 'logo.png', 'image/png', 'PNG!'::bytea)")
    send(app, attachments=[{"asset": "logo"}])
    owner.execute("delete from pgmail.asset")
    with pytest.raises(Impossible, match="asset logo is gone"):
        await reader.wire()


async def test_the_cache_is_bounded_by_bytes_and_counts_what_it_holds(app, reader, monkeypatch, queries):
    monkeypatch.setattr(module, "CACHE_BYTES", 30_000)
    library = reader.library
    for n in range(8):
        send(app, [f"a{n}@example.org", f"b{n}@example.org"], text="x" * 3000)
        await reader.wires()
        assert library._bytes == sum(message.size for message in library._messages.values())
    library._shrink()
    assert 0 < library._bytes <= 30_000
    assert 0 < len(library._messages) < 8
    assert queries["messages"] == 8


async def test_a_message_used_after_it_left_the_cache_is_not_counted(app, reader):
    send(app, ["ada@example.org", "bob@example.org"])
    ((message, person), _) = await reader.load()
    library = reader.library
    library._messages.clear()
    library._bytes = 0
    library._keep(1, Message(message.row))  # fetched anew for others
    before = library._bytes
    await library.wire(1, message, person, eightbit=False)
    assert library._bytes == before


async def test_the_cache_is_bounded_by_number_and_the_longest_unused_goes_first(app, reader, monkeypatch):
    monkeypatch.setattr(module, "CACHE_MESSAGES", 2)
    mails = []
    for n in range(3):
        mails.append(send(app, [f"a{n}@example.org", f"b{n}@example.org"]))
        await reader.wires()
    assert [id_ for _, id_ in reader.library._messages] == mails[1:]


async def test_bundles_of_stored_templates_are_bounded(app, owner, reader, monkeypatch):
    monkeypatch.setattr(module, "CACHE_BUNDLES", 1)
    for name in ("one", "two"):
        publish(owner, name, text=name)
        send(app, f"{name}@example.org", subject=None, text=None, template={"id": name})
    wires = await reader.wires()
    assert all(name.partition("@")[0].encode() in wire for name, wire in wires.items())
    assert len(reader.library._bundles) == 1


async def test_rows_without_content_are_left_out(app, owner, hand, reader):
    mail = send(app)
    owner.execute("delete from pgmail.message where id = %s", [mail])
    claimed = hand.claim()
    leases = [work.Lease(1, *row) for row in claimed]
    assert await reader.library.load([(1, "transactional", leases)]) == [{}]


async def test_rows_of_several_tenants_and_streams_come_in_one_round_trip_each_with_its_own(
    app, owner, hand, reader, queries
):
    one(owner, "select pgmail.create_tenant('other')")
    stream(owner, "news")
    mine = [
        send(app, "ada@example.org", text="mine"),
        send(app, "bob@example.org", stream="news", text="news"),
    ]
    owner.execute(
        "select pgmail.revoke_tenant(%(role)s), pgmail.grant_tenant(%(role)s, 'other')",
        {"role": PREFIX + "producer"},
    )
    theirs = send(app, "ada@example.org", text="theirs")
    one(owner, "select pgmail.suppress('ada@example.org', 'manual')")
    other = Hand(hand.connection, tenant=2)
    leases = {mail: work.Lease(1, *row) for row in hand.claim() for mail in mine if row.message_id == mail}
    leases[theirs] = work.Lease(2, *other.claim()[0])
    queries.clear()
    loads = [(1, "transactional", [leases[mine[0]]]), (1, "news", [leases[mine[1]]])]
    found = await reader.library.load([*loads, (2, "transactional", [leases[theirs]])])
    assert queries == {"contents": 1, "messages": 3}
    texts = [[message.content.text for message, _ in contents.values()] for contents in found]
    assert texts == [["mine"], ["news"], ["theirs"]]
    assert [person.suppressed for contents in found for _, person in contents.values()] == [
        "manual",
        None,
        None,
    ]
    await reader.library.load(loads)
    assert queries == {
        "contents": 2,
        "messages": 5,
    }  # nobody but its recipient asks for a message: it is not kept


async def test_a_message_for_several_is_fetched_once_and_its_recipients_are_asked_for_anew(
    app, hand, reader, queries
):
    send(app, ["ada@example.org", "bob@example.org"])
    leases = [work.Lease(1, *row) for row in hand.claim()]
    for _ in range(2):
        await reader.library.load([(1, "transactional", leases)])
    assert queries == {"contents": 2, "messages": 1}


async def test_a_message_that_leaves_the_cache_while_it_is_loaded_is_there_all_the_same(
    app, hand, reader, monkeypatch
):
    monkeypatch.setattr(module, "CACHE_MESSAGES", 1)
    for n in range(4):
        send(app, [f"a{n}@example.org", f"b{n}@example.org"])
    leases = [work.Lease(1, *row) for row in hand.claim()]
    (first,) = await reader.library.load([(1, "transactional", leases[:1])])
    (found,) = await reader.library.load([(1, "transactional", leases)])
    assert set(found) == {lease.id for lease in leases}
    assert set(first) <= set(found)
    assert len(reader.library._messages) == 1


async def test_plain_mail_is_made_at_once_without_asking_anybody(app, reader, queries):
    send(app)
    ((message, person),) = await reader.load()
    queries.clear()
    assert reader.library.wire_now(1, message, person, eightbit=False) is not None
    assert not queries


async def test_mail_that_needs_something_fetched_cannot_be_made_at_once_the_first_time_but_then(
    app, owner, reader, queries
):
    publish(owner, "welcome", text="Hi")
    content = base64.b64encode(b"x").decode()
    send(app, text=None, subject=None, template={"id": "welcome"})
    send(app, attachments=[{"filename": "a.bin", "content": content}])
    for message, person in await reader.load():
        assert reader.library.wire_now(1, message, person, eightbit=False) is None
        made = await reader.library.wire(1, message, person, eightbit=False)
        fetched = dict(queries)
        again = reader.library.wire_now(1, message, person, eightbit=False)
        assert again is not None
        assert (again.body, dict(queries)) == (made.body, fetched)


async def test_shared_bytes_are_made_anew_for_a_host_that_does_not_take_8bit(app, reader):
    send(app, ["ada@example.org", "bob@example.org"], text="Grüße")
    ((message, ada), (_, bob)) = await reader.load()
    eight = reader.library.wire_now(1, message, ada, eightbit=True)
    seven = reader.library.wire_now(1, message, bob, eightbit=False)
    assert (eight.eightbit, seven.eightbit) == (True, False)
    assert seven.body.isascii()
    assert reader.library.wire_now(1, message, ada, eightbit=True) is seven  # what all take serves all
