"""Pauses and what else mail waits for: who may stop what, and the sentence that says so."""

from datetime import timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.fix_db import PREFIX
from tests.sql import kit
from tests.sql.kit import Refusal

pytestmark = pytest.mark.one_server


def pause(connection, scope, name, reason="moving", until=None, *, fleet=False):
    return kit.one(
        connection, "select pgmail.pause_mail(%s, %s, %s, %s, %s)", [scope, name, reason, until, fleet]
    )


def resume(connection, scope, name, *, fleet=False):
    return kit.one(connection, "select pgmail.resume_mail(%s, %s, null, %s)", [scope, name, fleet])


def why(connection, mail):
    return kit.one(connection, "select pgmail.why(%s)", [mail]).removeprefix("ada@example.org ")


def refused(act, *args, **more):
    with pytest.raises(psycopg.Error) as caught:
        act(*args, **more)
    return kit.refusal(caught.value)


def test_a_worker_never_waits_for_an_operators_open_transaction(db, hand):
    with db.connect("admin", autocommit=False) as operator:
        pause(operator, "site", "gmail.com")
        operator.execute("select pgmail.pause_relay('default', 'moving')")
        for text in (
            "select pgmail.slow_site_v1(1, 'gmail.com', 'it refused')",
            "select pgmail.relay_state_v1('default', 'away', 'it refused', 5)",
        ):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                hand.connection.execute(text)
        operator.rollback()


@pytest.fixture
def mail(app, hand):
    """An email that a living worker could send now."""
    return kit.send(app)


def stopped(connection, stream="transactional", priority=2, site="example.org"):
    return kit.rows(
        connection,
        "select kind, scope, name, words from pgmail.stopped_by(%s, %s, %s)",
        [stream, priority, site],
    )[0]


@pytest.mark.parametrize(
    ("scope", "name"),
    [("site", "Example.ORG"), ("stream", "transactional"), ("lane", "transactional/normal/example.org")],
)
def test_a_pause_is_told_with_who_since_when_until_when_and_why(db, app, mail, scope, name):
    admin = db.connect("admin")
    assert why(app, mail).startswith("is due since ")
    normal = pause(admin, scope, name, 'their "MX" burns')
    assert normal == name.lower()
    told = why(app, mail)
    assert told.startswith(f"waits: {scope} {normal} is paused by pgmail_admin since ")
    assert " until " not in told
    assert told.endswith(': their "MX" burns')
    resume(admin, scope, name)
    assert why(app, mail).startswith("is due since ")
    assert kit.rows(admin, "select tenant_id, action, object, reason from pgmail.audit order by id") == [
        (1, f"{scope}.pause", normal, 'their "MX" burns'),
        (1, f"{scope}.resume", normal, None),
    ]


def test_a_pause_ends_by_itself_and_a_second_one_replaces_the_first(db, app, mail, db_clock):
    admin = db.connect("admin")
    pause(admin, "site", "example.org")
    pause(admin, "site", "example.org", "a nap", db_clock.now() + timedelta(minutes=5))
    assert " until " in why(app, mail)
    assert kit.count(admin, "pause") == 1
    db_clock.advance(301)
    assert " is paused " not in why(app, mail)
    pause(admin, "stream", "broadcast")
    assert kit.rows(admin, "select name from pgmail.pause") == [("broadcast",)]


def test_a_grouped_domain_pauses_its_site(db, owner):
    assert pause(owner, "site", "hotmail.com") == "outlook.com"
    assert pause(owner, "lane", "broadcast/low/googlemail.com") == "broadcast/low/gmail.com"
    assert resume(owner, "lane", "broadcast/low/gmail.com") == "broadcast/low/gmail.com"


@pytest.mark.parametrize(
    ("scope", "name", "reason", "code", "field"),
    [
        ("planet", "mars", "x", "invalid_scope", "/scope"),
        ("site", "not a domain", "x", "invalid_site", "/site"),
        ("site", None, "x", "missing_field", "/site"),
        ("stream", "nothing", "x", "unknown_stream", "/stream"),
        ("lane", "transactional/gmail.com", "x", "invalid_lane", "/lane"),
        ("lane", "transactional/urgent/gmail.com", "x", "invalid_lane", "/lane"),
        ("lane", "transactional/high/no domain", "x", "invalid_site", "/lane"),
        ("lane", "nothing/high/gmail.com", "x", "unknown_stream", "/lane"),
        ("site", "example.org", " ", "missing_field", "/reason"),
        ("site", "example.org", None, "missing_field", "/reason"),
        ("site", "example.org", "x" * 1001, "invalid_reason", "/reason"),
    ],
)
def test_what_cannot_be_paused_is_refused_with_its_field(owner, scope, name, reason, *, code, field):
    assert refused(pause, owner, scope, name, reason) == Refusal(code, field, "PM422")
    assert kit.count(owner, "pause") == 0


