"""The inbox: every captured mail can be read, and none of them can do anything."""

import re
import socket
import time
import urllib.request
from email.message import EmailMessage
from pathlib import Path

import pytest
from litestar.testing import TestClient

from pgmail.dashboard.inbox import create_inbox
from pgmail.dashboard.server import serve_inbox
from pgmail.sandbox.inbox import Inbox

PNG = b"\x89PNG\r\n\x1a\n--"
HOSTILE = "<script>alert(1)</script>"


def put(folder: Path, number: int, message: EmailMessage | bytes, recipient: str = "ada@example.org") -> str:
    """Write a mail as the sink does; its id. Times are a second apart, from a moment long past."""
    octets = message if isinstance(message, bytes) else message.as_bytes()
    id_ = f"{1_700_000_000_000_000_000 + number * 10**9}-{number:08d}"
    head = f"Return-Path: <shop@example.com>\r\nDelivered-To: {recipient}\r\n".encode()
    (folder / f"{id_}.eml").write_bytes(head + octets)
    return id_


def a_mail(subject: str = "Hello", **parts: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Shop <shop@example.com>"
    message["To"] = "ada@example.org"
    message["Subject"] = subject
    message.set_content(parts.get("text", "Plain words\n"))
    if "html" in parts:
        message.add_alternative(parts["html"], subtype="html")
    return message


def with_picture() -> EmailMessage:
    message = a_mail(html='<p>See <img src="cid:sea"> and <img src="cid:none"></p>')
    html = message.get_payload()[1]
    html.add_related(PNG, "image", "png", cid="<sea>", filename="sea.png")
    message.add_attachment(b"%PDF-", "application", "pdf", filename="../e vil/in\u00e9.pdf")
    return message


@pytest.fixture
def inbox(tmp_path):
    return Inbox(tmp_path)


@pytest.fixture
def page(inbox):
    with TestClient(create_inbox(inbox), base_url="http://127.0.0.1") as client:
        yield client


def test_mails_are_listed_newest_first_and_by_words(tmp_path, inbox):
    first = put(tmp_path, 1, a_mail("First of all"))
    second = put(tmp_path, 2, a_mail("日本語の件名"), "bob@example.net")
    found, total = inbox.search()
    assert [listed.id for listed in found] == [second, first]
    assert (total, found[0].subject, found[0].recipient) == (2, "日本語の件名", "bob@example.net")
    assert [listed.id for listed in inbox.search("FIRST shop@")[0]] == [first]
    assert inbox.search("first bob") == ([], 0)
    assert inbox.search(start=1, count=1)[0][0].id == first


def test_a_mail_that_is_still_being_written_is_looked_at_again(tmp_path, inbox):
    id_ = put(tmp_path, 1, b"")
    assert inbox.search()[0][0].subject == ""
    put(tmp_path, 1, a_mail("Whole"))
    assert [(listed.id, listed.subject) for listed in inbox.search()[0]] == [(id_, "Whole")]


def test_mails_that_vanish_vanish_from_the_list_and_other_files_never_were_there(tmp_path, inbox):
    id_ = put(tmp_path, 1, a_mail())
    (tmp_path / "notes.eml").write_text("From: me\n\nno")
    assert inbox.search()[1] == 1
    (tmp_path / f"{id_}.eml").unlink()
    assert inbox.search() == ([], 0)
    assert Inbox(tmp_path / "absent").search() == ([], 0)


def test_a_mail_opens_with_text_html_headers_source_and_files(tmp_path, inbox):
    opened = inbox.open(put(tmp_path, 1, with_picture()))
    assert opened.text == "Plain words\n"
    assert 'src="data:image/png;base64,iVBORw0KGgotLQ=="' in opened.html
    assert 'src="cid:none"' in opened.html
    assert ("Subject", "Hello") in opened.headers
    assert opened.source.startswith("Return-Path: <shop@example.com>")
    assert [(file.filename, file.inline) for file in opened.attachments] == [
        ("sea.png", True),
        (".._e vil_in\u00e9.pdf", False),
    ]
    assert inbox.file(opened.listed.id, 1).body == b"%PDF-"
    assert inbox.file(opened.listed.id, 2) is None


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\xff\xfe\x00 no mail at all",
        b"Subject: =?utf-8?q?=ff?=\r\nContent-Type: text/plain; charset=x-none\r\n\r\nh\xe9llo",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n",
        b"From: <<>>,,\r\nTo: \r\nDate: yes\r\n\r\nbody",
    ],
)
def test_whatever_arrives_has_a_page(tmp_path, page, octets):
    id_ = put(tmp_path, 1, octets)
    for view in ("html", "text", "headers", "source"):
        assert page.get(f"/mail/{id_}", params={"view": view}).status_code == 200


