"""`pgmail send --csv` against a real database: everybody once, whatever happens in between."""

import contextlib
import csv
import io
import json
import signal
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from pgmail.mailing import trial
from tests.acceptance.test_cli import Shell
from tests.acceptance.test_cli_processes import PGMAIL, environ
from tests.acceptance.test_processes import until
from tests.sql.kit import LOCKS_HERE

WAITS = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
SENDER = "Shop <shop@example.com>"


class Lists(Shell):
    """A shell as a producer, with a list in its folder and a template that needs `name`."""

    def __init__(self, monkeypatch, folder, db):
        super().__init__(monkeypatch, folder)
        self.folder, self.owner = folder, db.connect()
        self.set(database_url=db.dsn)
        self.save_template()
        self.set(database_url=db.dsn_for("producer"))
        self.env = environ(database_url=db.dsn_for("producer"))

    def save_template(self, text="Hello {{ name }}"):
        self.run("template", "save", "news", "--subject", "Hi {{ name }}", "--text", text, "--publish")

    def write(self, *rows, header="email,name"):
        (self.folder / "list.csv").write_text("\n".join((header, *rows, "")), encoding="utf-8")

    def people(self, count):
        self.write(*(f"u{n}@example{n % 7}.com,Person {n}" for n in range(count)))

    def words(self, *more):
        return ["send", "--template", "news", "--from", SENDER, "--csv", "list.csv", *more]

    def send(self, *more, code=0):
        result = self.run(*self.words(*more, "--json"), code=code)
        return json.loads(result.stdout), result.stderr

    def start(self, *more):
        return subprocess.Popen(
            [*PGMAIL, *self.words(*more)],
            env=self.env,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def addresses(self):
        return [row[0] for row in self.owner.execute("select address from pgmail.recipient order by 1")]

    def messages(self):
        return self.owner.execute("select count(*) from pgmail.message").fetchone()[0]

    def states(self):
        return sorted(self.folder.glob("list.csv.*.mailing"))


@pytest.fixture
def lists(db, monkeypatch, tmp_path):
    return Lists(monkeypatch, tmp_path, db)


# ------------------------------------------------------------------------------------------------------ what is sent
def test_everybody_on_the_list_gets_an_email_of_their_own(lists):
    lists.write("Ada@example.org,Ada", "bob@example.org,Bob", "cy@example.org,Cy")
    answer, _ = lists.send("--chunk", "2", "--tag", "kind=news", "--variable", "season=autumn")
    assert (answer["rows"], answer["enqueued"], answer["refused"], answer["already"]) == (3, 3, 0, 0)
    assert lists.addresses() == ["ada@example.org", "bob@example.org", "cy@example.org"]
    rows = lists.owner.execute(
        "select id::text, mode, stream, template, recipients, tags->>'kind' from pgmail.message order by id"
    ).fetchall()
    assert [row[0] for row in rows] == answer["emails"]
    assert [row[1:] for row in rows] == [
        ("personal", "broadcast", "news", 2, "news"),
        ("personal", "broadcast", "news", 1, "news"),
    ]
    variables, name = lists.owner.execute(
        "select convert_from(variables, 'UTF8')::jsonb, name from pgmail.recipient where address = 'ada@example.org'"
    ).fetchone()
    assert (variables, name) == ({"email": "Ada@example.org", "name": "Ada"}, "Ada")


def test_texts_given_with_the_mailing_are_templates(lists):
    lists.write("a@example.org,Ada", "b@example.org,")
    words = [
        "send",
        "--from",
        SENDER,
        "--csv",
        "list.csv",
        "--subject",
        "Hi {{ name }}",
        "--text",
        "@@{{ name }}",
    ]
    result = lists.run(*words, code=1)
    assert "list.csv:3: name: the template needs 'name'" in result.stderr
    assert lists.addresses() == ["a@example.org"]
    assert "{{ nam" in lists.run(*words[:-1], "{{ nam", code=1).stderr or lists.messages() == 1


def test_a_shared_variable_stands_in_for_an_empty_cell(lists):
    lists.write("a@example.org,")
    assert lists.send("--variable", "name=friend")[0]["enqueued"] == 1


def test_typed_cells_and_empty_ones_reach_the_template_as_asked(lists):
    lists.write("a@example.org,,3,", header="email,name,count,note")
    assert lists.send("--typed", "--keep-empty")[0]["enqueued"] == 1
    (variables,) = lists.owner.execute(
        "select convert_from(variables, 'UTF8')::jsonb from pgmail.recipient"
    ).fetchone()
    assert variables == {"email": "a@example.org", "name": "", "count": 3, "note": ""}


def test_an_address_is_sent_to_once_and_the_rest_is_told(lists):
    lists.write("a@example.org,A", "b@example.org,B", "A@EXAMPLE.org,A", "a@example.org,A")
    answer, said = lists.send("--chunk", "2")
    assert (answer["enqueued"], answer["duplicates"]) == (2, 2)
    assert "list.csv:4: the address is that of line 2" in said
    assert lists.addresses() == ["a@example.org", "b@example.org"]


def test_mail_for_later_keeps_the_moment_of_the_first_run(lists):
    lists.people(2)
    lists.send("--at", "in 2 hours", "--chunk", "1")
    lists.send("--at", "in 3 hours", "--chunk", "1")
    assert lists.messages() == 2
    (spread,) = lists.owner.execute("select count(distinct scheduled_at) from pgmail.message").fetchone()
    assert spread == 1


# ------------------------------------------------------------------------------------------------------ what is not
def test_bad_rows_are_told_by_line_and_the_rest_is_sent(lists):
    lists.write(
        "a@example.org,A", "nobody,B", '"c@example.org","two\nlines"', "d@example.org,", "e@example.org,E,1"
    )
    answer, said = lists.send("--rejected", "bad.csv", code=1)
    assert (answer["enqueued"], answer["refused"]) == (1, 4)
    assert [line.split(": ")[0] for line in said.splitlines()[:-1]] == [f"list.csv:{n}" for n in (3, 4, 6, 7)]
    assert said.splitlines()[0].endswith("[invalid_address]")
    assert said.splitlines()[-1] == "pgmail: 4 of 5 rows were refused"
    rows = list(csv.reader(io.StringIO((lists.folder / "bad.csv").read_text(encoding="utf-8"))))
    assert rows[0] == ["pgmail_line", "pgmail_column", "pgmail_code", "pgmail_reason", "email", "name"]
    assert [(row[0], row[1], row[2], row[4]) for row in rows[1:]] == [
        ("3", "email", "invalid_address", "nobody"),
        ("4", "email", "invalid_address", "c@example.org"),
        ("6", "name", "missing_variable", "d@example.org"),
        ("7", "", "invalid_row", "e@example.org"),
    ]


def test_the_file_of_refused_rows_is_mended_and_sent_as_it_is(lists):
    lists.write("a@example.org,A", "nobody,B")
    lists.send("--rejected", "bad.csv", code=1)
    bad = lists.folder / "bad.csv"
    words = ["send", "--template", "news", "--from", SENDER, "--csv", "bad.csv"]
    lists.run(*words, "--rejected", "worse.csv", code=1)
    assert (
        bad.read_text(encoding="utf-8").splitlines()[0]
        == ((lists.folder / "worse.csv").read_text(encoding="utf-8").splitlines()[0])
    )
    bad.write_text(bad.read_text(encoding="utf-8").replace("nobody", "b@example.org"), encoding="utf-8")
    assert lists.run(*words).stdout == "1 of 1 rows are handed over\n"
    assert lists.addresses() == ["a@example.org", "b@example.org"]


def test_a_row_that_sql_alone_refuses_is_told_and_the_others_of_its_chunk_are_sent(lists):
    # UTS 46 drops a soft hyphen, SQL refuses it.
    lists.write("a@example.org,A", "b@example\u00adx.org,B", "c@example.org,C", "d@example\u00adx.org,D")
    answer, said = lists.send("--rejected", "bad.csv", code=1)
    assert (answer["enqueued"], answer["refused"]) == (2, 2)
    assert "list.csv:3: email:" in said
    assert "list.csv:5: email:" in said
    again, said = lists.send("--rejected", "bad.csv", code=1)  # it is in the state
    assert (again["already"], again["enqueued"], again["refused"]) == (2, 0, 2)
    assert "list.csv:3: email:" in said
    assert (lists.folder / "bad.csv").read_text(encoding="utf-8").count("\u00ad") == 2
    lists.states()[0].unlink()
    lists.send(code=1)  # and without the state the key is that of the whole chunk, so nobody gets another
    assert lists.addresses() == ["a@example.org", "c@example.org"]


def test_a_template_published_in_between_refuses_the_rows_that_lack_what_it_needs(lists, monkeypatch):
    async def as_it_was_before(*_):
        return frozenset()

    monkeypatch.setattr(trial, "required", as_it_was_before)
    lists.write("a@example.org,A", "b@example.org,", "c@example.org,C", "d@example.org,", "e@example.org,")
    answer, said = lists.send("--chunk", "2", code=1)
    assert (answer["enqueued"], answer["refused"]) == (2, 3)
    assert "list.csv:3: name: the template needs 'name'" in said
    assert lists.addresses() == ["a@example.org", "c@example.org"]


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        (["--stream", "nowhere"], "[unknown_stream]"),
        (["--template", "nothing"], "[unknown_template]"),
        (["--text", "x"], "[invalid_text]"),
        (["--from", "shop"], "[invalid_address]"),
        (["--header", "To: x"], "[reserved_header]"),
        (["--at", "soon"], "[invalid_time]"),
        (["--column-address", "mail"], "[missing_column]"),
        (["--csv", "none.csv"], "none.csv: No such file or directory"),
        (["--state", "nowhere/x"], "nowhere/x: No such file or directory"),
    ],
)
def test_what_is_wrong_with_all_of_it_is_one_line_before_anything_is_sent(lists, more, hint):
    lists.people(3)
    assert lists.refused(*lists.words(*more)).endswith(hint)
    assert lists.messages() == 0


