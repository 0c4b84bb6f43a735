"""Searching emails: each is found once and in its order, however many pages and searches it takes."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.sql import kit

FIND = (
    "select * from pgmail.find_emails(%(start)s, %(limit)s, %(below)s, %(above)s, %(newer)s, %(state)s, %(name)s,"
    " %(value)s, %(stream)s, null, %(tests)s, %(recipient)s, %(patience)s::interval, %(slack)s)"
)
NOTHING = dict.fromkeys(("below", "above", "state", "name", "value", "stream", "recipient"))
MANY = 600  # more than one look takes


def find(connection, start, **given):
    values = NOTHING | {"limit": 7, "newer": False, "tests": False, "patience": "1 s", "slack": 20_000}
    return connection.execute(FIND, values | {"start": start} | given).fetchone()


def walk(connection, start, **given):
    """All pages from the newest down: what each found, and how many ended for want of patience."""
    pages, short, below = [], 0, None
    while True:
        ids, more, place = find(connection, start, below=below, **given)
        pages.append(ids)
        short += place is not None
        if not more:
            return [one for page in pages for one in page], short
        below = place or ids[-1]


@pytest.fixture
def mixed(app):
    """Ids, oldest first: plain ones, a mailing to many, later ones, those with a tag or to one address."""
    people = [{"address": f"m{n}@example.org", "variables": {}} for n in range(MANY)]
    for n in range(3):
        kit.send(app, [f"a{n}@example.org", f"b{n}@example.org"])
    kit.send(app, people, mode="personal")
    batch = [kit.body(f"u{n}@example.org") for n in range(MANY)]
    for n in range(0, MANY, 100):
        batch[n] |= {"tags": {"kind": "rare"}, "to": "ada@example.org", "stream": "broadcast"}
        batch[n + 1] |= {"scheduled_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
    kit.send_many(app, batch)
    return app


def test_pages_of_a_search_hold_each_email_once_and_in_order(mixed, owner):
    every = [row[0] for row in kit.rows(owner, "select id from pgmail.message order by id desc")]
    later = {
        row[0] for row in kit.rows(owner, "select message_id from pgmail.queue where wait = 'scheduled'")
    }
    rare = [row[0] for row in kit.rows(owner, "select message_id from pgmail.tag order by message_id desc")]
    asked = [
        ("time", {}, every),
        ("queue", {"state": "queued"}, [one for one in every if one not in later]),
        ("queue", {"state": "scheduled"}, [one for one in every if one in later]),
        ("time", {"stream": "broadcast"}, rare),
        ("queue", {"state": "queued", "stream": "broadcast"}, rare),
        ("tag", {"name": "kind", "value": "rare"}, rare),
        ("tag", {"name": "kind", "value": "rare", "state": "queued"}, rare),
        ("recipient", {"recipient": "ada@example.org"}, rare),
        ("recipient", {"recipient": "ada@example.org", "state": "queued"}, rare),
        ("recipient", {"recipient": "ada@example.org", "state": "sent"}, []),
        ("outcome", {"state": "sent"}, []),
        ("dead", {"state": "dead"}, []),
    ]
    for start, given, wanted in asked:
        assert walk(owner, start, limit=100, **given) == (wanted, 0), (start, given)


def test_a_search_that_looked_long_enough_goes_on_where_it_ended(mixed, owner):
    every = [row[0] for row in kit.rows(owner, "select id from pgmail.message order by id desc")]
    later = {
        row[0] for row in kit.rows(owner, "select message_id from pgmail.queue where wait = 'scheduled'")
    }
    for start, given, wanted in (
        ("queue", {"state": "queued"}, [one for one in every if one not in later]),
        ("queue", {"state": "scheduled"}, [one for one in every if one in later]),
        ("time", {"stream": "broadcast"}, None),
        ("queue", {"state": "held"}, []),
    ):
        found, short = walk(owner, start, limit=50, patience="0 s", slack=2 * MANY, **given)
        assert wanted is None or found == wanted
        assert found == walk(owner, start, **given)[0]
        assert short, given


def test_the_page_before_is_the_one_that_was_left(mixed, owner):
    for start, given in (
        ("time", {}),
        ("queue", {"state": "queued"}),
        ("recipient", {"recipient": "ada@example.org"}),
    ):
        first = find(owner, start, limit=3, **given)[0]
        second = find(owner, start, limit=3, below=first[-1], **given)[0]
        ids, more, place = find(owner, start, limit=3, above=second[0], newer=True, **given)
        assert (ids, more, place) == (first, False, None)
        third = find(owner, start, limit=2, below=second[0], **given)[0]
        ids, more, _ = find(owner, start, limit=2, above=third[0], newer=True, **given)
        assert (ids, more) == (([*first, second[0]])[-2:], True)


def test_another_tenants_mail_is_not_found(mixed, owner, db):
    owner.execute("select pgmail.create_tenant('second')")
    api = db.connect("api", autocommit=False)
    with api.transaction():
        api.execute("select set_config('pgmail.tenant', '2', true)")
        for start, given in (
            ("time", {}),
            ("queue", {"state": "queued"}),
            ("tag", {"name": "kind", "value": "rare"}),
        ):
            assert find(api, start, **given)[:2] == ([], False)
