"""Addresses: what is taken, how it is normalised, and why the rest is refused."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmail.domain.address import Address, lower, normalise_domain, parse, with_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a@example.org", ("a@example.org", "a@example.org", None, "example.org")),
        ("  Ada@Example.ORG ", ("ada@example.org", "Ada@example.org", None, "example.org")),
        ("<a@b.cz>", ("a@b.cz", "a@b.cz", None, "b.cz")),
        ("Ada Lovelace <A@b.cz>", ("a@b.cz", "A@b.cz", "Ada Lovelace", "b.cz")),
        ('"Lovelace, \\"Ada\\"" <a@b.cz>', ("a@b.cz", "a@b.cz", 'Lovelace, "Ada"', "b.cz")),
        ('"" <a@b.cz>', ("a@b.cz", "a@b.cz", None, "b.cz")),
        ("Žofie <ž@bücher.example>", ("ž@xn--bcher-kva.example", "ž@xn--bcher-kva.example", "Žofie", None)),
        ('"john doe"@b.cz', ('"john doe"@b.cz', '"john doe"@b.cz', None, "b.cz")),
        ("a@FAß.de", ("a@xn--fa-hia.de", "a@xn--fa-hia.de", None, "xn--fa-hia.de")),
        ("a@例子。测试", ("a@xn--fsqu00a.xn--0zwm56d", "a@xn--fsqu00a.xn--0zwm56d", None, None)),
        ("a@xn--bcher-kva.example", ("a@xn--bcher-kva.example", "a@xn--bcher-kva.example", None, None)),
        ("a@ab--cd.org", ("a@ab--cd.org", "a@ab--cd.org", None, None)),
    ],
)
def test_an_address_is_normalised(text, expected):
    address, rcpt, name, domain = expected
    assert parse(text) == Address(address, rcpt, name, domain or address.rpartition("@")[2])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no @"),
        ("nobody", "no @"),
        ("@b.cz", "before the @ is empty"),
        ("a" * 65 + "@b.cz", "64 octets"),
        ("é" * 33 + "@b.cz", "64 octets"),
        (".a@b.cz", "dot at an end"),
        ("a..b@b.cz", "two in a row"),
        ("a b@b.cz", "in quotes"),
        ("a@b@c.cz", "one address"),
        ("a@b.cz, c@d.cz", "one address"),
        ("a@b.cz;c@d.cz", "one address"),
        ("a@localhost", "two labels"),
        ("a@b..cz", "empty label"),
        ("a@b.cz.", "empty label"),
        ("a@-b.cz", "hyphens"),
        ("a@b_c.cz", "hyphens"),
        ("a@" + "b" * 64 + ".cz", "63 octets"),
        ("a@" + "b." * 130 + "cz", "253 octets"),
        ("a@" + "ü" + "b" * 63 + ".cz", "internationalised"),
        ("a@" + ".".join(["ü" * 50] * 5), "253 octets|internationalised"),
        ("a@" + ".".join(["ü" * 30] * 7), "253 octets"),
        ("a@1.2.3.4", "is a number"),
        ("a@[1.2.3.4]", "literals"),
        ("a@☃.net", "internationalised"),
        ("a" * 60 + "@" + "b" * 60 + "." + "c" * 60 + "." + "d" * 60 + "." + "e" * 30, "254 octets"),
        ("a@b.cz\n", "control"),
        ("A\u2028 <a@b.cz>", "control"),
        ("a\x85@b.cz", "control"),
        ("a@b.cz>", "without a <"),
        ('"A <a@b.cz>', "do not close"),
        ('"A" B <a@b.cz>', "do not close"),
        ('A "B" <a@b.cz>', "in quotes"),
        ("A <b> <a@b.cz>", "in quotes"),
        ("x" * 1000 + " <a@b.cz>", "1,000 octets"),
        ("é" * 600 + " <a@b.cz>", "1,000 octets"),
    ],
)
def test_what_is_no_address_is_refused_with_its_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse(text)


def test_a_name_may_be_given_apart_but_not_twice():
    assert with_name("a@b.cz", " Ada ").name == "Ada"
    assert with_name("a@b.cz", "  ").name is None
    assert with_name("a@b.cz", None) == parse("a@b.cz")
    with pytest.raises(ValueError, match="name inside"):
        with_name("Ada <a@b.cz>", None)
    with pytest.raises(ValueError, match="control"):
        with_name("a@b.cz", "A\nB")


def test_lower_case_is_that_of_postgresql():
    assert lower("ABC") == "abc"
    assert lower("ΟΔΟΣ") == "οδοσ"  # no final sigma
    assert lower("İÉ") == "ié"


@pytest.mark.parametrize(
    "text", ['"' * 999, '"' + "\\" * 998, "a." * 499, "<" * 999 + ">", "(" * 500 + "@b.cz", "a@" + "ü." * 200]
)
def test_hostile_text_costs_no_time(text):
    began = time.process_time()
    for _ in range(20):
        with pytest.raises(ValueError):
            parse(text)
    assert time.process_time() - began < 1


def test_a_huge_text_is_refused_at_its_length():
    with pytest.raises(ValueError, match="1,000 octets"):
        parse("é" * 10_000_000)


@settings(max_examples=100)
@given(st.text(max_size=80))
def test_any_text_is_an_address_or_a_reason(text):
    with contextlib.suppress(ValueError):
        address = parse(text.encode("utf-8", "replace").decode())
        assert address.domain.isascii()
        assert address.domain == normalise_domain(address.domain)


@settings(max_examples=60)
@given(
    st.from_regex(
        r"[a-zA-Z0-9+_]{1,20}(\.[a-z0-9]{1,10}){0,2}@([a-z0-9]{1,10}\.){1,3}[a-z]{2,6}", fullmatch=True
    )
)
def test_a_normal_form_is_its_own_normal_form(text):
    address = parse(text)
    assert parse(address.rcpt) == address
    assert parse(address.address).address == address.address