def test_a_variable_that_no_column_gives_is_one_line(lists):
    lists.write("a@example.org", header="email")
    assert "'name'" in lists.refused(*lists.words())
    lists.write("a@example.org,Ada", header="email,Name")
    assert "case counts" in lists.refused(*lists.words())


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        (["--to", "x@example.org"], "leave out --to"),
        (["--idempotency-key", "x"], "leave out --idempotency-key"),
        (["--json", "x.json"], "give one of them"),
        (["--rejected", "list.csv"], "the list itself"),
        (["--state", "list.csv"], "the list itself"),
        (["--delimiter", "ab"], "one character"),
        (["--chunk", "1001"], "1<=x<=1000"),
    ],
)
def test_wrong_usage_is_exit_code_2(lists, more, hint):
    lists.people(1)
    assert hint in lists.run(*lists.words(*more), code=2).stderr


def test_the_options_of_a_mailing_want_a_list(lists):
    assert "give --csv FILE" in lists.run("send", "--dry-run", code=2).stderr
    assert "wants a FILE" in lists.run("send", "--json", code=2).stderr


def test_a_dry_run_checks_everything_and_leaves_no_trace(lists):
    lists.write("a@example.org,A", "nobody,B")
    result = lists.run(*lists.words("--dry-run", "--rejected", "bad.csv"), code=1)
    assert result.stdout == "1 of 2 rows can be sent; nothing was\n"
    assert "list.csv:3:" in result.stderr
    assert (lists.messages(), lists.states()) == (0, [])