def test_a_pause_into_the_past_and_the_end_of_none_are_refused(owner, db_clock):
    past = db_clock.now() - timedelta(seconds=1)
    assert refused(pause, owner, "site", "a.example", "x", past) == Refusal("time_in_past", "/until", "PM422")
    assert refused(resume, owner, "site", "a.example") == Refusal("not_paused", "/site", "PM404")


def test_a_pause_is_a_tenants_own_unless_it_is_the_fleets(db, owner, app, mail):
    owner.execute("select pgmail.create_tenant('neighbour')")
    owner.execute(
        "select pgmail.revoke_tenant(%(role)s), pgmail.grant_tenant(%(role)s, 'neighbour')",
        {"role": PREFIX + "reader"},
    )
    neighbour, admin = db.connect("reader"), db.connect("admin")
    pause(admin, "site", "example.org", "ours")
    assert stopped(neighbour)[0] is None
    assert kit.count(neighbour, "pause") == 0
    resume(admin, "site", "example.org")
    pause(admin, "site", "example.org", "everybody's", fleet=True)
    assert stopped(neighbour)[:3] == ("pause", "site", "example.org")
    assert kit.count(neighbour, "pause") == 1
    assert why(app, mail).endswith(": everybody's")
    with pytest.raises(psycopg.Error, match="paused for the whole fleet, by pgmail_admin: everybody's"):
        resume(admin, "site", "example.org")
    resume(admin, "site", "example.org", fleet=True)
    assert stopped(neighbour)[0] is None


def test_an_api_key_pauses_for_its_tenant_only(db, owner):
    api = db.connect("api", autocommit=False)
    api.execute("select set_config('pgmail.tenant', '1', true), set_config('pgmail.actor', 'key ops', true)")
    pause(api, "stream", "broadcast")
    api.commit()
    assert kit.rows(owner, "select tenant_id, paused_by from pgmail.pause") == [(1, "key ops")]
    for act in (pause, resume):
        api.execute("select set_config('pgmail.tenant', '1', true)")
        found = refused(act, api, "site", "example.org", fleet=True)
        assert found == Refusal("not_allowed", "/fleet", "PM403")
        api.rollback()


@pytest.fixture
def exhausted(owner, hand):
    """The site's one token of this minute is gone."""
    owner.execute("select pgmail.set_limit('site', 'example.org', 1, 60, 5)")
    tokens = "select pgmail.take_tokens_v1(%s, array['site'], array['example.org'], array[1])"
    hand.connection.execute(tokens, [hand.epoch])


@pytest.mark.usefixtures("exhausted")
def test_of_several_reasons_the_first_is_told_pause_relay_limit_nobody_works(
    owner, app, hand, mail, db_clock
):
    pause(owner, "site", "example.org")
    owner.execute("select pgmail.relay_state_v1('default', 'away', 'connection refused', 30)")
    assert " is paused " in why(app, mail)
    resume(owner, "site", "example.org")
    assert why(app, mail).startswith("waits: relay default is away since ")
    owner.execute("select pgmail.relay_state_v1('default', 'up', null)")
    told = why(app, mail)
    assert told.startswith("waits: site example.org is limited to 1 a minute; its next token is free at ")
    assert told.endswith("; 0 of its lane are ahead")
    assert why(app, kit.send(app)).endswith("; 1 of its lane are ahead")
    hand.rescue()
    assert " is limited to " in why(app, mail)
    db_clock.advance(120)
    assert why(app, mail).startswith("waits: no worker is alive since ")


def test_a_cap_whose_connections_are_all_in_use_is_told(owner, app, hand, mail):
    owner.execute("select pgmail.set_limit('site', 'example.org', null, 1, 2)")
    ask = "select pgmail.share_permits_v1(%s, array['site'], array['example.org'], array[0], array[%s])"
    hand.connection.execute(ask, [hand.epoch, 1])
    assert why(app, mail).startswith("is due since ")
    hand.connection.execute(ask, [hand.epoch, 2])
    assert why(app, mail).startswith(
        "waits: site example.org is limited to 2 connections, and all are in use"
    )


