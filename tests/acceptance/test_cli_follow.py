"""`pgmail trace ID --follow`: what happens appears as it happens, and the command ends when the journey does."""

import json
import signal
import subprocess

from tests.acceptance.test_cli_processes import PGMAIL, environ
from tests.sql.kit import send


def following(db, email, *more):
    return subprocess.Popen(
        [*PGMAIL, "trace", str(email), "--follow", *more],
        env=environ(database_url=db.dsn_for("producer")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_goes_on_until_every_recipient_is_settled(db):
    with db.connect("producer") as producer:
        email = send(producer, ["ada@example.org", "bob@example.org"])
        with following(db, email, "--json") as process:
            first = [json.loads(process.stdout.readline()) for _ in range(2)]
            assert [event["type"] for event in first] == ["email.queued"] * 2
            one = first[0]["recipient_id"]
            producer.execute("select pgmail.cancel(%s, 'a mistake')", [one])
            told = json.loads(process.stdout.readline())
            assert (told["type"], told["recipient_id"]) == ("email.cancelled", one)
            assert process.poll() is None, "the other one is on its way"
            producer.execute("select pgmail.cancel(%s)", [email])
            rest, faults = process.communicate(timeout=60)
            assert (process.returncode, faults) == (0, "")
            assert [json.loads(line)["type"] for line in rest.splitlines()] == ["email.cancelled"]


def test_people_read_a_line_an_event_and_end_it_with_ctrl_c(db):
    with db.connect("producer") as producer:
        email = send(producer)
        with following(db, email) as process:
            line = process.stdout.readline()
            assert "email.queued" in line
            assert "ada@example.org" in line
            process.send_signal(signal.SIGINT)
            _, faults = process.communicate(timeout=60)
            assert process.returncode in {1, 130}
            assert "Traceback" not in faults
