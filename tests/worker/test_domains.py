"""The leader looks at verified domains again, beside its other work, and holds nothing while DNS is silent."""

from datetime import timedelta

import pytest

from pgmail.maintain.domains import Domains
from pgmail.store.database import Database
from pgmail.transport import txt
from tests.nameserver import NameServer
from tests.sql.kit import SESSIONS_HERE, one, rows
from tests.waiting import eventually


@pytest.fixture
async def pool(db):
    made = Database(db.dsn_for("maintain"), name="domains-test", low=1, high=2)
    await made.open()
    yield made
    await made.close()


def verified(owner, name, tenant="default"):
    """A domain that was verified eight days ago; its record's value."""
    owner.execute("select pgmail.trust_domain(%s, 'a test', %s)", [name, tenant])
    return "pgmail-verify=" + one(
        owner,
        "update pgmail.sender_domain set trusted_by = null, trust_reason = null, checked_at = pgmail.now() - %s"
        " where domain = %s returning token",
        [timedelta(days=8), name],
    )


async def test_records_of_all_tenants_are_looked_at_and_what_is_lost_is_noted(pool, owner):
    owner.execute("select pgmail.create_tenant('other')")
    async with NameServer() as dns:
        dns.publish("_pgmail.kept.example", verified(owner, "kept.example"))
        verified(owner, "lost.example", "other")
        round_ = Domains(pool, [dns.address])
        await round_.start()
        seen = (
            "select domain, state, missing_since is not null from pgmail.sender_domain"
            " where checked_at > pgmail.now() - %s order by domain"
        )
        expected = [("kept.example", "verified", False), ("lost.example", "verified", True)]
        await eventually(lambda: rows(owner, seen, [timedelta(hours=1)]) == expected)
        await round_.stop()
        asked = len(dns.asked)
        await round_.start()  # nothing is due any more
        await round_.stop()
        assert len(dns.asked) == asked == 2


async def test_a_silent_server_holds_up_neither_the_leader_nor_a_transaction(pool, owner):
    verified(owner, "silent.example")
    async with NameServer() as dns:
        dns.fails["_pgmail.silent.example"] = "silent"
        round_ = Domains(pool, [dns.address])
        await round_.start()
        await eventually(lambda: dns.asked)
        await round_.start()  # one at a time
        ours = f"from {SESSIONS_HERE} where application_name = 'domains-test'"
        assert one(owner, f"select count(*) {ours} and xact_start is not null") == 0
        await round_.stop()
        await round_.stop()
    assert len(set(dns.asked)) == 1


async def test_a_record_with_a_nul_stops_no_look_at_others(pool, owner):
    async with NameServer() as dns:
        dns.publish("_pgmail.evil.example", "x\0y", verified(owner, "evil.example"))
        verified(owner, "lost.example")
        round_ = Domains(pool, [dns.address])
        await round_.start()
        missing = (
            "select domain, missing_since is not null from pgmail.sender_domain"
            " where checked_at > now() - interval '1 hour' order by 1"
        )
        await eventually(lambda: rows(owner, missing) == [("evil.example", False), ("lost.example", True)])
        await round_.stop()


async def test_a_look_that_crashes_moves_on_and_ends_no_verification(pool, owner, monkeypatch):
    verified(owner, "crash.example")
    owner.execute(
        "update pgmail.sender_domain set checked_at = checked_at - interval '1 day'"
    )  # first in the round
    whole = txt.look

    async def look(domain, servers):
        if domain == "crash.example":
            raise ValueError("what nobody foresaw")
        return await whole(domain, servers)

    monkeypatch.setattr(txt, "look", look)
    async with NameServer() as dns:
        dns.publish("_pgmail.kept.example", verified(owner, "kept.example"))
        round_ = Domains(pool, [dns.address])
        await round_.start()
        due = "select domain, state from pgmail.sender_domain where checked_at > now() - interval '1 hour' order by 1"
        await eventually(
            lambda: rows(owner, due) == [("crash.example", "verified"), ("kept.example", "verified")]
        )
        await round_.stop()
    assert "ValueError" in one(
        owner, "select answer from pgmail.sender_domain where domain = 'crash.example'"
    )
