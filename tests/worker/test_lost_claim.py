"""A claim whose answer is lost: its rows are known from before the commit, and go back."""

from psycopg import OperationalError

from pgmail.store import work
from pgmail.store.faults import translate
from tests.sql.kit import send
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
