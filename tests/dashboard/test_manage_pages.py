"""Every page of what an operator looks after: it opens, shows what is there, and tells what to do where nothing is."""

import re

import pytest

from tests.dashboard.conftest import ROOT, new_key
from tests.dashboard.stock import HOSTILE, fill

PAGES = {
    "alerts": "All is well",
    "webhooks": "No webhooks yet",
    "queue": "Nothing waits",
    "dead-letters": "No dead letters",
    "in-doubt": "Nothing is in doubt",
    "templates": "No templates yet",
    "suppressions": "Nobody is suppressed",
    "streams": "transactional",
    "domains": "No domains yet",
    "keys": "dash",
    "workers": "No process is alive",
    "audit": "Audit",
}
EVERY = [
    *PAGES,
    *("queue/live", "workers/live", "templates/edit", "templates/edit?name=welcome", "streams/edit"),
    *(
        "streams/edit?name=receipts",
        "templates/compare?name=welcome&old=1&new=2",
        "queue/pause",
        "dead-letters/retry",
    ),
    *(
        "dead-letters/discard",
        "in-doubt/resolve?how=resend",
        "suppressions/add",
        "suppressions/import",
        "keys/create",
    ),
    *("domains/add", "templates/publish?name=welcome&version=2"),
    *("alerts?state=resolved", "alerts/silence?rule=in_doubt", "alerts/unsilence?rule=in_doubt"),
    *(
        "alerts/rule?rule=in_doubt",
        "alerts/targets/add",
        "alerts/targets/test?target=pager",
        "alerts/targets/remove?target=pager",
        "webhooks/add",
    ),
]


@pytest.fixture
def key(db):
    return new_key(db, scopes=["admin"])


@pytest.mark.parametrize("name", PAGES)
async def test_an_empty_page_says_what_to_do_next(page, name):
    answer = await page.get(f"{ROOT}/{name}")
    assert answer.status_code == 200, answer.text
    assert PAGES[name] in answer.text


async def test_every_page_opens_with_what_others_wrote_as_text_alone(page, db):
    fill(db, HOSTILE)
    seen = 0
    for path in EVERY:
        answer = await page.get(f"{ROOT}/{path}")
        assert answer.status_code == 200, (path, answer.text)
        assert "<script>alert" not in answer.text, path
        assert "<img src=x" not in answer.text, path
        assert not re.search(r"\son[a-z]+\s*=\s*[\"']", answer.text), path
        assert not re.search(r"\sstyle\s*=\s*[\"']", answer.text), path
        seen += "&lt;script&gt;alert" in answer.text
    assert seen >= 5