# ----------------------------------------------------------------------------------------- once, whatever happens
def test_the_same_command_again_sends_nothing_and_another_name_sends_anew(lists):
    lists.people(5)
    first, _ = lists.send()
    again, _ = lists.send()
    assert (again["already"], again["enqueued"], again["emails"]) == (5, 0, first["emails"])
    assert lists.run(*lists.words()).stdout.startswith("0 of 5 rows are handed over; 5 were before")
    assert lists.send("--mailing", "second")[0]["enqueued"] == 5
    assert lists.messages() == 2


def test_without_its_state_a_mailing_is_known_by_its_keys(lists):
    lists.people(5)
    first, _ = lists.send("--chunk", "2")
    lists.states()[0].unlink()
    again, _ = lists.send("--chunk", "2")
    assert again["emails"] == first["emails"]
    lists.states()[0].unlink()
    other, said = lists.send("--chunk", "2", "--subject", "Another", code=1)
    assert (other["enqueued"], other["conflicts"]) == (0, 5)
    assert "chunk 1 (rows up to line 3) was handed over in the last 24 hours" in said
    assert lists.send("--chunk", "2", "--subject", "Another", code=1)[0]["conflicts"] == 5
    assert lists.messages() == 3


def test_other_options_do_not_go_on_with_a_mailing(lists):
    lists.people(3)
    lists.send()
    assert "another subject, tags" in lists.refused(*lists.words("--subject", "New", "--tag", "a=b"))
    assert lists.messages() == 1


