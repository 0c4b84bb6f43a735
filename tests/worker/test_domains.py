"""The leader looks at verified domains again, beside its other work, and holds nothing while DNS is silent."""

from datetime import timedelta

import pytest

from pgmail.maintain.domains import Domains
from pgmail.store.database import Database
from tests.nameserver import NameServer
from tests.sql.kit import one, rows
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
        ours = "from pg_stat_activity where application_name = 'domains-test'"
        assert one(owner, f"select count(*) {ours} and xact_start is not null") == 0
        await round_.stop()
        await round_.stop()
    assert len(set(dns.asked)) == 1