@pytest.mark.parametrize(
    "id_", ["../secret", "1-1", "notes", "..%2f..%2fetc%2fpasswd", "1700000000-00000009"]
)
def test_nothing_but_captured_mail_can_be_opened(tmp_path, page, id_):
    (tmp_path.parent / "secret.eml").write_text("From: x\n\nsecret")
    for path in (f"/mail/{id_}", f"/mail/{id_}/html", f"/mail/{id_}/file/0"):
        answer = page.get(path)
        assert answer.status_code == 404
        assert "secret" not in answer.text


def test_what_a_mail_says_is_text_on_the_page_not_markup(tmp_path, page):
    message = a_mail(f"{HOSTILE} offer", text=HOSTILE, html=f"<b>{HOSTILE}</b>")
    message["X-Note"] = HOSTILE
    id_ = put(tmp_path, 1, message, f'"{HOSTILE}"@example.org')
    for view in ("html", "text", "headers", "source"):
        answer = page.get(f"/mail/{id_}", params={"view": view, "q": HOSTILE})
        assert "<script" not in answer.text
        assert "&lt;script&gt;" in answer.text


def test_pages_have_no_script_and_a_policy_that_forbids_it(tmp_path, page):
    id_ = put(tmp_path, 1, a_mail(html="<p>Hi</p>"))
    answer = page.get(f"/mail/{id_}")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'self';")
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=", answer.text)
    assert re.search(rf'<iframe class="body" sandbox src="/mail/{id_}/html"', answer.text)
    assert page.get("/inbox.css").headers["content-type"].startswith("text/css")


def test_a_mails_html_is_locked_up_wherever_it_is_shown(tmp_path, page):
    id_ = put(tmp_path, 1, a_mail(html=f"<p>Hi {HOSTILE}</p>"))
    answer = page.get(f"/mail/{id_}/html")
    assert HOSTILE in answer.text
    directives = answer.headers["content-security-policy"].split("; ")
    assert {"sandbox", "default-src 'none'", "img-src data:", "form-action 'none'"} <= set(directives)
    assert page.get(f"/mail/{put(tmp_path, 2, a_mail())}/html").status_code == 404


def test_attachments_are_downloads_never_pages(tmp_path, page):
    id_ = put(tmp_path, 1, with_picture())
    answer = page.get(f"/mail/{id_}/file/1")
    assert answer.content == b"%PDF-"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''.._e%20vil_in%C3%A9.pdf"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "image/png" in page.get(f"/mail/{id_}").text


def test_long_lists_have_pages_and_searches_keep_their_words(tmp_path, page):
    for number in range(1, 121):
        put(tmp_path, number, a_mail(f"Number {number}"))
    second = page.get("/", params={"q": "number", "page": 2})
    assert "2 of 3" in second.text
    assert "Number 70<" in second.text
    assert 'href="/?q=number&amp;page=3"' in second.text
    assert 'href="/?q=number" rel="prev"' in second.text
    assert "Nothing matches" in page.get("/", params={"q": "none of these"}).text


def test_a_list_that_grows_is_asked_for_again_and_a_settled_one_is_not(tmp_path, page):
    assert page.get("/").headers["refresh"] == "2"
    id_ = put(tmp_path, 1, a_mail())
    assert "refresh" not in page.get("/").headers
    (tmp_path / f"{id_}.eml").rename(tmp_path / f"{time.time_ns()}-00000001.eml")
    assert page.get("/").headers["refresh"] == "2"
    assert "refresh" not in page.get("/", params={"q": "x"}).headers


def test_a_view_that_a_mail_does_not_have_falls_back_to_one_that_it_has(tmp_path, page):
    id_ = put(tmp_path, 1, a_mail())
    assert "Plain words" in page.get(f"/mail/{id_}", params={"view": "html"}).text


def test_other_names_for_this_machine_are_refused(tmp_path, page):
    put(tmp_path, 1, a_mail("Private"))
    answer = page.get("/", headers={"Host": "evil.example"})
    assert answer.status_code == 421
    assert "Private" not in answer.text
    assert page.get("/", headers={"Host": "localhost:8026"}).status_code == 200


def test_a_port_in_use_is_stepped_around(tmp_path, inbox):
    put(tmp_path, 1, a_mail("Over the wire"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serve_inbox(inbox, port) as url:
            assert url != f"http://127.0.0.1:{port}/"
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert "Over the wire" in answer.read().decode()