def test_a_list_that_was_changed_is_not_sent_to_again(lists):
    lists.people(3)
    lists.send("--chunk", "2")
    lists.people(4)  # the last chunk was short, and has another row now
    assert lists.refused(*lists.words("--chunk", "2")).endswith("[list_changed]")
    assert len(lists.addresses()) == 3


def test_a_chunk_of_which_nobody_was_sent_to_may_be_mended_in_place(lists):
    lists.write("a@example.org,A", "b@example.org,B", "nobody,C", "no one,D")
    assert lists.send("--chunk", "2", code=1)[0]["enqueued"] == 2
    lists.write("a@example.org,A", "b@example.org,B", "c@example.org,C", "d@example.org,D")
    answer, _ = lists.send("--chunk", "2")
    assert (answer["already"], answer["enqueued"]) == (2, 2)
    assert len(lists.addresses()) == 4


def test_a_mailing_goes_on_with_the_chunks_that_it_began_with(lists):
    lists.people(5)
    lists.send("--chunk", "2")
    answer, said = lists.send("--chunk", "3")
    assert (answer["already"], answer["enqueued"]) == (5, 0)
    assert "chunks of 2" in said


def test_killed_in_the_middle_it_goes_on_and_everybody_gets_one(lists):
    lists.people(1_500)
    killed = 0
    for goal in (3, 8):
        process = lists.start("--chunk", "50")
        try:
            until(lambda goal=goal: lists.messages() >= goal, seconds=60)
        finally:
            process.kill()
            process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 1
    answer, _ = lists.send("--chunk", "50")
    assert answer["enqueued"] + answer["already"] == 1_500
    assert answer["already"] >= 100
    found = lists.addresses()
    assert (len(found), len(set(found)), lists.messages()) == (1_500, 1_500, 30)


@contextlib.contextmanager
def in_its_third_chunk(lists, *words):
    """A process that hands over two chunks and stands in the third until this ends."""
    lists.owner.execute(
        "create function public.wait() returns trigger language plpgsql as $$ begin"
        " if (select count(*) from pgmail.message) >= 2 then perform pg_advisory_xact_lock_shared(4711); end if;"
        " return null; end $$"
    )
    lists.owner.execute(
        "create trigger wait before insert on pgmail.message for each statement execute function public.wait()"
    )
    lists.owner.execute("select pg_advisory_lock(4711)")
    process = lists.start(*words)
    waits = f"select from {LOCKS_HERE} where locktype = 'advisory' and not granted and objid = 4711"
    try:
        until(lambda: lists.owner.execute(waits).fetchone() is not None, seconds=60)
        yield process
    except BaseException:
        process.kill()
        raise
    finally:
        lists.owner.execute("select pg_advisory_unlock(4711)")


