"""What goes on the wire obeys the RFCs and reads back as what went in; other people's parsers are the judges."""

from __future__ import annotations

import quopri
import re
from binascii import b2a_qp
from datetime import UTC, datetime, timedelta, timezone
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgmail.domain.mail import Mail, Mailbox, Part
from pgmail.render import headers
from pgmail.render.encodings import encode_text
from pgmail.render.mime import Wire, assemble

DATE = datetime(2026, 11, 21, 22, 3, 54, 123456, tzinfo=UTC)

words = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=90)
line = (
    st.sampled_from(
        ["", ".", "..", " ", "\t", "=", "-- ", "From me", "x" * 998, "x" * 999, "é" * 80, "日本" * 40]
    )
    | st.text(st.characters(max_codepoint=126, exclude_characters="\0\r\n"), max_size=120)
    | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=60)
    | st.builds(
        lambda word, times: word * times, st.sampled_from(["word ", "a=b ", "ü", "x"]), st.integers(0, 90)
    )
)
body = st.builds(
    lambda end, lines: end.join(lines), st.sampled_from(["\n", "\r\n"]), st.lists(line, max_size=8)
)
part = st.builds(
    Part,
    filename=words,
    content_type=st.sampled_from(["application/pdf", "image/png", "text/csv; charset=utf-8"]),
    body=st.binary(max_size=300),
    content_id=st.none() | st.from_regex(r"[a-z0-9]{1,20}@[a-z]{1,9}", fullmatch=True),
)
local = st.from_regex(r"[a-z0-9]{1,12}(\.[a-z0-9]{1,12})?", fullmatch=True)
mailbox = st.builds(
    Mailbox,
    local.map(lambda name: f"{name}@example.org"),
    st.none() | words.filter(lambda name: name.strip()),
)
mail = st.builds(
    Mail,
    message_id=st.just("0190.1@mail.example.com"),
    date=st.just(DATE),
    sender=mailbox,
    to=st.lists(mailbox, max_size=4).map(tuple),
    cc=st.lists(mailbox, max_size=2).map(tuple),
    reply_to=st.lists(mailbox, max_size=1).map(tuple),
    subject=words,
    text=st.none() | body,
    html=st.none() | body,
    headers=words.map(lambda value: (("X-Note", value),)),
    parts=st.lists(part, max_size=3).map(tuple),
)


