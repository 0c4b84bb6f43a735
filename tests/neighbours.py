"""Two tenants, for tests that try to cross from one to the other: A with something in every table, B who knows its ids.

B is given more than an attacker has: every id, name and address of A. What B must not learn is whether they are
right: each call is made with A's values and with values of the same shape that nobody has, and both must answer alike.
`told` is what a call answered, in a form that can be compared; `state_of` is all that A has, to the byte.
"""

import re
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from tests.fix_db import Database
from tests.sql import kit
from tests.sql.kit import Hand

SECRET = "zanzibar"  # in every text that A stored and B was never told
STREAM, TEMPLATE, ASSET, SITE = "alpha-stream", "alpha-template", "alpha-asset", "alpha-customers.example"
ADDRESS, GONE = f"ada@{SITE}", f"gone@{SITE}"
FLEET = {"worker", "witness", "leader"}  # change by themselves


@dataclass
class Alpha:
    """What A has. `real` are the values of each type that B tries, `unreal` the same with no such row."""

    message: UUID
    recipients: list[UUID]
    dead: UUID
    held: UUID
    key: UUID
    real: dict[str, list[Any]] = field(default_factory=dict)
    unreal: dict[str, list[Any]] = field(default_factory=dict)


def unlike(one: UUID) -> UUID:
    """An id of the same moment that nobody has."""
    return UUID(int=one.int ^ 0xFFFF_FFFF)


def make_alpha(db: Database, owner: psycopg.Connection[Any], *, mails: int = 0) -> Alpha:
    """Fill the tenant `default`, which is A; make `neighbour`, which is B (id 2)."""
    with db.connect("admin") as admin:
        for call, values in (
            ("save_template(%s, %s, %s, null, '{}', '{}', true)", [TEMPLATE, SECRET, SECRET]),
            ("save_asset(%s, %s, 'image/png', %s)", [ASSET, SECRET, SECRET.encode()]),
            ("suppress(%s, 'manual', %s)", [GONE, SECRET]),
            ("create_key(%s, 'pgm_', %s)", [SECRET, b"hash"]),
            ("save_stream(%s, %s)", [STREAM, Jsonb({"max_queued": 1_000_000})]),
            ("pause_mail('site', %s, %s)", [SITE, SECRET]),
        ):
            admin.execute(f"select pgmail.{call}", values)
    with db.connect("producer") as app:
        body: dict[str, Any] = {
            "subject": SECRET,
            "text": SECRET,
            "stream": STREAM,
            "tags": {"t": SECRET},
            "metadata": {"m": SECRET},
        }
        message = kit.send(
            app, [ADDRESS, GONE, f"bob@{SITE}"], **body, idempotency_key="alpha-key",
            attachments=[{"filename": SECRET, "content": "eA=="}],
        )  # fmt: skip
        recipients = kit.recipients(app, message)
        dead = kit.send(app, f"dead@{SITE}", **body)
        held = kit.send(app, f"held@{SITE}", **body, on_limit="hold")
        if mails:
            kit.send_many(app, [kit.body(f"u{n}@{SITE}", **body) for n in range(mails)])
    hand = Hand(db.connect("worker"))
    hand.fold()
    lease = next(lease for lease in hand.claim(traced=False) if lease.message_id == dead)
    hand.settle(lease, "dead", reason="poison", error=SECRET)
    hand.rescue()
    hand.fold()
    owner.execute("select pgmail.hold(%s, %s)", [held, SECRET])
    owner.execute("select pgmail.fold_tallies_v1()")
    owner.execute("select pgmail.create_tenant('neighbour')")
    key = kit.one(owner, "select id from pgmail.api_key")
    hook = kit.one(
        owner,
        "insert into pgmail.hook (tenant_id, id, url, types, description, created_by) values "
        "(1, pgmail.uuid7(), 'https://alpha.example/' || %(word)s, '{email.*}', %(word)s, %(word)s) returning id",
        {"word": SECRET},
    )
    owner.execute(
        "insert into pgmail.hook_attempt (tenant_id, hook_id, event_id, type, event_at, attempt, outcome, answer) "
        "values (1, %s, %s, 'email.sent', now(), 1, 'failed', %s)",
        [hook, message, SECRET],
    )
    ids = [message, *recipients, kit.recipients(owner, dead)[0], dead, held, key, hook]
    real = {
        "uuid": ids,
        "text": [
            STREAM,
            TEMPLATE,
            ASSET,
            ADDRESS,
            GONE,
            SITE,
            "alpha-key",
            "default",
            f"{STREAM}/normal/{SITE}",
        ],
        "name": ["pgmail_owner", "pgmail_admin"],
        "integer": [1, 2, 50],
    }
    unreal = {
        "uuid": [unlike(one) for one in ids],
        "text": [word.replace("alpha", "nobod").replace("default", "nobodyy") for word in real["text"]],
        "name": ["nobody_owner", "nobody_admin"],
        "integer": [1, 2, 50],
    }
    return Alpha(message, recipients, dead, held, key, real, unreal)


def state_of(owner: psycopg.Connection[Any], tenant: int = 1) -> dict[str, str]:
    """A digest of each table: the tenant's rows, or all where it has no tenant and does not change by itself."""
    found = {}
    for name, by_tenant in kit.rows(
        owner,
        "select c.relname, exists (select from pg_attribute a where a.attrelid = c.oid"
        " and a.attname = 'tenant_id' and not attisdropped)"
        " from pg_class c where c.relnamespace = 'pgmail'::regnamespace and c.relkind in ('r', 'p')"
        " and not c.relispartition",
    ):  # fmt: skip
        if name in FLEET:
            continue
        which = sql.SQL("tenant_id is not distinct from {}").format(tenant) if by_tenant else sql.SQL("true")
        rows = sql.SQL(
            "select md5(coalesce(string_agg(t::text, E'\\n' order by t::text), '')) from pgmail.{} t where {}"
        ).format(sql.Identifier(name), which)
        ((found[name],),) = owner.execute(rows).fetchall()
    return found


_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_TOKEN = re.compile(r"erased-[0-9a-f]{32}")  # of the caller's own salt
_SNAPSHOT = re.compile(r"\b[0-9]+:[0-9]+:[0-9,]*")  # of transactions, of all on this server
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ][0-9:.+Z-]+|datetime\.datetime\([^)]*(?:\([^)]*\))?[^)]*\)")


def alike(text: str) -> str:
    """A text without what differs between two answers that tell the same: names, ids, times, snapshots."""
    text = text.replace("nobodyy", "default").replace("nobod", "alpha").replace("nobody_", "pgmail_")
    return _SNAPSHOT.sub("<snapshot>", _TIME.sub("<time>", _TOKEN.sub("<token>", _ID.sub("<id>", text))))


def told(connection: psycopg.Connection[Any], statement: Any, params: Any = None) -> str:
    """Everything that a statement answers: its rows, or all fields of its error."""
    try:
        cursor = connection.execute(statement, params)
        return repr(cursor.fetchall()) if cursor.description else (cursor.statusmessage or "")
    except psycopg.Error as error:
        d = error.diag
        return repr(
            (d.sqlstate, d.constraint_name, d.message_primary, d.message_detail, d.message_hint, d.context)
        )
