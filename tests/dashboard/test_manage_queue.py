"""The queue page with many lanes: the deepest are shown, and a filter finds the others."""

import pytest

from pgmail.dashboard.manage.queue import MOST
from tests.dashboard.conftest import ROOT, new_key
from tests.sql import kit
from tests.sql.kit import Hand


@pytest.fixture
def key(db):
    return new_key(db, scopes=["admin"])


@pytest.fixture
def lanes(db):
    """Three more lanes than a table shows, one of them deeper than the others."""
    with db.connect() as owner, db.connect("worker") as connection:
        for n in range(MOST + 2):
            kit.send(owner, f"u@d{n:03}.example.org")
        for n in range(3):
            kit.send(owner, f"u{n}@zz.example.org")
        Hand(connection).fold()


async def test_the_deepest_lanes_and_sites_are_shown_and_how_many_there_are(page, lanes):
    text = (await page.get(f"{ROOT}/queue")).text
    sites = text.split('id="site-title"')[1].split('id="lanes-title"')[0]
    rows = text.split('id="lanes-title"')[1]
    for part in (sites, rows):
        assert part.count("<tr>") == MOST + 1
        assert part.index("zz.example.org") < part.index("d000.example.org")
        assert "d051.example.org" not in part
    assert f"The {MOST} deepest of {MOST + 3};" in sites
    assert f"The {MOST} deepest of {MOST + 3} lanes" in rows


async def test_a_filter_finds_a_site_that_is_not_among_the_deepest(page, lanes):
    text = (await page.get(f"{ROOT}/queue?site=D051.example.org")).text
    assert text.count('aria-label="Pause site d051.example.org"') == 1
    assert text.count('aria-label="Pause lane transactional/normal/d051.example.org"') == 1
    assert "zz.example.org" not in text.split('id="site-title"')[1]
    assert f"<dd>{MOST + 5}<" in text  # what waits in all does not follow the filter


async def test_a_filter_that_finds_nothing_says_so(page, lanes):
    assert "No lane has mail that matches" in (await page.get(f"{ROOT}/queue?stream=moon")).text
