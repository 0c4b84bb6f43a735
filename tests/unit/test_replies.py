"""Rules for replies: how well they do, what they never do, and that they mean one thing in Python and PostgreSQL."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmail import sqlfiles
from pgmail.domain.needles import needles
from pgmail.domain.replies import RuleBook, codes, fold
from pgmail.domain.reply import Phase, Reply, Result
from pgmail.shaping.asked import asked_seconds
from pgmail.shaping.rulebook import book
from pgmail.shaping.verdict import decide
from tests.replies import corpus, score


@pytest.mark.parametrize("which", ["tuned", "held-out"])
def test_most_replies_are_understood_and_next_to_nobody_is_suppressed_wrongly(which):
    found = score(book(), which)
    assert found.right >= 0.9
    assert found.false <= 0.01
    assert found.found >= 0.9


def test_the_score_would_tell():
    """Rules that go by the first digit alone do what the issue says that they do."""
    crude = RuleBook(
        '[reasons]\ngone = {class = "hard", blame = "recipient", follows = "bounce", suppress = true, means = ""}\n'
        'later = {class = "soft", blame = "remote", follows = "retry", means = ""}\n'
        '[[rule]]\nname = "5"\nreason = "gone"\nfinal = true\n[[rule]]\nname = "4"\nreason = "later"\n'
    )
    found = score(crude, "held-out")
    assert found.right < 0.6
    assert found.false > 0.5


def test_the_corpus_is_large_and_names_no_reply_twice():
    assert len(corpus()) >= 600
    assert len({reply["id"] for reply in corpus()}) == len(corpus())


@pytest.mark.parametrize("reply", [r for r in corpus() if r["code"] < 500], ids=lambda r: r["id"])
def test_no_4xx_suppresses_anybody(reply):
    assert not book().classify(reply["code"], reply["enhanced"], None, reply["text"]).suppress


@given(st.integers(400, 499), st.sampled_from([None, "4.1.1", "4.2.1"]), st.text())
def test_no_4xx_suppresses_anybody_whatever_it_says(code, enhanced, text):
    assert not book().classify(code, enhanced, "rcpt", text).suppress
    assert not book().classify(code, enhanced, "rcpt", f"{text} user unknown").suppress


def test_only_facts_about_the_address_suppress():
    for reason in book().reasons.values():
        assert not reason.suppress or (reason.class_, reason.blame) == ("hard", "recipient")


@pytest.mark.parametrize(
    ("code", "enhanced", "text", "reason"),
    [
        (550, "5.1.1", "user unknown", "recipient-gone"),
        (450, "4.1.1", "user unknown", "recipient-unsure"),
        (552, "5.2.2", "mailbox full", "mailbox-full"),
        (550, "5.1.1", "sender address rejected: user unknown", "sender-refused"),
        (550, "5.1.1", "blocked using zen.spamhaus.org", "blocked"),
        (550, None, "5.1.1 <a@b.example> gone", "recipient-gone"),
        (250, None, "", "unknown"),
    ],
)
def test_text_beats_the_enhanced_code_and_that_the_code(code, enhanced, text, reason):
    assert book().classify(code, enhanced, None, text).reason.name == reason


def test_words_in_an_address_mean_nothing():
    assert (
        book().classify(550, None, None, "<spam@virus.example>: user unknown").reason.name == "recipient-gone"
    )


def test_folding_joins_lines_and_takes_accents_and_addresses_out():
    assert fold("550-5.1.1 “Boîte” inconnue\r\n550 5.1.1 <Ada@Example.org>  Ó") == "'boite' inconnue <@> o"


def test_codes_are_read_from_the_text_where_they_are_not_given():
    assert codes(None, None, "550 5.1.1 no") == ("550", "5.1.1")
    assert codes(None, "4.2.2", "full") == ("400", "4.2.2")
    assert codes(550, None, "from 5.7.1.2") == ("550", "")
    assert codes(None, None, "no") == ("", "")


# ---------------------------------------------------------------------------------------- patterns and the file
@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("user unknown", {"user unknown"}),
        ("(bad|wrong) (user|box)", {"bad", "wrong"}),
        ("mail ?box", {"mail"}),
        ("[ab]c", None),
        ("(ab)?", None),
        ("over[ -]?quota", {"quota"}),
        ("abc*def", {"def"}),
        ("ab+c", {"ab"}),
        ("a{2}", None),
        (r"5\.1\.1", {"5.1.1"}),
    ],
)
def test_needles_are_words_that_must_be_there(pattern, words):
    assert needles(pattern) == (None if words is None else frozenset(words))


@pytest.mark.parametrize(
    "pattern",
    [r"\bx", r"\d", "(?:x)", "(?i)x", "x(?=y)", "(x", "x)", "*x", "x{,2}", "x??", r"[\d]", "[[:alpha:]]"],
)
def test_what_python_and_postgresql_read_differently_is_refused(pattern):
    with pytest.raises(ValueError, match=r".+"):
        needles(pattern)


def test_needles_hide_nothing():
    """What a pattern finds without its needles, it finds with them."""
    table = book().table()["patterns"]
    texts = [fold(reply["text"]) for reply in corpus()][::7]
    for row in table:
        search = re.compile(row["pattern"]).search
        for text in texts:
            if search(text):
                assert any(word in text for word in row["needles"]), (row, text)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ('[[rule]]\nname = "x"\nreason = "nope"\n', "there is no reason nope"),
        ('[[rule]]\nname = "x"\nreason = "a"\ntext = ["\\\\d"]\n', "rule x"),
        ('[[rule]]\nname = "x"\nreason = "a"\nwhen = 1\n', "rule x"),
        ('[[rule]]\nname = "x"\nreason = "a"\n[[rule]]\nname = "x"\nreason = "a"\n', "same name"),
        ('[[rule]]\nname = "x"\nreason = "a"\nfinal = true\n', "must fit every reply"),
    ],
)
def test_a_file_that_does_not_hold_together_is_refused_by_name(change, fault):
    reasons = '[reasons]\na = {class = "soft", blame = "ours", follows = "code", means = ""}\n'
    with pytest.raises(ValueError, match=fault):
        RuleBook(reasons + change)


def test_the_page_of_reasons_is_what_the_file_says():
    page = (sqlfiles.home() / "ops" / "docs" / "replies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| ([\w ]+) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    follows = {"code": "5xx bounces", "retry": "retry", "bounce": "bounce"}
    expected = [
        (
            name, why.class_, why.blame.replace("_", " "), why.means,
            ", ".join([follows[why.follows], *(word for word in ("suppress", "slow", "alert") if getattr(why, word))]),
        )
        for name, why in book().reasons.items()
    ]  # fmt: skip
    assert rows == expected


# ------------------------------------------------------------------------------------------------------- verdicts
def refused(code: int, text: str, enhanced: str | None = None, phase: Phase = Phase.RCPT) -> Result:
    return Result(phase=phase, reply=Reply(code, text, enhanced))


def test_a_full_mailbox_gets_another_chance_after_a_5xx():
    verdict = decide(refused(552, "mailbox full", "5.2.2"))
    assert (verdict.kind, verdict.reason, verdict.suppress) == ("defer", "mailbox-full", False)


def test_a_mailbox_that_is_gone_bounces_and_suppresses():
    verdict = decide(refused(550, "user unknown", "5.1.1"))
    assert (verdict.kind, verdict.reason, verdict.blame, verdict.suppress) == (
        "bounce",
        "recipient-gone",
        "recipient",
        True,
    )


def test_a_bad_name_of_ours_suppresses_nobody_and_slows_the_site():
    verdict = decide(refused(554, "Client host [192.0.2.1] blocked using zen.spamhaus.org", "5.7.1"))
    assert (verdict.kind, verdict.suppress, verdict.slow, verdict.alert) == ("bounce", False, True, True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("greylisted, try again in 300 seconds", 300),
        ("Please try again in 5 minutes", 300),
        ("Greylisting in action, please come back in 00:05:00", 300),
        ("Too many mails (mail bomb), try again in 1 hour(s) 25 minute(s) and see", 5100),
        ("wait at least 2 hours", 7200),
        ("retry after 60s", 60),
        ("Greylisted for 5 minutes", 300),
        ("try again in 30 days", 86_400),
        ("try again later", None),
        ("try again in 0 seconds", None),
        ("see http://example.org/again?id=55 minutes of meeting", None),
        ("too many messages: 5 minutes 12", None),
        ("", None),
    ],
)
def test_what_they_asked_us_to_wait(text, seconds):
    assert asked_seconds(text) == seconds


def test_a_wait_that_was_asked_for_is_part_of_the_verdict():
    assert decide(refused(451, "greylisted, try again in 10 minutes")).again_seconds == 600
    assert decide(refused(550, "user unknown, try again in 10 minutes")).again_seconds is None
