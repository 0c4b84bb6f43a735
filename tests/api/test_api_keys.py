"""Bearer keys: who has none stays out, who is revoked is out within a second, and asking costs little."""

import asyncio
import hashlib

import pytest

from pgmail.access.keyring import Keyring
from pgmail.clock import ManualClock
from pgmail.domain.keys import hash_key, is_key, make_key
from pgmail.errors import DatabaseAway, Refused
from pgmail.store import keys
from pgmail.store.database import Database
from pgmail.store.keys import Caller, Valid
from tests.api.conftest import EMAIL, client, new_key


def test_a_key_has_256_random_bits_and_only_its_hash_is_kept():
    made = {make_key() for _ in range(50)}
    assert len({key for key, _, _ in made}) == 50
    for key, hint, hash_ in made:
        assert is_key(key)
        assert len(key) == len("pgm_live_") + 43
        assert key.startswith(hint)
        assert hash_ == hash_key(key) == hashlib.sha256(key.encode()).digest()


@pytest.mark.parametrize("text", ["", "pgm_live_", "pgm_live_" + "a" * 42, "re_" + "a" * 43, "x" * 10_000])
def test_what_is_no_key_is_known_by_its_form(text):
    assert not is_key(text)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Basic dXNlcjpwYXNz", "missing_api_key"),
        ("Bearer re_123456789", "invalid_api_key"),
        ("Bearer pgm_live_" + "a" * 43, "invalid_api_key"),
    ],
)
async def test_without_a_valid_key_there_is_a_401_that_says_why(db, header, code):
    async with client(db.dsn_for("api"), None) as api:
        headers = {} if header is None else {"Authorization": header}
        for path in ("/emails", "/emails/x", "/queue"):
            answer = await api.get(path, headers=headers)
            assert (answer.status_code, answer.json()["code"], answer.json()["name"]) == (401, code, code)
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_scheme_may_be_written_in_any_case(db, key):
    async with client(db.dsn_for("api"), None) as api:
        assert (await api.get("/queue", headers={"Authorization": f"bearer  {key} "})).status_code == 200


async def test_a_revoked_key_stops_within_a_second(db, key):
    clock = ManualClock()
    async with client(db.dsn_for("api"), key, clock=clock) as api:
        assert (await api.get("/queue")).status_code == 200
        with db.connect() as connection:
            connection.execute("select pgmail.revoke_key(id) from pgmail.api_key")
        await clock.advance(1.0)
        assert (await api.get("/queue")).status_code == 401


async def test_a_new_key_works_at_once_also_after_it_was_refused(db):
    async with client(db.dsn_for("api"), None) as api:
        key, hint, hash_ = make_key()
        headers = {"Authorization": f"Bearer {key}"}
        assert (await api.get("/queue", headers=headers)).status_code == 401
        with db.connect() as connection:
            connection.execute("select pgmail.create_key('late', %s, %s)", [hint, hash_])
        assert (await api.get("/queue", headers=headers)).status_code == 200


async def test_what_a_key_did_is_recorded_under_its_name(api, db):
    email = (await api.post("/emails", json=EMAIL)).json()["id"]
    await api.post(f"/emails/{email}/cancel")
    with db.connect() as connection:
        found = connection.execute("select actor from pgmail.audit where action = 'email.cancel'").fetchall()
    assert found == [("key tests",)]


class Counting:
    """A stand-in for the look-up that counts, and answers when told to."""

    def __init__(self, monkeypatch, answer):
        self.asked, self.go, self.answer = 0, asyncio.Event(), answer
        monkeypatch.setattr(keys, "check", self)

    async def __call__(self, database, hash):
        self.asked += 1
        await self.go.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


CALLER = Caller(1, "id", "tests")


