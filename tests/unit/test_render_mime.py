"""What is assembled reads back as what went in; the standard library's parser is the judge."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmail.domain.mail import Mail, Mailbox, Part
from pgmail.render import headers
from pgmail.render.encodings import Encoded, base64_lines, encode_text
from pgmail.render.mime import Wire, assemble

DATE = datetime(2026, 11, 21, 22, 3, 54, 123456, tzinfo=UTC)
SHOP = Mailbox("shop@example.com", "The Shop")
ADA = Mailbox("ada@example.org", "Ada")


def mail(**changes) -> Mail:
    fields = {
        "message_id": "0190.1@mail.example.com",
        "date": DATE,
        "sender": SHOP,
        "to": (ADA,),
        "text": "Hi\n",
    }
    return Mail(**(fields | changes))


def read(wire: Wire) -> EmailMessage:
    message = message_from_bytes(wire.body, policy=policy.default)
    for part in message.walk():
        assert not part.defects, part.defects
        for name, value in part.items():
            assert not value.defects, (name, value, value.defects)
    return message


def proper(wire: Wire) -> None:
    """The rules of the wire that no parser would report."""
    assert wire.body.endswith(b"\r\n")
    bare = wire.body.replace(b"\r\n", b"")
    assert b"\r" not in bare
    assert b"\n" not in bare
    assert b"\0" not in wire.body
    assert max(map(len, wire.body.split(b"\r\n"))) <= 998
    if not wire.smtputf8 and not wire.eightbit:
        assert wire.body.isascii()
    head = wire.body.split(b"\r\n\r\n")[0]
    for line in head.split(b"\r\n"):
        assert line.strip(), "a folded line must not be blank"
        if b"=?" in line:
            assert len(line) <= 76, line
    for word in re.findall(rb"=\?utf-8\?[bq]\?[^?]*\?=", head):
        assert len(word) <= 75


def lines(text: str) -> str:
    """What a reader gets of a body: LF line ends, and one at the end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") else text + "\n"


def shown(wire: Wire, field: str) -> str:
    """The display name of the first mailbox. Some versions of the new parser put a blank between two encoded
    words of a name (RFC 2047, section 6.2, forbids it); the old one does not."""
    new = read(wire)[field].addresses[0].display_name
    raw = message_from_bytes(wire.body, policy=policy.compat32)[field]
    words = re.match(r"((?:=\?[^ ]*\?=\s*)+)<", raw)
    return str(make_header(decode_header(words.group(1).strip()))) if words else new


def content(message: EmailMessage, subtype: str) -> str:
    part = message.get_body((subtype,))
    return part.get_payload(decode=True).decode().replace("\r\n", "\n")


def test_a_plain_mail_has_its_headers_in_order_and_is_seven_bit() -> None:
    wire = assemble(mail(subject="Hello", headers=(("X-Campaign", "spring"),)))
    assert wire == Wire(
        body=(
            b"Date: Sat, 21 Nov 2026 22:03:54 +0000\r\nFrom: The Shop <shop@example.com>\r\n"
            b"To: Ada <ada@example.org>\r\nSubject: Hello\r\nMessage-ID: <0190.1@mail.example.com>\r\n"
            b'MIME-Version: 1.0\r\nContent-Type: text/plain; charset="utf-8"\r\n'
            b"Content-Transfer-Encoding: 7bit\r\nX-Campaign: spring\r\n\r\nHi\r\n"
        ),
        smtputf8=False,
        eightbit=False,
    )


@pytest.mark.parametrize(
    ("parts", "text", "html", "structure"),
    [
        ((), "t", None, "plain"),
        ((), None, "h", "html"),
        ((), None, None, "plain"),
        ((), "t", "h", "alternative(plain html)"),
        (("cid",), "t", "h", "alternative(plain related(html png))"),
        (("cid",), None, "h", "related(html png)"),
        (("cid",), "t", None, "mixed(plain png)"),
        ((None,), "t", None, "mixed(plain png)"),
        ((None, "cid"), "t", "h", "mixed(alternative(plain related(html png)) png)"),
        ((None,), None, "h", "mixed(html png)"),
    ],
)
def test_structure_follows_what_there_is(parts, text, html, structure) -> None:
    files = tuple(
        Part(filename="a.png", content_type="image/png", body=b"\x89PNG", content_id=content_id)
        for content_id in parts
    )
    wire = assemble(mail(text=text, html=html, parts=files))
    proper(wire)

    def draw(part) -> str:
        kind = part.get_content_subtype()
        return f"{kind}({' '.join(map(draw, part.iter_parts()))})" if part.is_multipart() else kind

    message = read(wire)
    assert draw(message) == structure
    for part in message.walk():
        if part.get_content_type() == "image/png":
            assert part.get_content() == b"\x89PNG"
            assert part.get_filename() == "a.png"