def test_interrupted_it_says_how_to_go_on(lists):
    lists.people(100)
    with in_its_third_chunk(lists, "--chunk", "10") as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert lists.messages() == 2
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    lists.send("--chunk", "10")
    assert len(lists.addresses()) == len(set(lists.addresses())) == 100


def test_a_database_that_goes_away_is_waited_for(lists, db):
    lists.people(100)
    with in_its_third_chunk(lists, "--chunk", "10") as process, _superuser(db) as admin:
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = 'pgmail mailing' and datname = current_database()"
        )
    try:
        out, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "100 of 100 rows are handed over\n")
    assert "nothing is lost, trying again in" in said
    assert len(lists.addresses()) == len(set(lists.addresses())) == 100


def test_two_runs_at_once_are_one(lists, db):
    lists.people(4)
    lists.send("--chunk", "2")
    state = lists.states()[0]
    program = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); input()"
    holder = subprocess.Popen(
        [PGMAIL[0], "-c", program, state], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        holder.stdout.readline()
        assert lists.refused(*lists.words("--chunk", "2")).endswith("[mailing_busy]")
    finally:
        holder.communicate(b"\n")


def test_a_key_that_another_transaction_holds_is_waited_for(lists, db):
    """What a killed run leaves behind: its statement still under way on the server."""
    lists.people(2)
    lists.send("--dry-run")
    lists.send()
    state = lists.states()[0]
    begun = "\n".join(state.read_text(encoding="utf-8").splitlines()[:2]) + "\n"
    email = lists.owner.execute("select idempotency_key, id from pgmail.message").fetchone()
    state.write_text(begun, encoding="utf-8")
    other = db.connect(autocommit=False)
    other.execute("update pgmail.idempotency set expires_at = expires_at where key = %s", [email[0]])
    process = lists.start("--json")
    try:
        with _superuser(db) as watcher:
            until(lambda: watcher.execute(WAITS).fetchone())
        other.commit()
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert json.loads(out)["emails"] == [str(email[1])]
    assert lists.messages() == 1


@pytest.mark.parametrize(("choice", "skipped", "messages"), [("skip", 2, 2), ("send", 0, 3)])
def test_a_chunk_that_outlived_its_key_waits_for_a_decision(lists, choice, skipped, messages):
    lists.people(4)
    lists.send("--chunk", "2")
    state = lists.states()[0]
    *lines, begun, _ = state.read_text(encoding="utf-8").splitlines()
    old = json.loads(begun) | {"at": (datetime.now(UTC) - timedelta(days=2)).isoformat()}
    state.write_text("\n".join((*lines, json.dumps(old), "")), encoding="utf-8")
    lists.owner.execute("delete from pgmail.idempotency")
    line = lists.refused(*lists.words("--chunk", "2"))
    (key,) = lists.owner.execute(
        "select idempotency_key from pgmail.message order by id desc limit 1"
    ).fetchone()
    assert f"the key {key} " in line
    assert line.endswith("[chunk_in_doubt]")
    assert lists.messages() == 2
    answer, _ = lists.send("--chunk", "2", "--in-doubt", choice, code=1 if skipped else 0)
    assert (answer["skipped"], answer["already"]) == (skipped, 2)
    assert lists.messages() == messages
    assert lists.send(code=1 if skipped else 0)[0]["skipped"] == skipped  # and it stays so


def test_a_database_that_was_never_there_is_one_line(lists):
    lists.people(1)
    lists.set(database_url="postgresql://nobody@127.0.0.1:1/nothing")
    assert "cannot be reached" in lists.refused(*lists.words())


def _superuser(db):
    import psycopg

    return psycopg.connect(db.superuser_dsn, autocommit=True)
