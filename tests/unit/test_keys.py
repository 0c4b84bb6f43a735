"""Keys without a database: their form, the limits that are about an email, where a request comes from, guesses."""

import asyncio

import pytest

from pgmail.access import guesses
from pgmail.access.guesses import Guesses, Lane
from pgmail.access.keyring import need_scope
from pgmail.access.origin import Origins, group, networks
from pgmail.api.intake import as_test, ready_batch, ready_email
from pgmail.clock import ManualClock
from pgmail.domain.keylimits import covers, normalise, within
from pgmail.domain.keys import SCOPES, granted, is_key, make_key
from pgmail.errors import Refused
from pgmail.store.keys import Caller

EMAIL = {"from": "Shop <shop@example.com>", "to": "ada@example.org", "subject": "Hi", "text": "Hello"}
NOW = ManualClock().now()
LIMITED = Caller(1, "id", "shop", streams=frozenset({"news"}), from_domains=frozenset({"example.com"}))


def test_a_key_for_tests_tells_itself_apart():
    key, hint, _ = make_key(test=True)
    assert is_key(key)
    assert key.startswith("pgm_test_")
    assert key.startswith(hint)
    assert len(key) == len(make_key()[0])


def test_admin_is_every_scope_and_no_other_is_more_than_itself():
    assert granted(frozenset({"admin"})) == set(SCOPES)
    for scope in set(SCOPES) - {"admin"}:
        assert granted(frozenset({scope})) == {scope}


@pytest.mark.parametrize("wanted", [None, (), "admin", ("admin",), "unheard-of"])
def test_a_route_that_declares_no_scope_that_the_key_has_is_shut(wanted):
    with pytest.raises(Refused) as caught:
        need_scope(Caller(1, "id", "k"), wanted)
    assert (caught.value.code, caught.value.status) == ("missing_scope", 403)
    need_scope(Caller(1, "id", "k"), ("admin", "send"))


@pytest.mark.parametrize(
    ("domain", "good"),
    [
        ("example.com", True),
        ("a.example.net", True),
        ("a.b.example.net", True),
        ("example.net", False),  # a wildcard is what lies below
        ("a.example.com", False),
        ("badexample.com", False),
        ("badexample.net", False),
        ("example.com.evil.org", False),
        ("net", False),
        ("", False),
    ],
)
def test_a_domain_is_the_one_named_or_lies_below_a_wildcard(domain, good):
    assert covers(frozenset({"example.com", "*.example.net"}), domain) is good


def test_domains_are_kept_as_they_are_compared():
    assert normalise("*.Bücher.Example") == "*.xn--bcher-kva.example"
    for bad in ("*", "*.", "com", "*.*.example.com", "a b.example.com", "exa*mple.com"):
        with pytest.raises(ValueError, match=r"\w"):
            normalise(bad)


def refusal(body, caller=LIMITED):
    with pytest.raises(Refused) as caught:
        ready_email(body, None, NOW, plain=True, caller=caller)
    return caught.value.status, caught.value.code, caught.value.field


@pytest.mark.parametrize("stream", [None, "transactional", "News", "news ", "other"])
def test_another_stream_than_the_keys_is_refused_also_where_it_is_the_default(stream):
    assert refusal(EMAIL | {"stream": stream}) == (403, "stream_not_allowed", "/stream")
    assert ready_email(EMAIL | {"stream": "news"}, None, NOW, caller=LIMITED).json


@pytest.mark.parametrize(
    "sender",
    [
        "a@evil.org",
        "example.com <a@evil.org>",
        '"a@example.com" <a@evil.org>',
        "a@example.com.evil.org",
        "a@sub.example.com",
        '"@example.com"@evil.org',
        "a@ex\u0430mple.com",
    ],
)
def test_another_domain_than_the_keys_is_refused_however_it_is_written(sender):
    assert refusal(EMAIL | {"from": sender, "stream": "news"}) == (403, "from_not_allowed", "/from")


def test_the_domain_that_was_judged_is_the_one_that_goes_on():
    body = EMAIL | {"from": "Bücher <Bob@bücher.example> "}
    allowed = {"xn--bcher-kva.example"}
    assert within(body, None, allowed)["from"] == "Bücher <Bob@xn--bcher-kva.example>"
    assert (
        within(EMAIL | {"from": "bob@bücher.example"}, None, allowed)["from"] == "bob@xn--bcher-kva.example"
    )
    assert within(EMAIL, None, {"example.com"}) is EMAIL


def test_the_law_speaks_before_the_limits_of_a_key():
    assert refusal({"from": "a@evil.org"}) == (422, "missing_field", "/to")