SUBJECTS = [
    "",
    "Hello",
    " led and trailed by blanks  ",
    "two  blanks",
    "Grüße aus Köln",
    "日本語の件名です" * 20,
    "👩‍👩‍👧‍👦 family " * 12,
    "=?utf-8?q?not_really?=",
    "x" * 998,
    "word " * 150 + "end",
    "a" * 70 + " " + "b" * 70,
    "ünï " * 100,
    "_?=\t",
    'Re: [ticket 12] \\o/ "quoted" (comment) <tag>',
]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_subject_reads_back(subject) -> None:
    wire = assemble(mail(subject=subject))
    proper(wire)
    head = wire.body.split(b"\r\n\r\n")[0]
    assert max(map(len, head.split(b"\r\n"))) <= 78
    assert read(wire)["Subject"] == subject.replace("\t", " ")


@pytest.mark.parametrize(
    "name",
    [
        "Ada Lovelace",
        "Lovelace, Ada",
        'Ada "the first" L\\',
        "Zoë",
        "山田 太郎",
        "x" * 200,
        "many words " * 12 + "end",
        " blank ",
        "a  b",
        "=?utf-8?q?x?=",
        "O'Neil @ home; (x) <y>",
        "🎉" * 40,
    ],
)
def test_a_display_name_reads_back(name) -> None:
    box = Mailbox("a@example.org", name)
    wire = assemble(mail(sender=box, to=(box, ADA), cc=(box,), reply_to=(box,)))
    proper(wire)
    message = read(wire)
    for field in ("From", "To", "Cc", "Reply-To"):
        assert message[field].addresses[0].addr_spec == "a@example.org"
        assert shown(wire, field) == name
    assert [box.addr_spec for box in message["To"].addresses] == ["a@example.org", "ada@example.org"]


def test_fifty_recipients_fold_between_addresses() -> None:
    boxes = tuple(Mailbox(f"person{i}@example.org", f"Person {i}") for i in range(50))
    wire = assemble(mail(to=boxes))
    proper(wire)
    assert max(map(len, wire.body.split(b"\r\n"))) <= 78
    assert [a.addr_spec for a in read(wire)["To"].addresses] == [box.address for box in boxes]


def test_without_visible_recipients_none_are_disclosed() -> None:
    assert b"\r\nTo: undisclosed-recipients:;\r\n" in assemble(mail(to=())).body
    assert b"\r\nTo:" not in assemble(mail(to=(), cc=(ADA,))).body


def test_a_non_ascii_local_part_needs_smtputf8_and_stands_raw() -> None:
    wire = assemble(mail(to=(Mailbox("zoë@example.org", "Zoë"),)))
    assert wire.smtputf8
    assert not wire.eightbit
    assert "=?utf-8?q?Zo=C3=AB?= <zoë@example.org>".encode() in wire.body


def test_a_domain_goes_out_in_a_labels() -> None:
    wire = assemble(mail(to=(Mailbox("a@bücher.example"), Mailbox("a@\u2603\u200d.example"))))
    assert b"a@xn--bcher-kva.example" in wire.body


@pytest.mark.parametrize("name", ["X-Short", "X-" + "Long-" * 14])
def test_own_headers_read_back_and_urls_stay_whole(name) -> None:
    url = "<https://example.com/" + "u" * 300 + ">"
    values = [url, f"{url}, <mailto:x@example.com>", "Grüße", "", "a" * 1900, "x  y " * 30]
    wire = assemble(mail(headers=tuple((f"{name}{i}", value) for i, value in enumerate(values))))
    proper(wire)
    assert url.encode() in wire.body
    message = read(wire)
    for i, value in enumerate(values):
        assert message[f"{name}{i}"].strip() == value.strip()


