"""A claim whose answer is lost: its rows are known from before the commit, and go back."""

from psycopg import OperationalError

from pgmail.store import work
from pgmail.store.faults import translate
from tests.sql.kit import one, send
from tests.waiting import eventually
from tests.worker.kit import settled


async def test_a_claim_whose_answer_was_lost_keeps_no_mail_waiting(app, owner, crew, monkeypatch):
    real, lost = work.claim_each, []

    async def claim_each(*arguments):
        found = await real(*arguments)
        if any(found) and not lost:
            lost.append(found)
            fault = translate(OperationalError("the answer was lost"))
            assert fault is not None
            raise fault
        return found

    monkeypatch.setattr(work, "claim_each", claim_each)
    send(app)
    await crew.hire()
    await eventually(lambda: settled(owner) == {"sent": 1})
    assert lost


async def test_rows_of_a_claim_that_never_reached_us_are_found_and_given_back(app, owner, crew, monkeypatch):
    real, lost = work.claim_each, []

    async def claim_each(database, epoch, claims, seen):
        unseen = []
        found = await real(database, epoch, claims, seen if lost else unseen)
        if any(found) and not lost:
            lost.append(found)
            fault = translate(OperationalError("the connection broke"))
            assert fault is not None
            raise fault
        return found

    monkeypatch.setattr(work, "claim_each", claim_each)
    send(app)
    await crew.hire()
    await eventually(lambda: settled(owner) == {"sent": 1})
    assert lost
    assert (
        one(
            owner,
            "select claims from pgmail.event e join pgmail.outcome o using (recipient_id)"
            " cross join lateral (select count(*) as claims from pgmail.event x"
            " where x.recipient_id = o.recipient_id and x.type = 'email.sending') c limit 1",
        )
        == 2
    )
