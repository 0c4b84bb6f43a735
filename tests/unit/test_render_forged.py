"""Whatever a text holds, a message has the headers that were meant and no others; the standard library reads it."""

from datetime import UTC, datetime
from email import message_from_bytes, policy

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgmail.domain.mail import Mail, Mailbox, Part
from pgmail.errors import TemplateFault
from pgmail.render.mime import assemble
from pgmail.render.templates import Bundle, Source, compile_bundle

EVIL = "A\r\nBcc: evil@example.net\r\n\r\nbody"
# All of Unicode: the law at the door is not asked here.
anything = st.text(st.characters(), max_size=60) | st.builds(
    "{}{}{}".format,
    st.text(max_size=5),
    st.sampled_from(["\r", "\n", "\r\n", "\v", "\f", "\x85", "\u2028", "\u2029", "\0", "\ud800", "\u202e", EVIL]),
    st.sampled_from(["Bcc: evil@example.net", " x", "\tx", ": y", ""]),
)  # fmt: skip

FIELDS = sorted(
    [
        *("Date", "From", "To", "Cc", "Reply-To", "Subject", "Message-ID", "MIME-Version", "Content-Type"),
        *("X-Shop", "List-Unsubscribe"),
    ]
)


@given(anything, anything, anything, anything)
@example(EVIL, EVIL, EVIL, EVIL)
@example("x" * 3000, "é" * 2000, "x" * 1200, "=?utf-8?q?=0D=0ABcc:_evil@example.net?=")
def test_no_text_makes_a_header_of_its_own(name, subject, value, filename):
    person = Mailbox("ada@example.org", name)
    wire = assemble(
        Mail(
            message_id="1@example.com",
            date=datetime(2026, 11, 21, tzinfo=UTC),
            sender=Mailbox("shop@example.com", name),
            to=(person,),
            cc=(person,),
            reply_to=(person,),
            subject=subject,
            text="Hello",
            html=None,
            headers=(("X-Shop", value), ("List-Unsubscribe", value)),
            parts=(Part(filename=filename, content_type="text/csv", body=b"x", content_id=None),),
        )
    )
    read = message_from_bytes(wire.body, policy=policy.SMTP.clone(max_line_length=None))
    assert sorted(read.keys()) == FIELDS
    parts = list(read.iter_parts())
    assert len(parts) == 2
    for part in parts:
        assert set(part.keys()) <= {"Content-Type", "Content-Transfer-Encoding", "Content-Disposition"}
    assert parts[0].get_content().rstrip() == "Hello"
    head = wire.body.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert max(map(len, head)) <= 998
    assert not any(line.lower().startswith(b"bcc:") for line in head)


@pytest.mark.parametrize("text", ["\r\nBcc: evil@example.net", "\n", "\v", "\x85", "\u2028", "\0", "\x1b"])
def test_a_subject_that_a_template_makes_holds_no_line_end(text):
    compiled = compile_bundle(Bundle(Source("Hi {{ name }}", "Hello {{ name }}", None)))
    with pytest.raises(TemplateFault, match="line ends or control characters"):
        compiled.render({"name": f"Ada{text}"})
    assert compiled.render({"name": "Ada"}).subject == "Hi Ada"
