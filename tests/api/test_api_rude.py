"""Clients that are slow, silent, greedy or strange: each is refused in time, and nobody else waits for them."""

import contextlib
import json
import resource
import socket
import time
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from pgmail.api import bodies
from tests.api.conftest import EMAIL
from tests.api.test_api_server import serving
from tests.sql import kit

pytestmark = pytest.mark.one_server
IDLE = 1_000
HEAD = (
    "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    "Content-Length: 500\r\n\r\n{{"
)


@pytest.fixture
def address(db):
    with serving(db.dsn_for("api")) as url:
        parts = urlsplit(url)
        yield parts.hostname, parts.port


@pytest.fixture
def ask(address, key):
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", headers=headers, timeout=60) as client:
        yield client


def test_a_thousand_connections_that_say_nothing_or_half_of_something_keep_nobody_waiting(address, ask, key):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * IDLE + 500  # both ends are of this process
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"a process may have {hard} files open here; this takes {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    half = HEAD.format(path="/emails", key=key).encode()
    opened = []
    try:
        for n in range(IDLE):
            opened.append(socket.create_connection(address, 30))
            if n % 2:
                opened[-1].sendall(half[: n % len(half)])
        began = time.monotonic()
        for _ in range(20):
            assert ask.post("/emails", json=EMAIL).status_code == 200
        assert time.monotonic() - began < 60  # who is kept waiting by them waits for minutes
    finally:
        for each in opened:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("path", ["/emails", "/emails/batch"])
def test_a_body_that_does_not_come_is_given_up_and_its_connection_closed(monkeypatch, address, key, path):
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)
    with socket.create_connection(address, 30) as slow:
        slow.sendall(HEAD.format(path=path, key=key).encode())
        said = b""
        while octets := slow.recv(65_536):  # until it is closed
            said += octets
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b'"body_too_slow"' in said


DEEP = "[" * 100_000 + "]" * 100_000
STRANGE = {
    "deep array": '{"metadata": {"a": ' + DEEP + "}}",
    "deep object": '{"metadata": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}",
    "only deep": DEEP,
    "key twice": '{"subject": "a", "subject": "b"}',
    "key twice by escape": '{"subject": "a", "s\\u0075bject": "b"}',
    "__proto__": '{"__proto__": {"admin": true}}',
    "constructor": '{"constructor": {"prototype": {"admin": true}}}',
    "10 MB subject": json.dumps({"subject": "a" * 10_000_000}),
    "10 MB key": json.dumps({"a" * 10_000_000: 1}),
    "10 MB name": json.dumps({"from": "a" * 10_000_000 + " <shop@example.com>"}),
    "half a pair": '{"subject": "\\ud800"}',
    "NUL": '{"subject": "a\\u0000b"}',
    "NaN": '{"metadata": {"a": NaN}}',
    "huge number": '{"priority": 1' + "0" * 100_000 + "}",
    "no UTF-8": b'{"subject": "\xff\xfe"}',
    "nothing": "",
    "BOM": "\ufeff{}",
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_strange_body_is_refused_by_the_field_and_stores_nothing(ask, db, case):
    text = STRANGE[case]
    if isinstance(text, str) and text.startswith('{"'):
        text = (
            json.dumps({k: v for k, v in EMAIL.items() if f'"{k}"' not in text[:40]})[:-1] + ", " + text[1:]
        )
    octets = text if isinstance(text, bytes) else text.encode()
    answer = ask.post("/emails", content=octets)
    assert answer.status_code in {400, 413, 422}, answer.text
    assert len(answer.content) < 10_000  # what was wrong is not sent back as a whole
    with db.connect() as owner:
        assert kit.count(owner, "message") == 0


@pytest.mark.parametrize("case", [name for name, text in STRANGE.items() if isinstance(text, str)])
def test_sql_refuses_it_too_and_the_session_lives(db, app, case):
    text = STRANGE[case]
    if text.startswith('{"'):
        text = (
            json.dumps({k: v for k, v in EMAIL.items() if f'"{k}"' not in text[:40]})[:-1] + ", " + text[1:]
        )
    # A key given twice is the last one's by jsonb itself, before anything of ours is asked.
    with contextlib.nullcontext() if case.startswith("key twice") else pytest.raises(psycopg.Error) as caught:
        app.execute("select pgmail.send(%s::text::jsonb)", [text])
    if caught is not None:
        assert caught.value.sqlstate
        assert len(caught.value.diag.message_primary) < 10_000
    assert kit.state(app, kit.send(app)) == "queued"
