"""Nothing of mail or of a secret comes to light where it should not.

Unmistakable words are planted in every secret and personal place, and real processes are driven through all ways in,
deliveries, refusals and troubles. Then the words are looked for in the logs of all processes, in the database server's
log, in the titles of processes, in `pg_stat_activity` and in plans.

What a log may hold: which field was refused and why, by the names of headers, tags and variables; ids, the tenant,
stream and site (the receiver's domain), codes, states, names of keys, relays and templates; at debug addresses too,
which at info and above are masked. One thing lies beyond pgmail: of JSON that PostgreSQL itself cannot read (U+0000) in
an application's own statement, the server's log quotes some characters.
"""

import base64
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

import pgmail
from pgmail.errors import Refused
from pgmail.sqlfiles import queries
from tests.acceptance.own_server import WORD, Api, environment
from tests.waiting import eventually_now

KEK = base64.b64encode(b"kanarienvogel-kek-canary-octets!").decode()
SMTP = "kanari-smtp-password"
# In a place each; what is found tells where it came from.
WORDS = {
    place: f"kanari{place}9z"
    for place in (
        "local", "name", "subject", "text", "html", "variable", "filename", "file", "metadata", "tag", "header",
        "idempotency", "suppressed", "sendername", "replyto", "template",
    )
}  # fmt: skip
SECRET = {"kek": KEK, "smtp": SMTP, "dsn": WORD}


def email(to: str = "", **more: Any) -> dict[str, Any]:
    w = WORDS
    made = {
        "from": f"{w['sendername']} <shop@example.com>",
        "to": [f"{w['name']} <{to or w['local'] + '@example.org'}>"],
        "reply_to": f"{w['replyto']}@example.com",
        "subject": f"{w['subject']} {{{{ v }}}}",
        "text": f"{w['text']} {{{{ v }}}}",
        "html": f"<p>{w['html']}</p>",
        "variables": {"v": w["variable"]},
        "headers": {"X-Case": w["header"]},
        "metadata": {"m": w["metadata"]},
        "tags": [{"name": "t", "value": w["tag"]}],
        "attachments": [
            {"filename": f"{w['filename']}.txt", "content": base64.b64encode(w["file"].encode()).decode()}
        ],
    }
    return {key: value for key, value in (made | more).items() if value is not None}


# Each is refused, or a dead letter, by the law or by the renderer, with a canary at the fault.
BAD = [
    email(f"{WORDS['local']}..x@example.org"),
    email(f"{WORDS['local']}@"),
    email(headers={"X-A": f"{WORDS['header']}\r\nBcc: x@example.org"}),
    email(tags=[{"name": "t", "value": f"{WORDS['tag']} with a blank"}]),
    email(metadata=WORDS["metadata"]),
    email(variables=WORDS["variable"]),
    email(subject=f"{WORDS['subject']}\x0b"),
    email(text=f"{WORDS['text']} \x00"),
    email(attachments=[{"filename": WORDS["filename"], "content": f"{WORDS['file']}!"}]),
    email(scheduled_at=WORDS["variable"]),
    email(idempotency_key=f"{WORDS['idempotency']}\n"),
]
FAILING = [
    email(text="{{ table[v] }}", variables={"v": WORDS["variable"], "table": {}}),
    email(text="{{ v + 1 }}"),
    email(text="{{ v | int(1, 'x') }}{{ v.nothing.more }}"),
]
TROUBLED = [
    f"{word}.{WORDS['local']}@example.net" for word in ("bounce", "defer", "full", "drop", "blocked", "reset")
]


WAITING = """select count(*) from pgmail.queue q
join pgmail.message m on m.tenant_id = q.tenant_id and m.id = q.message_id
where q.attempts = 0 and m.stream <> 'locked'"""


