"""Addresses: SQL's law, held against the idna package and against pgmail.domain.address."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgmail.domain import address
from tests.sql import kit

pytestmark = pytest.mark.one_server

# Letters of scripts in which people register names; no joiners, no marks, nothing that mixes directions.
_LETTERS = (
    "abcxyzABC019äöüßéèñçøåæœÄÖÉŁłżšŠğıЖжиящЯЮαβγωΩΣσς中文漢字日本ひらカナ한국" + "كتاب" + "शमल" + "ไทย"
)

# ruff: noqa: E501 - tables read best as they are
DOMAINS = [
    *("example.com", "EXAMPLE.Com", "a-b.example", "xn--bcher-kva.example", "bücher.example", "BÜCHER.example"),
    *("straße.de", "STRASSE.de", "faß.example", "müller.müller", "пример.рф", "ПРИМЕР.РФ", "例え.テスト"),
    *("例え。テスト", "example．com", "ｅｘａｍｐｌｅ.com", "παράδειγμα.δοκιμή", "한국.kr", "مثال.إختبار"),
    *("a" * 63 + ".example", "a" * 64 + ".example", "ü" * 58 + ".example", "ü" * 60 + ".example"),
    *("localhost", "example", ".example.com", "example..com", "example.com.", "-a.example", "a-.example"),
    *("a_b.example", "a b.example", "1.2.3.4", "example.123", "123.example", "[192.0.2.1]"),
    *("a\u200db.example", "e\u0301cole.example", "xn--.example", ".".join(["a" * 60] * 5), "", ".", "a@b.example"),
]  # fmt: skip

ADDRESSES = [
    *("ada@example.org", "Ada@Example.ORG", "Ada <ada@example.org>", '"Ada, Countess" <ada@example.org>'),
    *("<ada@example.org>", '"a \\"b\\" c" <ada@example.org>', "Ada Lovelace<ada@example.org>", "  ada@example.org  "),
    *('"ada l"@example.org', '"a\\"b"@example.org', '""@example.org', '"a@b"@example.org', "o'hara+x=y@example.org"),
    *("джон@example.org", "Джон <ДЖОН@пример.рф>", "user@bücher.example", "İstanbul@example.org", "ΟΔΟΣ@example.org"),
    *("ada", "ada@", "@example.org", "a b@example.org", "a..b@example.org", ".a@example.org", "a.@example.org"),
    *("a@b@example.org", "a,b@example.org", "a;b@example.org", "ada@example.org, b@example.org", "a\\b@example.org"),
    *("Ada <ada@example.org", "Ada ada@example.org>", "A <b> <ada@example.org>", 'A "b" <ada@example.org>'),
    *('"unfinished <ada@example.org>', "ada@example.org <ada@example.org>", "Ada <>", "<>", "", " ", "a" * 64 + "@example.org"),
    *("a" * 65 + "@example.org", "ä" * 32 + "@example.org", "ä" * 33 + "@example.org", "a\tb@example.org"),
    *("a@example.org\r\nBcc: x@example.org", "a\u2028@example.org", "a\u0085@example.org", "a@[192.0.2.1]", "a@1.2.3.4"),
    *("x@" + ".".join(["a" * 60] * 4) + ".example", "A" * 1001, "a <" + "b" * 990 + "@example.org>", "a(b)@example.org"),
    *("ada @example.org", "ada@ example.org", "< ada@example.org >", "ada@example.org>", "Ada <ada@example.org> x", "[a]@b.example"),
]  # fmt: skip


@pytest.fixture
def ask(owner):
    """What SQL makes of an address: (address, rcpt, name, domain), or None where it refuses."""

    def asked(text):
        row = owner.execute("select (pgmail.parse_address(%s)).*", [text]).fetchone()
        return None if row[4] is not None else tuple(row[:4])

    return asked


def by_python(text):
    try:
        parsed = address.parse(text)
    except ValueError:
        return None
    return parsed.address, parsed.rcpt, parsed.name, parsed.domain


def by_idna(domain):
    """A-labels after UTS 46, then the rules of a host name; None where there are none."""
    try:
        return address.normalise_domain(domain)
    except ValueError:
        return None


def test_domains_become_the_a_labels_of_idna(owner):
    wrong = []
    for domain in DOMAINS:
        said = kit.one(owner, "select pgmail.domain_ascii(%s)", [domain])
        if said != by_idna(domain):
            wrong.append((domain, said, by_idna(domain)))
    assert wrong == []
    assert kit.one(owner, "select pgmail.domain_ascii('bücher.example')") == "xn--bcher-kva.example"


def test_a_domain_with_an_invisible_character_is_refused(owner):
    # UTS 46 would drop some of them in silence; a person should look instead.
    for invisible in "\u00ad\u200b\u200d\u2060\ufeff\ufe0f":
        assert kit.one(owner, "select pgmail.domain_ascii(%s)", [f"exa{invisible}mple.com"]) is None


def test_punycode_is_that_of_the_idna_package_for_any_letters(owner):
    @settings(max_examples=60)
    @given(
        st.text(
            st.characters(min_codepoint=0xA1, max_codepoint=0x2FA1F, categories=["Ll", "Lo"]),
            min_size=1,
            max_size=12,
        )
    )
    @example("ab中c")
    def promise(label):
        assert kit.one(owner, "select pgmail.punycode(%s)", [label]) == label.encode("punycode").decode(
            "ascii"
        )

    promise()


def test_a_domain_of_letters_means_the_same_to_both_sides(owner):
    label = st.text(st.sampled_from(_LETTERS + "-"), min_size=1, max_size=8)

    @settings(max_examples=150)
    @given(st.lists(label, min_size=1, max_size=3).map(".".join))
    def promise(domain):
        known, said = by_idna(domain), kit.one(owner, "select pgmail.domain_ascii(%s)", [domain])
        # idna refuses more: labels of mixed direction, a final mark. Where it has an answer, SQL has the same.
        assert said == known or known is None

    promise()


def test_a_table_of_addresses_is_accepted_refused_and_normalised_alike(ask):
    assert [(text, ask(text), by_python(text)) for text in ADDRESSES if ask(text) != by_python(text)] == []


def test_any_text_is_accepted_or_refused_and_normalised_alike(ask):
    piece = st.sampled_from(
        [
            *"abZ09.@<>\"\\ ,;:()[]+-_'",
            "example.org",
            "@example.org",
            "é",
            "Ж",
            "ß",
            "İ",
            "Σ",
            "\t",
            "\u2028",
            "\x7f",
        ]
    )

    @settings(max_examples=300)
    @given(
        st.lists(piece, max_size=8).map("".join),
        st.sampled_from(["", "@example.org", " <ada@example.org>", "@b.example>"]),
    )
    def promise(start, end):
        assert ask(start + end) == by_python(start + end)

    promise()


def test_lower_case_does_not_depend_on_the_locale_of_the_database(owner):
    # A Turkish one would make a dotless i of I, C would leave Ü.
    for text in ("INFO@EXAMPLE.COM", "ÜBER", "ЖИЯ", "İSTANBUL", "ΟΔΟΣ", "ÉÈÑ"):
        assert kit.one(owner, "select pgmail.lower_text(%s)", [text]) == address.lower(text)


def test_parsing_a_hostile_text_is_quick(owner):
    owner.execute("set statement_timeout = '2s'")
    for text in (
        '"' * 1000,
        '"' + "\\" * 999,
        "a." * 499 + "@",
        "<" * 999 + ">",
        "@" * 1000,
        "a" * 62 + ".a" * 300 + "@x",
    ):
        assert kit.one(owner, "select (pgmail.parse_address(%s)).fault is not null", [text])
