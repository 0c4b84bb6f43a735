"""Sample traffic: a plan that is legal, varied and the same each time; files that are what they claim to be."""

import re
import struct
import zlib
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from pgmail.client_bodies import check_inline
from pgmail.domain.check import check_email
from pgmail.render.templates import Source, check_source
from pgmail.sandbox import traffic_files, traffic_words
from pgmail.sandbox.demo_send import BLOCK, groups
from pgmail.sandbox.sink_rules import BEHAVIOURS, first_word
from pgmail.sandbox.traffic import KINDS, MOST_BY_CLI, UNICODE_EVERY, WAYS, Fate, make_traffic, with_name

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
PLAN = make_traffic(300)


def test_every_email_of_a_plan_obeys_the_law():
    for planned in PLAN:
        body = planned.body_at(NOW)
        check_email(body, now=NOW)
        check_inline(body)


def test_the_same_seed_gives_the_same_plan_and_another_one_does_not():
    assert make_traffic(60, seed=7) == make_traffic(60, seed=7)
    assert make_traffic(60, seed=7) != make_traffic(60, seed=8)


def test_no_two_recipients_share_an_address():
    addresses = [address for planned in PLAN for address in planned.fates]
    assert len(addresses) == len(set(addresses)) > len(PLAN)


@pytest.mark.parametrize("messages", [50, 60])
def test_a_round_of_fifty_holds_every_kind(messages):
    assert {planned.kind for planned in make_traffic(messages)} == {kind.name for kind in KINDS}
    assert sum(kind.share for kind in KINDS) == 50


@pytest.mark.parametrize("messages", [1, 3, 4, 60, 1000])
def test_all_ways_in_are_used_and_the_command_line_a_dozen_times_at_most(messages):
    ways = Counter(planned.way for planned in make_traffic(messages))
    assert ways.total() == messages
    assert ways["cli"] <= MOST_BY_CLI
    assert set(ways) == set(WAYS) or messages < len(WAYS)


def test_nothing_is_no_plan():
    with pytest.raises(ValueError, match="at least 1"):
        make_traffic(0)


def test_what_should_become_of_mail_is_what_the_sink_will_do_to_it():
    for planned in PLAN:
        for address, fate in planned.fates.items():
            behaviour = BEHAVIOURS.get(first_word(address))
            if fate is Fate.BOUNCED:
                assert behaviour is BEHAVIOURS["bounce"]
            elif planned.greylisted:
                assert behaviour is BEHAVIOURS["deferonce"]
            else:
                assert behaviour is None


def test_a_plan_has_what_a_body_can_hold():
    bodies = [planned.body for planned in PLAN]
    assert {body.get("priority") for body in bodies} == {None, "high", "low"}
    assert {body.get("stream") for body in bodies} == {None, "broadcast"}
    assert any(body.get("cc") and body.get("bcc") for body in bodies)
    assert any(body.get("mode") == "personal" for body in bodies)
    assert any("html" in body and "text" not in body for body in bodies)
    attachments = [item for body in bodies for item in body.get("attachments", ())]
    assert any("asset" in item for item in attachments)
    assert any(item.get("content_id") for item in attachments)
    subjects = "".join(body.get("subject", "") for body in bodies)
    assert re.search("[\u3040-\u9fff]", subjects)
    assert re.search("[\U0001f300-\U0001faff]", subjects)
    assert any(not address.isascii() for address in PLAN[UNICODE_EVERY - 1].fates)


def test_scheduled_mail_is_ahead_of_the_moment_of_sending_and_does_not_count_as_prompt():
    reminder = next(planned for planned in PLAN if planned.kind == "reminder")
    assert datetime.fromisoformat(reminder.body_at(NOW)["scheduled_at"]) == NOW + timedelta(seconds=2)
    assert not reminder.prompt
    withdrawn = next(planned for planned in PLAN if planned.cancel)
    assert set(withdrawn.fates.values()) == {Fate.CANCELLED}
    order = next(planned for planned in PLAN if planned.kind == "order")
    assert order.prompt
    assert "scheduled_at" not in order.body_at(NOW)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", "a@example.org"),
        ("Ada", "Ada <a@example.org>"),
        ('O\'Brien, "Red"', '"O\'Brien, \\"Red\\"" <a@example.org>'),
        ("T. S.", '"T. S." <a@example.org>'),
    ],
)
def test_a_name_is_quoted_where_it_must_be(name, shown):
    assert with_name(name, "a@example.org") == shown


def test_the_shops_templates_compile_and_name_what_they_need():
    layout = {"layout": Source(text=traffic_words.LAYOUT_TEXT, html=traffic_words.LAYOUT_HTML)}
    welcome = Source(traffic_words.WELCOME_SUBJECT, traffic_words.WELCOME_TEXT, traffic_words.WELCOME_HTML)
    receipt = Source(traffic_words.RECEIPT_SUBJECT, traffic_words.RECEIPT_TEXT, traffic_words.RECEIPT_HTML)
    assert check_source(welcome, layout) == {"name", "card", "points", "link"}
    assert check_source(receipt, layout) >= {"name", "number", "items", "total"}


def test_a_picture_is_a_png_of_the_size_asked_for():
    picture = traffic_files.picture(20, 10, (0, 0, 0), (255, 255, 255))
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    place, kinds, rows = 8, [], b""
    while place < len(picture):
        (length,) = struct.unpack_from(">I", picture, place)
        kind, body = picture[place + 4 : place + 8], picture[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", picture, place + 8 + length) == (zlib.crc32(kind + body),)
        kinds.append(kind)
        if kind == b"IHDR":
            assert struct.unpack(">II", body[:8]) == (20, 10)
        if kind == b"IDAT":
            rows = zlib.decompress(body)
        place += 12 + length
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]
    assert len(rows) == 10 * (1 + 20 * 3)


def test_a_document_is_a_pdf_whose_table_points_at_its_objects():
    paper = traffic_files.document("Terms (all)", ["One\\two", "€ 日本"] + ["line"] * 80)
    start = int(re.search(rb"startxref\n(\d+)\n", paper)[1])
    assert paper[start:].startswith(b"xref\n0 6\n")
    offsets = [int(offset) for offset in re.findall(rb"(\d{10}) 00000 n", paper)]
    assert [paper[offset : offset + 7] for offset in offsets] == [b"%d 0 obj" % n for n in range(1, 6)]
    assert b"Terms \\(all\\)" in paper
    assert b"One\\\\two" in paper
    assert paper.count(b"T*") == 46


def test_a_calendar_entry_has_crlf_lines_and_an_hour():
    entry = traffic_files.appointment("a@example.com", "Reading", NOW)
    assert b"DTSTART:20261121T120000Z\r\nDTEND:20261121T130000Z\r\n" in entry
    assert b"\n" not in entry.replace(b"\r\n", b"")


def test_groups_keep_every_mail_in_order_and_batch_half_of_them():
    mails = list(PLAN[: BLOCK + 7])
    cut = list(groups(mails, alone=False))
    assert [planned for group in cut for planned in group] == mails
    assert sorted({len(group) for group in cut}) == [1, 3, BLOCK // 2]
    assert all(len(group) == 1 for group in groups(mails, alone=True))