def post(api: Api, body: Any, path: str = "/emails", key: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {api.key}", "Content-Type": "application/json"}
    if key is not None:
        headers["Idempotency-Key"] = key
    request = urllib.request.Request(
        f"http://127.0.0.1:{api.port}{path}", data=json.dumps(body).encode(), headers=headers
    )
    return api._call(request)[0]


def _send(app: Any, body: Any) -> None:
    app.execute("select pgmail.send(%s)", [Jsonb(body)])


def hand_over(server: Any, api: Api) -> None:
    """All ways in: what is good, what is refused, what fails later."""
    good = [email(), *(email(to) for to in TROUBLED), *FAILING]
    for way in ("http", "sql", "python"):
        with server.connect("producer") as app:
            for number, body in enumerate(good):
                key = f"{WORDS['idempotency']}-{way}-{number}"
                if way == "http":
                    assert post(api, body, key=key) == 200
                elif way == "sql":
                    _send(app, body | {"idempotency_key": key})
                else:
                    pgmail.send(app, body | {"idempotency_key": key})
            other = email(text="another") | {"idempotency_key": f"{WORDS['idempotency']}-{way}-0"}
            if way == "http":
                assert post(api, other) == 409
                assert post(api, [*BAD, email()], "/emails/batch") == 422
                assert post(api, [email(), email()], "/emails/batch") == 200
            for body in [*BAD, other]:
                if way == "http":
                    assert post(api, body) in {409, 422}
                elif way == "python" or "\x00" not in body["text"]:
                    with pytest.raises((psycopg.Error, Refused)):
                        _send(app, body) if way == "sql" else pgmail.send(app, body)
    assert (
        post(api, {"address": f"{WORDS['suppressed']}@example.org", "reason": "manual"}, "/suppressions")
        < 300
    )
    assert post(api, email(f"{WORDS['suppressed']}@example.org")) == 200
    assert post(api, {"name": WORDS["template"], "text": "{% if %}", "publish": True}, "/templates") == 422


def titles(processes: list[Any]) -> str:
    """The command lines of processes and of all below them, as `ps` shows them to everybody."""
    shown = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"^PPid:\s+(\d+)", (folder / "status").read_text(), re.MULTILINE)
            if {int(folder.name), int(parent[1])} & {process.pid for process in processes}:
                shown.append(
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                )
        except (OSError, TypeError):
            continue
    return "\n".join(shown)


def hits(text: str, *, addresses: bool) -> set[str]:
    """Which canaries stand in a text. `addresses` may: it was written at debug."""
    looked_for = WORDS | SECRET
    if addresses:
        looked_for = {
            place: word
            for place, word in looked_for.items()
            if place not in {"local", "suppressed", "replyto"}
        }
    return {place for place, word in looked_for.items() if word.casefold() in text.casefold()}


def lines_with(text: str, found: set[str]) -> list[str]:
    words = [(WORDS | SECRET)[place].casefold() for place in found]
    return [line[:600] for line in text.splitlines() if any(word in line.casefold() for word in words)][:6]