async def test_a_hundred_requests_at_once_share_one_look_up(monkeypatch):
    look_up, clock = Counting(monkeypatch, Valid(CALLER, None)), ManualClock()
    ring = Keyring(None, clock)
    header = f"Bearer {make_key()[0]}"
    asked = [asyncio.create_task(ring.caller(header)) for _ in range(100)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked[0].cancel()
    look_up.go.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert answers[1:] == [CALLER] * 99
    assert look_up.asked == 1
    await clock.advance(0.6)
    await ring.caller(header)
    assert look_up.asked == 1
    await clock.advance(0.4)
    await ring.caller(header)
    assert look_up.asked == 2


async def test_a_key_in_use_is_looked_up_again_before_anybody_has_to_wait_for_it(monkeypatch):
    look_up, clock = Counting(monkeypatch, Valid(CALLER, None)), ManualClock()
    ring, header = Keyring(None, clock), f"Bearer {make_key()[0]}"
    look_up.go.set()
    await ring.caller(header)
    look_up.go.clear()
    await clock.advance(0.8)
    for _ in range(3):
        assert await ring.caller(header) == CALLER
        await asyncio.sleep(0)
    assert look_up.asked == 2
    look_up.go.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await clock.advance(0.5)  # as much as the first answer was good for, and more
    assert await ring.caller(header) == CALLER
    assert look_up.asked == 2


async def test_a_key_found_to_have_ended_works_no_longer_whatever_was_known_of_it(monkeypatch):
    look_up, clock = Counting(monkeypatch, Valid(CALLER, None)), ManualClock()
    ring, header = Keyring(None, clock), f"Bearer {make_key()[0]}"
    look_up.go.set()
    await ring.caller(header)
    look_up.answer = None
    await clock.advance(0.8)
    assert await ring.caller(header) == CALLER
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(Refused):
        await ring.caller(header)
    look_up.answer = DatabaseAway("gone")
    with pytest.raises(DatabaseAway):
        await ring.caller(header)


async def test_a_look_up_ahead_of_time_that_fails_takes_nothing_away(monkeypatch):
    look_up, clock = Counting(monkeypatch, Valid(CALLER, None)), ManualClock()
    ring, header = Keyring(None, clock), f"Bearer {make_key()[0]}"
    look_up.go.set()
    await ring.caller(header)
    look_up.answer = DatabaseAway("gone")
    await clock.advance(0.8)
    for _ in range(3):
        assert await ring.caller(header) == CALLER
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await clock.advance(0.2)
    with pytest.raises(DatabaseAway):
        await ring.caller(header)


async def test_unknown_keys_are_not_kept_and_known_ones_not_without_end(monkeypatch):
    look_up = Counting(monkeypatch, None)
    look_up.go.set()
    monkeypatch.setattr("pgmail.access.keyring.MAX_KEPT", 3)
    ring = Keyring(None, ManualClock())
    for _ in range(2):
        with pytest.raises(Refused):
            await ring.caller(f"Bearer {make_key()[0]}")
    assert ring._kept == {}
    look_up.answer = Valid(CALLER, None)
    for _ in range(10):
        await ring.caller(f"Bearer {make_key()[0]}")
    assert len(ring._kept) <= 3


async def test_keys_are_made_listed_and_revoked(db):
    database = Database(db.dsn_for("admin"), name="test", low=0, high=2)
    await database.open()
    try:
        async with database.connection() as connection:
            made = await keys.create(connection, "shop")
            assert [(row.id, row.name, row.hint) for row in await keys.listing(connection)] == [
                (made.id, "shop", made.hint)
            ]
            assert await keys.revoke(connection, made.id, "lost")
            assert not await keys.revoke(connection, made.id)
    finally:
        await database.close()


async def test_two_names_may_have_a_key_each(db):
    first, second = new_key(db, "a"), new_key(db, "b")
    async with client(db.dsn_for("api"), first) as api:
        assert (await api.get("/queue")).status_code == 200
        assert (await api.get("/queue", headers={"Authorization": f"Bearer {second}"})).status_code == 200
