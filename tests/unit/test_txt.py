"""TXT records: whatever DNS does, a look is one answer in bounded time, with words that say what to do."""

import time

import pytest

from pgmail.config import load
from pgmail.config_text import dns_servers_of
from pgmail.errors import SettingsError
from pgmail.transport import txt
from tests.nameserver import NameServer


async def look(dns, domain="example.com", seconds=5.0):
    return await txt.look(domain, [dns.address], seconds=seconds)


async def test_all_texts_at_the_name_are_found_long_ones_joined():
    async with NameServer() as dns:
        dns.publish("_pgmail.example.com", "v=spf1 -all", "pgmail-verify=abc", "x" * 600)
        found = await look(dns)
    assert found.outcome == "answered"
    assert set(found.found) == {"v=spf1 -all", "pgmail-verify=abc", "x" * 600}
    assert dns.asked == ["_pgmail.example.com"]
    assert len(found.said) < 400


@pytest.mark.parametrize(
    ("failure", "outcome", "words"),
    [
        (None, "no_name", "NXDOMAIN"),
        ("empty", "no_record", "has no TXT record"),
        ("servfail", "server_failed", "DNSSEC"),
        ("refused", "server_failed", "delegation"),
        ("silent", "timed_out", "no answer"),
    ],
)
async def test_each_failure_of_dns_says_what_to_do(failure, outcome, words):
    async with NameServer() as dns:
        if failure == "empty":
            dns.publish("_pgmail.example.com")
        elif failure:
            dns.fails["_pgmail.example.com"] = failure
        began = time.monotonic()
        found = await look(dns, seconds=0.5)
    assert (found.outcome, found.found) == (outcome, ())
    assert words in found.said
    assert time.monotonic() - began < 60  # not how soon, which is the machine's: only that it does not hang


async def test_a_nul_in_a_record_is_one_that_can_be_stored():
    async with NameServer() as dns:
        dns.publish("_pgmail.example.com", "x\0y")
        found = await look(dns)
    assert found.found == ("x\ufffdy",)


async def test_an_answer_that_cannot_be_read_is_none():
    async with NameServer() as dns:
        dns.fails["_pgmail.example.com"] = "garbage"
        found = await look(dns, seconds=0.5)
    assert found.outcome in {"timed_out", "server_failed", "malformed"}


async def test_a_server_that_is_not_there_is_an_answer_too():
    async with NameServer() as dns:
        address = dns.address
    found = await txt.look("example.com", [address], seconds=0.3)
    assert found.outcome in {"timed_out", "unreachable", "server_failed"}


@pytest.mark.parametrize("domain", ["example..com", "x" * 64 + ".com", "." * 300])
async def test_a_name_that_dns_cannot_ask_for_is_an_answer_too(domain):
    found = await txt.look(domain, [("127.0.0.1", 9)], seconds=0.3)
    assert found.outcome == "malformed"


def test_octets_that_are_no_text_are_no_fault():
    assert txt.said_of("n", ["a", "b", "c", "d"]) == 'n has "a", "b", "c" and 1 more'


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("", ()),
        ("192.0.2.1", (("192.0.2.1", 53),)),
        ("192.0.2.1:5353, 2001:db8::1", (("192.0.2.1", 5353), ("2001:db8::1", 53))),
        ("[2001:db8::1]:53", (("2001:db8::1", 53),)),
    ],
)
def test_name_servers_are_addresses_with_a_port(text, servers):
    assert dns_servers_of(text) == servers


@pytest.mark.parametrize("text", ["ns.example.com", "192.0.2.1:0", "192.0.2.1:99999999", "[::1", "1.2.3.4:x"])
def test_what_names_no_server_is_refused_at_the_start(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="PGMAIL_DNS_SERVERS"):
        load({"PGMAIL_DNS_SERVERS": text})