def test_control_characters_cannot_start_a_header() -> None:
    wire = assemble(
        mail(
            subject="a\r\nBcc: x@example.com",
            headers=(("X-A", "b\nBcc: y@example.com"),),
            sender=Mailbox("a@example.org", "n\r\nBcc: z@example.com"),
            message_id="1\r\nBcc: x@y",
        )
    )
    proper(wire)
    message = message_from_bytes(wire.body, policy=policy.default)
    assert message["Bcc"] is None
    assert message["Subject"] == "a Bcc: x@example.com"


@pytest.mark.parametrize(
    "filename",
    [
        "a.pdf",
        "with blank.pdf",
        'quo"te\\.pdf',
        "rechnung_müller.pdf",
        "請求書.pdf",
        "long" * 60 + ".pdf",
        "🎉" * 60,
        "50%.txt",
        "semi;colon=.txt",
        "it's*.txt",
        "=?utf-8?q?x?=",
    ],
)
def test_a_filename_reads_back(filename) -> None:
    part = Part(filename=filename, content_type="application/pdf", body=b"%PDF")
    wire = assemble(mail(parts=(part,)))
    proper(wire)
    (file,) = read(wire).iter_attachments()
    assert file.get_filename() == filename
    assert file.get_content_disposition() == "attachment"


def test_an_attachment_without_a_name_is_still_one() -> None:
    wire = assemble(mail(parts=(Part(filename="", content_type="nonsense", body=b""),)))
    (file,) = read(wire).iter_attachments()
    assert file.get_content_type() == "application/octet-stream"
    assert file.get_content() == b""


def test_content_type_parameters_and_content_ids_survive() -> None:
    parts = (
        Part(
            filename="a.csv",
            content_type="text/csv; charset=utf-8; header=present",
            body=b"a\n",
            content_id="<x@y>",
        ),
        Part(filename="b", content_type='text/x; a="1;2"', body=b"b", content_id="lögo 1"),
    )
    message = read(assemble(mail(html="<img src='cid:x@y'>", parts=parts)))
    first, second = (part for part in message.walk() if part["Content-ID"])
    assert first.get_param("header") == "present"
    assert first["Content-ID"] == "<x@y>"
    assert second["Content-ID"] == "<l%C3%B6go%201>"
    assert second.get_param("a") == "1;2"
    assert second.get_content_disposition() == "inline"


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("message/rfc822", b"Subject: x\r\n\r\nhi\r\n", "message/rfc822"),
        ("message/rfc822", b"Subject: x\n\nhi\n", "application/octet-stream"),
        ("message/rfc822", "Subject: ü\r\n\r\n".encode(), "application/octet-stream"),
        ("message/rfc822", b"Subject: x\r\n\r\n" + b"x" * 999, "application/octet-stream"),
        ("multipart/mixed; boundary=x", b"--x--\r\n", "application/octet-stream"),
    ],
)
def test_a_message_is_attached_unencoded_or_as_octets(kind, body, expected) -> None:
    wire = assemble(mail(parts=(Part(filename="m.eml", content_type=kind, body=body),)))
    proper(wire)
    (file,) = read(wire).iter_attachments()
    assert file.get_content_type() == expected
    if expected == "message/rfc822":
        assert b"Content-Transfer-Encoding: 7bit" in wire.body
        assert file.get_content()["Subject"] == "x"
    else:
        assert file.get_content() == body


@pytest.mark.parametrize(
    ("text", "eightbit", "encoding"),
    [
        ("plain", False, "7bit"),
        ("plain", True, "7bit"),
        ("", False, "7bit"),
        ("x" * 998, False, "7bit"),
        ("x" * 999, False, "quoted-printable"),
        ("ok\n" * 500 + "x" * 999 + "\nok", True, "quoted-printable"),
        ("ok\n" * 5000, False, "7bit"),
        ("nul \0", True, "quoted-printable"),
        ("Grüße, and then lots of ASCII", False, "quoted-printable"),
        ("Grüße", True, "8bit"),
        ("日本語" * 10, False, "base64"),
        ("\ud800", False, "7bit"),
    ],
)
def test_the_transfer_encoding_fits_the_text(text, eightbit, encoding) -> None:
    chosen, body = encode_text(text, eightbit=eightbit)
    if text != "\ud800":
        assert chosen == encoding
    assert body.endswith(b"\r\n")
    wire = assemble(mail(text=text, html="<p>x</p>"), eightbit=eightbit)
    assert wire.eightbit == (encoding == "8bit")
    if "\0" not in text:
        assert content(read(wire), "plain") == lines(text).encode("utf-8", "replace").decode()