def lines(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") else text + "\n"


def leaves(message: EmailMessage) -> list[EmailMessage]:
    return [part for part in message.walk() if not part.is_multipart()]


def keeps_the_rules(wire: Wire, *, eightbit: bool) -> EmailMessage:
    """RFC 5322 and 2045-2049 as far as a parser forgives; returns the message parsed."""
    assert wire.body.endswith(b"\r\n")
    assert b"\0" not in wire.body
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", wire.body)
    assert max(map(len, wire.body.split(b"\r\n"))) <= 998
    assert wire.body.isascii() or wire.eightbit
    assert eightbit or not wire.eightbit
    message = message_from_bytes(wire.body, policy=policy.default)
    for found in message.walk():
        assert not found.defects
        for name, value in found.items():
            assert not value.defects, (name, value)
    for leaf in leaves(message):
        raw = leaf.get_payload().encode("utf-8", "surrogateescape")
        encoding = leaf["Content-Transfer-Encoding"]
        if encoding == "quoted-printable":
            assert raw.isascii()
            assert max(map(len, re.split(rb"\r?\n", raw))) <= 76
        elif encoding == "base64":
            assert max(map(len, re.split(rb"\r?\n", raw))) <= 76
        else:
            assert encoding == ("7bit" if raw.isascii() else "8bit")
    return message


@settings(max_examples=120)
@given(mail, st.booleans())
def test_any_mail_parses_without_a_defect_and_reads_back(mail, eightbit) -> None:
    wire = assemble(mail, eightbit=eightbit)
    message = keeps_the_rules(wire, eightbit=eightbit)
    assert message["Subject"] == mail.subject
    assert message["X-Note"].strip() == mail.headers[0][1].strip()
    for field, boxes in (
        ("From", (mail.sender,)),
        ("To", mail.to),
        ("Cc", mail.cc),
        ("Reply-To", mail.reply_to),
    ):
        shown = [] if message[field] is None else message[field].addresses
        assert [box.addr_spec for box in shown] == [box.address for box in boxes]
    for subtype, text in (("plain", mail.text), ("html", mail.html)):
        found = message.get_body((subtype,))
        if text is not None:
            assert found.get_payload(decode=True).decode().replace("\r\n", "\n") == lines(text)
    files = [leaf for leaf in leaves(message) if leaf.get_content_disposition() is not None]
    inline_first = sorted(mail.parts, key=lambda part: part.content_id is None or mail.html is None)
    assert len(files) == len(inline_first)
    for leaf, part in zip(files, inline_first, strict=True):
        assert leaf.get_payload(decode=True) == part.body
        assert (leaf.get_filename() or "") == part.filename.strip()  # the reader strips
    assert assemble(mail, eightbit=eightbit) == wire


@settings(max_examples=40)
@given(mail, st.booleans())
def test_a_signature_made_by_others_over_our_bytes_holds(dkim_key, mail, eightbit) -> None:
    dkim = pytest.importorskip("dkim")
    private, record = dkim_key
    message = assemble(mail, eightbit=eightbit).body
    for how in ((b"relaxed", b"relaxed"), (b"simple", b"simple"), (b"relaxed", b"simple")):
        signature = dkim.sign(message, b"key", b"example.org", private, canonicalize=how)
        assert dkim.verify(signature + message, dnsfunc=lambda _name, **_: record)
    fields, found = dkim.rfc822_parse(message)
    assert found == message.partition(b"\r\n\r\n")[2]
    assert [name for name, _ in fields][:2] == [b"Date", b"From"]
    # Relays may fold anew and trim blanks; relaxed is made for that, and what we write gives it nothing to do.
    tampered = message.replace(b"From: ", b"From:  ", 1)
    signature = dkim.sign(message, b"key", b"example.org", private, canonicalize=(b"relaxed", b"relaxed"))
    assert dkim.verify(signature + tampered, dnsfunc=lambda _name, **_: record)
    assert not dkim.verify(signature + message + b"x\r\n", dnsfunc=lambda _name, **_: record)


@pytest.fixture(scope="module")
def dkim_key() -> tuple[bytes, bytes]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, b"v=DKIM1; k=rsa; p=" + b"".join(public.splitlines()[1:-1])


@settings(max_examples=150)
@given(body)
@example("x" * 74 + " \né")
@example("é" + "x" * 73 + "\t\n")
@example("é\n" + "x" * 75 + ".\n.\n")
def test_quoted_printable_is_that_of_the_library_where_the_library_keeps_lines_short(text) -> None:
    chosen, encoded = encode_text(text, eightbit=False)
    lf = lines(text).encode()
    if chosen != "quoted-printable":
        assert chosen == "base64" or encoded == lf.replace(b"\n", b"\r\n")
        return
    assert max(map(len, encoded.split(b"\r\n"))) <= 76
    assert quopri.decodestring(encoded).replace(b"\r\n", b"\n") == lf
    library = b2a_qp(lf.replace(b"\n", b"\r\n"), istext=True)
    if max(map(len, library.split(b"\r\n"))) <= 76:
        assert encoded == library


@settings(max_examples=150)
@given(body)
@example("é\0")
@example("é" * 499)
@example("é" * 500)
def test_eight_bits_are_used_only_where_they_may_travel(text) -> None:
    chosen, encoded = encode_text(text, eightbit=True)
    assert encoded.endswith(b"\r\n")
    assert b"\0" not in encoded
    assert max(map(len, encoded.split(b"\r\n"))) <= 998
    if chosen == "8bit":
        assert not encoded.isascii()
        assert encoded == lines(text).encode().replace(b"\n", b"\r\n")
    else:
        assert encoded.isascii()
        short = max(len(line) for line in lines(text).encode().split(b"\n")) <= 998
        assert chosen == ("7bit" if text.isascii() and short and "\0" not in text else chosen)
        assert text.isascii() or not short or "\0" in text


def test_the_date_keeps_its_offset_even_where_moments_are_equal() -> None:
    for offset in (0, 120, -330, 0):
        zone = timezone(timedelta(minutes=offset))
        field = headers.date(DATE.astimezone(zone))
        assert message_from_bytes(field + b"\r\n", policy=policy.default)["Date"].datetime.utcoffset() == (
            timedelta(minutes=offset)
        )


@pytest.mark.parametrize(
    "boxes",
    [
        (Mailbox("a@example.org"),),
        (Mailbox("x" * 60 + "@" + "y" * 60 + ".example"),),
        (Mailbox("a\r\nBcc: b@example.org"),),
        (Mailbox("zoë@example.org"),),
    ],
)
def test_one_bare_address_is_written_as_among_several(boxes) -> None:
    several = headers.mailboxes("To", (*boxes, Mailbox("z@example.org")))
    bare = headers.mailboxes("To", boxes)
    assert bare.count(b"\n") == 1
    assert several.startswith(bare.removesuffix(b"\r\n") + b",")


@pytest.mark.parametrize(
    "value", ["plain", "", " led", "trailed ", "=?x", "ü", "x" * 69, "x" * 70, "a\tb", "a  b"]
)
def test_a_short_header_is_written_as_a_long_one_would_be(value) -> None:
    assert headers.unstructured("Subject", value) == headers._unstructured("Subject", value, cut=False)


@pytest.mark.parametrize("name", ["", "X A", "X-A:", "X-A: b\r\nBcc", "X-A\n", "X-\u00e4", "X-A\x00"])
def test_a_name_that_is_no_header_name_is_refused(name):
    for value in ("b", "b" * 100):
        with pytest.raises(ValueError, match="no name"):
            headers.unstructured(name, value)
