"""Calls to URLs that strangers chose: nowhere but where they may go, and nothing read that was not asked for."""

import asyncio
import contextlib
import ssl
from ipaddress import ip_network

import pytest
import trustme
from aiohttp import web

from pgmail.domain.targets import reachable, shown_url, url_fault, within
from pgmail.transport.guarded_http import MOST_INTERIM, NOWHERE, GuardedHttp, Names, _Guard
from tests.receiver import Receiver

LOOPBACK = (ip_network("127.0.0.0/8"),)

FORBIDDEN = [
    *(
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.9.9.9",
    ),
    *(
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
    ),
    *(
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
    ),
    *(
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:0:127.0.0.1",
    ),
    *(
        "64:ff9b::7f00:1",
        "64:ff9b::808:808",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:0:4136:e378::1",
        "2001:db8::1",
    ),
    *(
        "2002:7f00:1::",
        "2002:808:808::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fe80::1%lo",
    ),
    *("fec0::1", "ff02::1", "4000::1", "nonsense", ""),
]
OPEN = [
    "8.8.8.8",
    "1.1.1.1",
    "172.15.0.1",
    "172.32.0.1",
    "100.63.0.1",
    "100.128.0.1",
    "192.167.1.1",
    "223.255.255.1",
]
OPEN += ["2a00:1450:4001:80b::200e", "2606:4700::1111", "2001:4860:4860::8888"]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_an_address_inside_is_not_called(address: str):
    assert not reachable(address)


@pytest.mark.parametrize("address", OPEN)
def test_a_public_address_is_called(address: str):
    assert reachable(address)


def test_an_allowed_network_is_called_and_none_beside_it():
    allowed = (ip_network("10.1.0.0/16"), ip_network("fd00::/8"))
    assert reachable("10.1.2.3", allowed)
    assert reachable("fd00::5", allowed)
    assert not reachable("10.2.0.1", allowed)


@pytest.mark.parametrize(
    ("network", "inside", "public", "private"),
    [
        ("::ffff:0:0/96", "::ffff:10.1.2.3", "::ffff:8.8.8.8", "::ffff:10.2.0.1"),
        ("64:ff9b::/96", "64:ff9b::10.1.2.3", "64:ff9b::8.8.8.8", "64:ff9b::169.254.169.254"),
        ("64:ff9b:1::/96", "64:ff9b:1::10.1.2.3", "64:ff9b:1::8.8.8.8", "64:ff9b:1::10.2.0.1"),
        # RFC 6052, section 2.2: around the octet of bits 64 to 71.
        ("64:ff9b:1::/48", "64:ff9b:1:0a01:0002:0300::", "64:ff9b:1:808:8:800::", "64:ff9b:1:0a02:0:100::"),
        ("64:ff9b:1:100::/56", "64:ff9b:1:10a:1:203::", "64:ff9b:1:108:8:808::", "64:ff9b:1:10a:2:1::"),
        ("64:ff9b:1:1::/64", "64:ff9b:1:1:a:102:300:0", "64:ff9b:1:1:8:808:800:0", "64:ff9b:1:1:a:200:100:0"),
        ("2002::/16", "2002:a01:203::1", "2002:808:808::1", "2002:a02:1::1"),
        # The client is inverted, the server is not.
        ("2001::/32", "2001:0:a01:203::f5fe:fdfc", "2001:0:808:808::f7f7:f7f7", "2001:0:808:808::f5fd:fffe"),
    ],
)
def test_what_carries_an_address_leads_where_that_does(network, inside, public, private):
    named, ours = ip_network(network), ip_network("10.1.0.0/16")
    assert not any(reachable(each) for each in (inside, public, private))
    assert reachable(public, (named,))
    assert not within(public, (named,)), "nothing public by plain HTTP"
    assert not reachable(inside, (named,))
    assert not reachable(private, (named,))
    assert not reachable(private, (named, ours))
    if "1::/" not in network and "/56" not in network and "/64" not in network:
        assert reachable(inside, (ours,)), "allowed by what it leads to"
        assert within(inside, (ours,))
    assert reachable(inside, (named, ours))
    assert within(inside, (named, ours))
    assert reachable(private, (ip_network(f"{private}/128"),)), "named by itself"


def test_a_teredo_address_leads_to_its_server_too():
    named = (ip_network("2001::/32"),)
    assert not reachable("2001:0:a01:203::f7f7:f7f7", named)
    assert not reachable("2001:0:7f00:1::f7f7:f7f7", named)