def test_each_item_of_a_batch_is_held_against_the_keys_limits():
    good = EMAIL | {"stream": "news"}
    with pytest.raises(Refused) as caught:
        ready_batch([good, EMAIL], None, NOW, strict=True, plain=True, caller=LIMITED)
    assert (caught.value.status, caught.value.field) == (403, "/1/stream")
    ready = ready_batch([good, EMAIL], None, NOW, strict=False, plain=True, caller=LIMITED)
    assert {at: fault.code for at, fault in ready.faults.items()} == {1: "stream_not_allowed"}
    assert '"stream_not_allowed /stream"' in ready.json


def test_what_a_test_key_sends_is_marked_whatever_it_says_itself():
    assert as_test(EMAIL)["test"] is True
    assert as_test(EMAIL | {"test": False})["test"] is True
    assert as_test("no object") == "no object"
    assert "test" not in EMAIL


def scope(client, *forwarded):
    headers = [(b"x-forwarded-for", line.encode()) for line in forwarded]
    return {"client": client and (client, 1), "headers": headers}


@pytest.mark.parametrize(
    ("client", "forwarded", "address"),
    [
        (None, ["192.0.2.1"], None),
        ("198.51.100.9", ["192.0.2.1"], "198.51.100.9"),  # no proxy of ours says so
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["203.0.113.5, 192.0.2.1"], "192.0.2.1"),  # further left is the client's own word
        ("10.0.0.1", ["203.0.113.5, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        ("10.0.0.1", ["203.0.113.5", "192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        ("10.0.0.1", ["203.0.113.5, nonsense, 10.0.0.2"], "10.0.0.2"),
        ("::ffff:10.0.0.1", ["2001:db8::5"], "2001:db8::5"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [",".join(["192.0.2.1"] + ["10.0.0.2"] * 5_000)], "10.0.0.2"),
    ],
)
def test_only_proxies_that_are_trusted_say_where_a_request_comes_from(client, forwarded, address):
    assert Origins(networks("10.0.0.0/8")).of(scope(client, *forwarded)) == address
    assert Origins().of(scope(client, *forwarded)) == client


def test_one_client_of_ipv6_is_its_network():
    assert group("2001:db8:0:1::5") == group("2001:db8:0:1:ffff::") == "2001:db8:0:1::/64"
    assert group("::ffff:192.0.2.1") == group("192.0.2.1") == "192.0.2.1"
    assert group(None) == group("unix") == "unknown"


async def test_tries_are_forgiven_with_time_and_a_burst_is_told_once():
    clock = ManualClock()
    tries = Guesses(clock)
    for _ in range(guesses.FREE):
        tries.failed("192.0.2.1")
    assert tries.wait("192.0.2.2") == 0
    assert 0 < tries.wait("192.0.2.1") <= guesses.EVERY_SECONDS
    for _ in range(100):
        with pytest.raises(Refused) as caught:
            tries.failed("192.0.2.1")
    assert (caught.value.status, caught.value.code) == (429, "too_many_tries")
    assert caught.value.retry_after == (guesses.MOST - guesses.FREE + 1) * guesses.EVERY_SECONDS
    assert [(burst.origin, burst.tries) for burst in tries.bursts()] == [("192.0.2.1", guesses.FREE + 100)]
    assert tries.bursts() == []
    await clock.advance(caught.value.retry_after)
    assert tries.wait("192.0.2.1") == 0
    await clock.advance(guesses.MOST * guesses.EVERY_SECONDS)
    for _ in range(guesses.FREE):
        tries.failed("192.0.2.1")
    with pytest.raises(Refused):
        tries.failed("192.0.2.1")
    assert len(tries.bursts()) == 1  # another burst


def test_guesses_from_everywhere_fill_no_memory(monkeypatch):
    monkeypatch.setattr(guesses, "MAX_CLIENTS", 50)
    tries = Guesses(ManualClock())
    for number in range(500):
        tries.failed(f"192.0.2.{number}")
        tries.failed("198.51.100.1") if number < guesses.FREE - 1 else None
    assert len(tries) == 50


async def test_slowed_look_ups_go_one_at_a_time_and_too_many_are_turned_away(monkeypatch):
    monkeypatch.setattr(guesses, "MAX_WAITING", 2)
    lane, inside, most, go = Lane(ManualClock()), 0, 0, asyncio.Event()

    async def look_up():
        nonlocal inside, most
        async with lane.turn(7.0):
            inside += 1
            most = max(most, inside)
            await go.wait()
            inside -= 1

    asked = [asyncio.create_task(look_up()) for _ in range(3)]
    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    go.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert most == 1
    assert [getattr(answer, "retry_after", None) for answer in answers] == [None, None, 7.0]
