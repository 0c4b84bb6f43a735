"""A relay whose certificate is not accepted: its mail waits, says why, spends no attempt, goes once it is mended."""

import datetime as dt
import ssl

import pytest
import trustme

from tests.sql.kit import differences, events, one, rows, send, state
from tests.waiting import eventually
from tests.worker.kit import Crew, settled

DAY = dt.timedelta(days=1)


def context(authority, *names, **valid):
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*(names or ("127.0.0.1", "localhost")), **valid).configure_cert(made)
    return made


@pytest.mark.parametrize("wrong", ["expired", "name", "authority"])
async def test_mail_waits_for_a_certificate_to_be_mended_and_is_never_sent_in_the_clear(
    *, db, app, owner, open_sink, certificate_authority, ca_file, wrong
):
    now = dt.datetime.now(dt.UTC)
    bad = {
        "expired": lambda: context(certificate_authority, not_before=now - 9 * DAY, not_after=now - DAY),
        "name": lambda: context(certificate_authority, "mx.example"),
        "authority": lambda: context(trustme.CA()),
    }[wrong]()
    sink = await open_sink(tls=bad)
    crew = Crew(db, sink)
    await crew.hire({"default": crew.relay(f"tls=starttls&ca={ca_file}")})
    mail = send(app)
    await eventually(lambda: "delayed" in events(app, mail))
    assert state(app, mail) == "queued"
    relay, reason = rows(owner, "select state, reason from pgmail.relay where name = 'default'")[0]
    assert (relay, reason.partition(":")[0]) == ("away", "tls_failed")
    assert "certificate" in reason
    assert "tls_failed: certificate not accepted" in one(app, "select pgmail.why(%s)", [mail])
    assert rows(owner, "select attempts from pgmail.queue") == [(0,)]
    assert sink.total == 0
    port = sink.port
    await sink.stop()
    mended = await open_sink(tls=context(certificate_authority), port=port)
    await eventually(lambda: settled(owner) == {"sent": 1})
    assert one(owner, "select attempts from pgmail.outcome") == 1
    assert mended.total == 1
    assert events(app, mail).count("deferred") == 0
    assert differences(owner) == [0]
    await crew.dismiss()