def test_all_of_ipv6_is_not_what_hides_in_it():
    everything = (ip_network("::/0"),)
    assert reachable("fd00::1", everything)
    assert not reachable("::ffff:127.0.0.1", everything)
    assert not reachable("64:ff9b::a9fe:a9fe", everything)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("http://example.com/", "https"),
        ("ftp://example.com/", "https"),
        ("example.com/hook", "https"),
        ("https:///path", "https"),
        ("https://user:secret@example.com/", "user"),
        ("https://user@example.com/", "user"),
        ("https://example.com/#top", "fragment"),
        ("https://example.com:25/", "port 25"),
        ("https://example.com:80/", "port 80"),
        ("https://example.com:99999/", "URL"),
        ("https://127.0.0.1/", "public"),
        ("https://[::1]:8443/", "public"),
        ("https://[::ffff:10.0.0.1]/", "public"),
        ("https://2130706433/", "public"),
        ("https://0x7f.1/", "public"),
        ("https://127.1/", "public"),
        ("https://127.0.0.1./", "public"),
        ("https://exa mple.com/", "blanks"),
        ("https://example.com\\@127.0.0.1/", "characters"),
        ("https://exämple.com/", "A-labels"),
        ("https://example.com/\r\nHost: other", "blanks"),
        ("https://example.com/" + "a" * 2_000, "longer"),
    ],
)
def test_a_url_is_refused_with_the_reason(url: str, word: str):
    assert word in (url_fault(url) or "")


@pytest.mark.parametrize(
    "url",
    ["https://example.com", "https://example.com:8443/a?b=c", "https://8.8.8.8/", "https://a.test:443/"],
)
def test_a_usual_url_is_taken(url: str):
    assert url_fault(url) is None


def test_plain_http_is_for_allowed_networks():
    assert url_fault("http://hooks.internal/a", LOOPBACK) is None
    assert url_fault("http://hooks.internal:22/a", LOOPBACK) is not None
    assert url_fault("http://127.0.0.2:8080/a", LOOPBACK) is None
    assert url_fault("http://8.8.8.8/a", LOOPBACK) is not None
    assert url_fault("http://8.8.8.8/a", ()) is not None


def test_a_shown_url_holds_no_query():
    assert shown_url("https://example.com/a?token=secret") == "https://example.com/a"


def leads(*addresses: str):
    async def lookup(_: str) -> list[str]:
        return list(addresses)

    return lookup


async def call(client: GuardedHttp, url: str, **options):
    try:
        return await client.post(url, b"{}", {"Content-Type": "application/json"}, **options)
    finally:
        await client.close()


async def test_a_name_that_leads_inside_is_not_connected_to():
    async with Receiver() as receiver:
        answer = await call(GuardedHttp(lookup=leads("127.0.0.1")), f"https://evil.example:{receiver.port}/")
    assert answer.error == NOWHERE
    assert receiver.got == []


async def test_a_name_that_does_not_exist_says_the_same_as_one_that_leads_inside():
    answer = await call(GuardedHttp(lookup=leads()), "https://none.example/")
    assert answer.error == NOWHERE


async def test_a_name_that_changes_its_mind_reaches_nothing():
    """DNS rebinding: public when it is looked at, inside when it is looked at again."""
    turns = iter([["8.8.8.8", "127.0.0.1"], ["127.0.0.1"]])

    async def lookup(_: str) -> list[str]:
        return next(turns)

    guard = _Guard(lookup, (), plain=False)
    async with Receiver() as receiver:
        first = await guard.resolve("evil.example", receiver.port)
        assert [found["host"] for found in first] == ["8.8.8.8"]
        answer = await call(GuardedHttp(lookup=lookup), f"https://evil.example:{receiver.port}/")
    assert answer.error == NOWHERE
    assert receiver.got == []


async def test_an_address_is_judged_at_its_socket_too():
    """A host that is an address is never looked up; were its URL not judged, its socket would be."""
    client = GuardedHttp()
    session = client._session(plain=False)
    try:
        with pytest.raises(Exception, match="public address"):
            async with session.post("https://127.0.0.1:1/"):
                pass
    finally:
        await session.close()


async def test_plain_http_reaches_an_allowed_network_only():
    async with Receiver() as receiver:
        answer = await call(GuardedHttp(LOOPBACK), receiver.url + "/a")
        assert (answer.status, answer.error) == (204, None)
        public = await call(GuardedHttp(LOOPBACK, lookup=leads("8.8.8.8")), "http://example.com:8080/")
    assert public.error == NOWHERE


