# ruff: noqa: F401, F811 - fixtures of another file
"""An attacker's day: what somebody can do who found a key that may only send. Nothing beyond its limits.

A real API, a real worker and a real SMTP server; another tenant sends beside it all the time.
"""

import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from pgmail.domain.keys import make_key
from tests.acceptance.test_worker_processes import app, far, owner, start_worker
from tests.api.test_api_key_limits import routes
from tests.api.test_api_server import serving
from tests.attacks import RUNTIME_BOMBS
from tests.sql.kit import differences, one, rows
from tests.waiting import eventually_now

RATE, SECONDS = 20, 3  # what the key may send a second, and how long the flood lasts
MINE = {"from": "Shop <hi@shop.example>", "to": "prey@example.org", "subject": "Hi", "text": "Hello"}
LIMITS = {"scopes": ["send"], "streams": ["transactional"], "from_domains": ["shop.example"]}
FORGED = (
    {"from": "hi@bank.example"},
    {"from": "hi@mail.bank.example"},
    {"from": '"security@bank.example" <hi@shop.example>'},
    {"subject": "Hi\r\nBcc: all@example.org"},
    {"subject": "Hi\nX: y"},
    {"subject": "Hi\u2028X: y"},
    {"headers": {"From": "hi@bank.example"}},
    {"headers": {"Sender": "hi@bank.example"}},
    {"headers": {"Return-Path": "hi@bank.example"}},
    {"headers": {"X-A": "b\r\nFrom: hi@bank.example"}},
    {"headers": {"X-A\r\nFrom": "hi@bank.example"}},
    {"headers": {"DKIM-Signature": "v=1"}},
    {"to": "prey@example.org\r\nRCPT TO:<all@example.org>"},
    {"to": "prey@example.org>,<all@example.org"},
    {"reply_to": "a@b.example\r\nBcc: all@example.org"},
    {"stream": "broadcast"},
    {"attachments": [{"filename": "a\r\nX: y", "content": "aGVsbG8="}]},
)


@pytest.fixture
def neighbour(app, owner):
    """Another tenant's application: ten emails a second until it is told to stop; answers their addresses."""
    owner.execute("select pgmail.create_tenant('neighbour')")
    owner.execute("select pgmail.set_senders('neighbour', 'any')")
    owner.execute(
        "select pgmail.revoke_tenant('pgmail_producer'), pgmail.grant_tenant('pgmail_producer', 'neighbour')"
    )
    over, sent = threading.Event(), []

    def send():
        while not over.wait(0.1):
            address = f"friend{len(sent)}@example.net"
            body = {"from": "post@neighbour.example", "to": address, "subject": "Hi", "text": "Hello"}
            app.execute("select pgmail.send(%s)", [json.dumps(body)])
            sent.append(address)

    thread = threading.Thread(target=send)
    thread.start()
    yield sent, lambda: (over.set(), thread.join(30))
    over.set()
    thread.join(30)


@pytest.fixture
def leaked(db, owner):
    """The key that was found: it may send, on one stream, from one domain, so many a second."""
    owner.execute("select pgmail.set_senders('default', 'verified')")
    owner.execute("select pgmail.trust_domain('shop.example', 'ours', 'default')")
    key, hint, hash_ = make_key()
    id_ = one(owner, "select id from pgmail.make_key('shop', %s, %s, %s)", [hint, hash_, json.dumps(LIMITS)])
    owner.execute("select pgmail.set_quota('key', %s, %s)", [str(id_), json.dumps({"per_second": RATE})])
    return key, id_


def flood(api, seconds):
    """As much as sixteen threads can, for so long; the answers, and the moments of those that were taken."""
    until, answers = time.monotonic() + seconds, Counter()

    def push(n):
        while time.monotonic() < until:
            answer = api.post("/emails", json=MINE | {"to": f"prey{n}@example.org"})
            answers[answer.status_code] += 1
            assert answer.status_code == 200 or "retry-after" in answer.headers, answer.text

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(push, range(16)))
    return answers


def within_rate(api, email):
    """The status with which an email is answered; 0 if the key has to wait."""
    status = api.post("/emails", json=email).status_code
    return 0 if status == 429 else status


@pytest.mark.timeout(180)
def test_who_finds_a_key_that_may_send_can_do_nothing_beyond_its_limits(
    db, owner, *, neighbour, leaked, far, start_worker, capsys
):
    start_worker()
    (key, id_), (friends, stop) = leaked, neighbour
    authorization = {"Authorization": f"Bearer {key}"}
    with (
        serving(db.dsn_for("api")) as url,
        httpx.Client(base_url=url, headers=authorization, timeout=60) as api,
    ):
        # Everything else that there is: refused, before anything is looked up.
        looked = Counter(
            api.request(method, path).status_code for method, path, scope in routes() if "send" not in scope
        )
        assert looked.keys() == {403}
        # Somebody else's name, and lines that are none of a text.
        eventually_now(lambda: api.post("/emails", json=MINE).status_code == 200)  # within its rate
        forged = Counter()
        for more in FORGED:
            answer = api.post("/emails", json=MINE | more)
            assert answer.status_code in {403, 422}, (more, answer.text)
            forged[answer.status_code] += 1
        # More than it may.
        before = one(owner, "select count(*) from pgmail.message where tenant_id = 1")
        began = time.monotonic()
        answers = flood(api, SECONDS)
        lasted = time.monotonic() - began  # longer than asked for, where the machine is busy
        taken = one(owner, "select count(*) from pgmail.message where tenant_id = 1") - before
        assert answers.keys() == {200, 429}
        assert taken == answers[200] <= RATE * (lasted + 1.5)
        # Templates that never end.
        bombs = Counter()
        for bomb in RUNTIME_BOMBS[:10]:
            email = MINE | {"html": bomb, "variables": {"x": "text"}}
            bombs[eventually_now(lambda email=email: within_rate(api, email), seconds=60)] += 1
        assert bombs.keys() <= {200, 422}
        # It is noticed and taken away.
        began = time.monotonic()
        owner.execute("select pgmail.revoke_key(%s, 'leaked')", [id_])
        eventually_now(lambda: api.post("/emails", json=MINE).status_code == 401, seconds=60)
        revoked = time.monotonic() - began  # one second, and what a busy machine adds
    stop()
    eventually_now(lambda: not one(owner, "select count(*) from pgmail.queue"), seconds=90)
    assert differences(owner) == [0, 0]
    arrived = Counter(str(mail["recipient"]) for mail in far.mails)
    assert all(arrived[address] == 1 for address in friends)
    for source in far.sources:
        lines = source.split(b"\r\n\r\n", 1)[0].splitlines()
        (sender,) = [line for line in lines if line.lower().startswith(b"from:")]
        assert sender.endswith((b"hi@shop.example>", b"post@neighbour.example"))
        assert not any(b"all@example.org" in line for line in lines)
    (worst,) = rows(
        owner,
        "select percentile_cont(0.99) within group (order by extract(epoch from o.at - m.created_at)::float8 * 1000)"
        " from pgmail.outcome o join pgmail.message m on m.id = o.message_id where o.tenant_id <> 1",
    )
    assert one(owner, "select reason from pgmail.audit where action = 'key.revoke'") == "leaked"
    with capsys.disabled():
        sys.stdout.write(
            f"\nroutes refused {looked.total()}; forged {dict(forged)}; flood of {answers.total()} in {SECONDS} s:"
            f" {answers[200]} taken at {RATE}/s; bombs {dict(bombs)}; revoked after {revoked:.2f} s;"
            f" the neighbour's {len(friends)} all arrived once, p99 {worst[0]:.0f} ms\n"
        )