@pytest.mark.parametrize(
    "text",
    [
        ".\n..\n.dot\n",
        "trailing blank \nand tab\t\n",
        "ümlaut trailing \n.\n \n",
        "a\rb\r\nc\nd",
        "From me\n\n\n",
        "=3D literal = ü",
        "é" * 5000,
        "\n\n",
        "-- \nsignature",
    ],
)
def test_a_body_reads_back_whatever_its_lines(text) -> None:
    for changes in ({"text": text}, {"text": text, "html": text}, {"text": None, "html": text}):
        for eightbit in (False, True):
            wire = assemble(mail(**changes), eightbit=eightbit)
            proper(wire)
            for subtype in ("plain", "html"):
                if changes.get("html" if subtype == "html" else "text") is not None:
                    assert content(read(wire), subtype) == lines(text)


def test_a_body_that_holds_the_boundary_gets_another_one() -> None:
    first = assemble(mail(text="a", html="b"))
    boundary = read(first).get_boundary()
    text = f"--{boundary}\n--{boundary}--\n"
    second = assemble(mail(text=text, html="b"))
    assert read(second).get_boundary() != boundary
    assert content(read(second), "plain") == text


def test_the_same_mail_gives_the_same_bytes() -> None:
    part = Part(filename="a", content_type="text/plain", body=b"x" * 1000)
    assert assemble(mail(html="x", parts=(part,))) == assemble(mail(html="x", parts=(part,)))


def test_encoded_attachments_are_kept_within_bounds() -> None:
    kept = Encoded(limit_bytes=10_000)
    bodies = [bytes([i]) * 500 for i in range(30)]
    for body in (*bodies, bodies[-1]):
        assert kept.get(body) == base64_lines(body)
    assert 0 < kept.held_bytes <= 10_000
    kept.get(b"x" * 100_000)
    assert kept.held_bytes <= 10_000


def test_encoded_words_never_split_a_character() -> None:
    for text in ("é🎉a" * 60, "aé" * 80, "🎉" * 80):
        for first in (20, 60, 75):
            for word in headers.encoded_words(text, first):
                assert len(word) <= 75
                decoded = message_from_bytes(f"Subject: {word}\r\n\r\n".encode(), policy=policy.default)
                assert "\ufffd" not in decoded["Subject"]


_text = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=120)
_body = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=300)
_lines = st.lists(
    st.sampled_from([".", "..", " ", "\t", "=", "x " * 40, "é" * 80, "-- ", "", "a" * 1100]), max_size=6
)


@settings(max_examples=60)
@given(
    subject=_text,
    name=_text,
    filename=_text.filter(bool),
    body=_body,
    odd=_lines,
    octets=st.binary(max_size=200),
    html=st.booleans(),
    eightbit=st.booleans(),
)
def test_whatever_is_assembled_reads_back(
    *, subject, name, filename, body, odd, octets, html, eightbit
) -> None:
    text = body + "\n".join(odd)
    part = Part(filename=filename, content_type="application/pdf", body=octets)
    wire = assemble(
        mail(
            subject=subject,
            sender=Mailbox("a@example.org", name or None),
            text=text,
            html=text if html else None,
            parts=(part,),
        ),
        eightbit=eightbit,
    )
    proper(wire)
    message = read(wire)
    assert message["Subject"] == subject
    assert shown(wire, "From") == name
    assert content(message, "plain") == lines(text)
    if html:
        assert content(message, "html") == lines(text)
    (file,) = message.iter_attachments()
    assert file.get_filename() == filename.strip()  # the reader strips
    assert file.get_content() == octets