async def test_no_redirect_is_followed():
    async with Receiver() as receiver:
        receiver.answers["/a"] = lambda _: web.Response(status=302, headers={"Location": receiver.url + "/b"})
        answer = await call(GuardedHttp(LOOPBACK), receiver.url + "/a")
    assert answer.status == 302
    assert not answer.good
    assert [got.path for got in receiver.got] == ["/a"]


async def test_no_proxy_of_the_environment_is_used(monkeypatch):
    async with Receiver() as receiver:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
        answer = await call(GuardedHttp(LOOPBACK), receiver.url)
    assert answer.status == 204


async def test_no_cookie_is_kept_and_nothing_tells_what_we_are_made_of():
    async with Receiver() as receiver:
        receiver.answers["/"] = lambda _: web.Response(headers={"Set-Cookie": "a=b"})
        client = GuardedHttp(LOOPBACK)
        await client.post(receiver.url, b"", {})
        await call(client, receiver.url)
    assert all("cookie" not in got.headers for got in receiver.got)
    assert all("user-agent" not in got.headers for got in receiver.got)


async def test_of_a_large_answer_no_more_than_the_bound_is_read():
    closed = asyncio.Event()

    async def endless(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while not reader.at_eof():
                writer.write(b"x" * 65_536)
                await writer.drain()
        except ConnectionError:
            pass
        closed.set()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        answer = await call(GuardedHttp(LOOPBACK), url, most_bytes=1_000)
        await asyncio.wait_for(closed.wait(), 10)
    assert (answer.status, len(answer.text)) == (200, 1_000)


async def test_an_answer_that_does_not_come_ends_after_its_time():
    async with Receiver() as receiver:

        async def never(_: object) -> web.Response:
            await asyncio.Event().wait()
            raise AssertionError

        receiver.answers["/"] = never
        answer = await call(GuardedHttp(LOOPBACK), receiver.url, seconds=0.05)
    assert (answer.status, answer.error) == (None, "no answer within 0.05 s")


@pytest.mark.parametrize(
    "interim",
    [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: <" + b"x" * 7_000 + b">\r\n\r\n"],
)
@pytest.mark.parametrize("endless", [False, True])
async def test_a_few_interim_answers_are_waited_out_and_a_flood_of_them_is_not(interim, endless):
    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            while endless:
                writer.write(interim * 100)
                await writer.drain()
            writer.write(interim * MOST_INTERIM + b"HTTP/1.1 204 No Content\r\n\r\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = GuardedHttp(LOOPBACK)
    try:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        answer = await client.post(url, b"{}", {}, seconds=30)
    finally:
        await client.close()
        server.close()
    if endless:
        assert answer.error == "more than 20 interim answers (1xx), and none that counts"
    else:
        assert (answer.status, answer.error) == (204, None)


async def test_a_closed_port_and_what_is_not_http_are_values():
    async with Receiver() as receiver:
        port = receiver.port
    answer = await call(GuardedHttp(LOOPBACK), f"http://127.0.0.1:{port}/")
    assert answer.error is not None
    assert answer.error.startswith("cannot connect")

    async def garble(reader, writer):
        writer.write(b"220 smtp.example ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(garble, "127.0.0.1", 0)
    async with server:
        answer = await call(GuardedHttp(LOOPBACK), f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert answer.error is not None
    assert answer.error.startswith("no answer that HTTP knows")


async def test_tls_is_verified_and_the_fault_is_told():
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "hooks.example").configure_cert(server)
    async with Receiver(server) as receiver:
        answer = await call(GuardedHttp(LOOPBACK), receiver.url)
        assert answer.error is not None
        assert answer.error.startswith("TLS: ")
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        assert (await call(GuardedHttp(LOOPBACK, tls=trusting), receiver.url)).status == 204
        other = GuardedHttp(LOOPBACK, tls=trusting, lookup=leads("127.0.0.1"))
        answer = await call(other, f"https://another.example:{receiver.port}/")
        assert answer.error is not None
        assert answer.error.startswith("TLS: ")


async def test_names_of_the_hosts_file_lead_where_it_says_and_are_judged_too(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 hooks.internal # ours\n")
    names = Names(hosts=hosts)
    assert await names("hooks.internal") == ["127.0.0.1"]
    assert "127.0.0.1" in await names("api.localhost")
    assert (await call(GuardedHttp(lookup=names), "https://hooks.internal:8443/")).error == NOWHERE