def cli(fleet: Any, dsn: str, *words: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pgmail", *words],
        env=environment(PGMAIL_DATABASE_URL=dsn, **more), cwd=fleet.folder, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("seal", [pytest.param("off", marks=pytest.mark.long), "where_possible"])
def test_no_planted_word_comes_to_light(new_server, fleet, seal):
    server = new_server()
    with server.connect() as owner:
        owner.execute(
            "select pgmail.save_stream('transactional', jsonb_build_object('seal', %s::text))", [seal]
        )
    keys = {"SEAL_KEYS": f"k1={KEK}"}
    relays = {"RELAY_URLS": f"locked=smtp://user:{SMTP}@127.0.0.1:{fleet.sink_port}"}
    api = fleet.api(server.dsn("api"), LOG_LEVEL="debug", **keys)
    quiet = fleet.api(server.dsn("api"), **keys)
    worker = fleet.worker(server.dsn("worker"), LOG_LEVEL="debug", **keys, **relays)
    hand_over(server, api)

    def dealt_with() -> bool:
        return not server.ask(WAITING)

    eventually_now(dealt_with, 60, what="the first mails")
    fleet.worker(server.dsn("worker"), **keys, **relays)
    with server.connect() as owner:
        owner.execute("select pgmail.save_stream('locked', '{\"relay\": \"locked\"}')")
    assert post(quiet, email(stream="locked")) == 200
    hand_over_again = [post(quiet, body) for body in [*BAD, *FAILING]]
    assert set(hand_over_again) <= {200, 422}
    assert server.cut() > 0  # the database is away for a moment, for all of them
    eventually_now(lambda: post(quiet, email()) == 200, 30, what="the API after the cut")
    eventually_now(dealt_with, 60, what="mail after the cut")

    seen = titles([worker, api.process, quiet.process])
    with server.connect("postgres") as admin:
        cursor = admin.execute("select concat_ws(' ', query, application_name) from pg_stat_activity")
        activity = "\n".join(row[0] for row in cursor.fetchall())
    plans = plans_of(server)
    said = "\n".join(
        [
            cli(
                fleet,
                server.dsn("owner"),
                "config",
                "show",
                PGMAIL_SEAL_KEYS=f"k1={KEK}",
                PGMAIL_RELAY_URL=f"smtp://u:{SMTP}@h",
            ),
            cli(fleet, server.dsn("owner").replace(str(server.port), "1"), "queue"),
            cli(fleet, server.dsn("owner"), "queue", PGMAIL_SEAL_KEYS=f"k1={KEK}x"),
            cli(fleet, server.dsn("owner"), "queue", PGMAIL_RELAY_URLS=f"a=smtp://u:{SMTP}@h:99999"),
            cli(fleet, server.dsn("owner"), "seal", "status", PGMAIL_SEAL_KEYS=f"k1={KEK}"),
            cli(
                fleet,
                server.dsn("owner"),
                "doctor",
                PGMAIL_RELAY_URL=f"smtp://u:{SMTP}@127.0.0.1:{fleet.sink_port}",
            ),
        ]
    )
    classified = cli(
        fleet, server.dsn("owner"), "classify", "--text", f"550 5.1.1 <{WORDS['local']}@x.org> unknown"
    )
    for process in fleet.processes[1:]:
        fleet.end(process)

    leaks = {}
    keyed = {api.key, quiet.key}
    for name, text, at_debug in [
        *(
            (f"log {process.args[3:-1]} {n}", fleet.log(process), n in {0, 2})
            for n, process in enumerate(fleet.processes[1:])
        ),
        ("the server's log", server.embedded.log.read_text(errors="replace"), False),
        ("titles", seen, False),
        ("pg_stat_activity", activity, False),
        ("plans", plans, False),
        ("the command line", said, False),
        ("classify", classified, False),
    ]:
        assert text, name
        if found := hits(text, addresses=at_debug):
            leaks[name] = found, lines_with(text, found)
        assert not any(key in text for key in keyed), name
    assert not leaks, json.dumps(
        {name: [sorted(found), lines] for name, (found, lines) in leaks.items()}, indent=1
    )


def plans_of(server: Any) -> str:
    """Plans, with figures, of what a worker asks about mail."""
    found = []
    with server.connect("owner") as owner:
        ids = [row[0] for row in owner.execute("select id from pgmail.message").fetchall()]
        people = [row[0] for row in owner.execute("select id from pgmail.recipient").fetchall()]
    with server.connect("worker") as worker:
        for name, given in (("messages", ids), ("recipients", people)):
            values = {
                "tenant": 1,
                "stream": "transactional",
                "ids": given,
                "low": min(given),
                "high": max(given),
                "most": 1 << 30,
            }
            cursor = worker.execute(
                f"explain (analyze, verbose) {queries('work')[name].text}".encode(), values
            )
            found += [row[0] for row in cursor.fetchall()]
    return "\n".join(found)