def test_a_limit_of_the_tenant_or_of_the_only_relay_is_told(owner, app, hand, mail, db_clock):
    take = "select pgmail.take_tokens_v1(%s, array[%s], array['default'], array[1])"
    for scope in ("tenant", "relay"):
        owner.execute("select pgmail.set_limit(%s, 'default', 10, 3600, null, 0)", [scope])
        hand.connection.execute(take, [hand.epoch, scope])
        assert why(app, mail).startswith(f"waits: {scope} default is limited to 10 an hour; ")
        db_clock.advance(7200)
        owner.execute("update pgmail.worker set beat_at = pgmail.now()")
        assert why(app, mail).startswith("is due since ")


@pytest.fixture
def relays(owner):
    assert kit.one(owner, "select pgmail.register_relays_v1(array['ses', 'postmark', 'default', 'ses'])") == 2
    assert kit.one(owner, "select pgmail.register_relays_v1(array['ses', 'postmark', 'default'])") == 0


def stored(owner, name="bulk"):
    return kit.rows(owner, "select relay, relays, relay_weights from pgmail.stream where name = %s", [name])[
        0
    ]


def test_a_stream_has_one_relay_or_several_in_order_or_by_weight(owner, relays):
    kit.stream(owner, "bulk", relay=["ses", "postmark"])
    assert stored(owner) == ("ses", ["ses", "postmark"], None)
    kit.stream(owner, "bulk", relay=[{"name": "postmark", "weight": 3}, {"name": "ses", "weight": 1}])
    assert stored(owner) == ("postmark", ["postmark", "ses"], [3, 1])
    kit.stream(owner, "bulk", priority=3)
    assert stored(owner) == ("postmark", ["postmark", "ses"], [3, 1])
    for alone in ("ses", ["ses"], [{"name": "ses", "weight": 2}]):
        kit.stream(owner, "bulk", relay=alone)
        assert stored(owner) == ("ses", None, None)


@pytest.mark.parametrize(
    ("relay", "code", "field"),
    [
        ("nowhere", "unknown_relay", "/relay"),
        (["default", "nowhere"], "unknown_relay", "/relay/1"),
        (["nowhere"], "unknown_relay", "/relay/0"),
        (["default", "default"], "invalid_relay", "/relay/1"),
        ([], "invalid_relay", "/relay"),
        (["default"] * 17, "invalid_relay", "/relay"),
        (None, "invalid_relay", "/relay"),
        ({"name": "default", "weight": 1}, "invalid_relay", "/relay"),
        (["default", {"name": "ses", "weight": 1}], "invalid_relay", "/relay/1"),
        ([{"name": "default"}], "invalid_relay", "/relay/0"),
        ([{"name": "default", "weight": 1, "x": 1}], "invalid_relay", "/relay/0"),
        ([{"name": "default", "weight": 0}], "invalid_relay", "/relay/0/weight"),
        ([1], "invalid_relay", "/relay/0"),
    ],
)
def test_relays_that_a_stream_cannot_have_are_refused_with_their_place(owner, relays, relay, code, field):
    with pytest.raises(psycopg.Error) as caught:
        owner.execute("select pgmail.save_stream('bulk', %s)", [Jsonb({"relay": relay})])
    assert kit.refusal(caught.value) == Refusal(code, field, "PM422")
    if code == "unknown_relay":
        assert "PGMAIL_RELAY_URLS" in caught.value.diag.message_primary


def test_mail_waits_for_its_relays_only_when_none_of_them_is_up(owner, app, hand, relays):
    kit.stream(owner, "bulk", relay=["ses", "postmark"])
    mail = kit.send(app, stream="bulk")
    owner.execute("select pgmail.relay_state_v1('ses', 'away', 'connection refused', 30)")
    assert why(app, mail).startswith("is due since ")
    owner.execute("select pgmail.pause_relay('postmark', 'over budget')")
    told = why(app, mail)
    assert told.startswith("waits: none of its relays takes mail: relay ses is away since ")
    assert "; and relay postmark is paused by pgmail_owner since " in told


def test_a_limited_relay_stops_nothing_while_another_is_free(owner, hand, relays):
    kit.stream(owner, "bulk", relay=["ses", "postmark"])
    take = "select pgmail.take_tokens_v1(%s, array['relay'], array[%s], array[1])"
    for name in ("ses", "postmark"):
        assert stopped(owner, "bulk")[0] is None
        owner.execute("select pgmail.set_limit('relay', %s, 10, 3600, null, 0)", [name])
        hand.connection.execute(take, [hand.epoch, name])
    assert stopped(owner, "bulk")[:3] == ("limit", "relay", "ses")
