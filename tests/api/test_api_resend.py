"""Resend's own Python SDK, unmodified, against the real server: only its URL is changed."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
import resend
from resend.exceptions import MissingApiKeyError, MissingRequiredFieldsError, ResendError, ValidationError

from tests.api.conftest import EMAIL
from tests.api.test_api_server import serving


@pytest.fixture
def sdk(db, key, monkeypatch):
    with serving(db.dsn_for("api")) as url:
        monkeypatch.setattr(resend, "api_url", url)
        monkeypatch.setattr(resend, "api_key", key)
        yield resend


def test_the_sdk_sends_reads_moves_cancels_and_lists(sdk):
    sent = sdk.Emails.send(
        {
            "from": "Acme <onboarding@example.com>",
            "to": ["delivered@example.org"],
            "cc": "c@example.org",
            "bcc": ["d@example.org"],
            "reply_to": ["help@example.com"],
            "subject": "hello world",
            "html": "<strong>it works!</strong>",
            "text": "it works!",
            "headers": {"X-Entity-Ref-ID": "123456789"},
            "tags": [{"name": "category", "value": "confirm_email"}],
            "attachments": [
                {"filename": "invoice.pdf", "content": list(b"%PDF-1.4 \x00\xff")},
                {
                    "filename": "a.txt",
                    "content": base64.b64encode(b"hi").decode(),
                    "content_type": "text/plain",
                },
            ],
            "scheduled_at": "in 1 hour",
        }
    )
    shown = sdk.Emails.get(sent["id"])
    assert (shown["id"], shown["object"], shown["subject"]) == (sent["id"], "email", "hello world")
    assert (shown["to"], shown["cc"]) == (["delivered@example.org"], ["c@example.org"])
    assert shown["last_event"] == "scheduled"
    at = (datetime.now(UTC) + timedelta(hours=3)).isoformat()
    assert sdk.Emails.update({"id": sent["id"], "scheduled_at": at})["id"] == sent["id"]
    assert sdk.Emails.cancel(sent["id"])["object"] == "email"
    assert sdk.Emails.get(sent["id"])["last_event"] == "canceled"
    others = [sdk.Emails.send(EMAIL)["id"] for _ in range(2)]
    page = sdk.Emails.list({"limit": 2})
    assert ([item["id"] for item in page["data"]], page["has_more"]) == (others[::-1], True)
    rest = sdk.Emails.list({"limit": 2, "after": others[0]})
    assert ([item["id"] for item in rest["data"]], rest["has_more"]) == ([sent["id"]], False)
    assert sdk.Emails.list()["object"] == "list"


def test_attachments_as_lists_of_ints_arrive_as_the_file(sdk, db):
    octets = bytes(range(256)) * 40
    sdk.Emails.send(EMAIL | {"attachments": [{"filename": "f.bin", "content": list(octets)}]})
    with db.connect() as connection:
        assert connection.execute("select body from pgmail.attachment").fetchone()[0] == octets


def test_the_sdk_sends_batches_in_both_modes(sdk):
    sent = sdk.Batch.send([EMAIL, EMAIL])
    assert len({item["id"] for item in sent["data"]}) == 2
    bad = EMAIL | {"to": "nobody"}
    with pytest.raises(ValidationError, match="/1/to"):
        sdk.Batch.send([EMAIL, bad], {"batch_validation": "strict"})
    mixed = sdk.Batch.send([EMAIL, bad], {"batch_validation": "permissive"})
    assert (len(mixed["data"]), mixed["errors"][0]["index"]) == (1, 1)
    assert mixed["errors"][0]["message"].startswith("/to: ")


def test_the_sdks_idempotency_keys_are_honoured(sdk):
    options = {"idempotency_key": "welcome-user/123456789"}
    first, again = [sdk.Emails.send(EMAIL, options)["id"] for _ in range(2)]
    assert first == again
    batches = [sdk.Batch.send([EMAIL], options)["data"] for _ in range(2)]
    assert batches[0] == batches[1]
    with pytest.raises(ResendError) as caught:
        sdk.Emails.send(EMAIL | {"subject": "other"}, options)
    assert (caught.value.code, caught.value.error_type) == (409, "invalid_idempotent_request")


def test_the_sdk_raises_its_own_errors_with_our_words(sdk):
    with pytest.raises(MissingRequiredFieldsError, match="/subject"):
        sdk.Emails.send({"from": "a@example.com", "to": "b@example.org", "text": "x"})
    with pytest.raises(ValidationError, match="/to"):
        sdk.Emails.send(EMAIL | {"to": "nobody"})
    with pytest.raises(ResendError) as caught:
        sdk.Emails.get("01900000-0000-7000-8000-000000000000")
    assert (caught.value.code, caught.value.error_type) == (404, "not_found")
    sdk.api_key = "re_wrong"
    with pytest.raises(ResendError) as caught:
        sdk.Emails.send(EMAIL)
    assert (caught.value.code, caught.value.error_type) == (401, "invalid_api_key")
    sdk.api_key = ""
    with pytest.raises(MissingApiKeyError):
        sdk.Emails.send(EMAIL)


def test_the_sdk_suppresses_and_sets_free(sdk):
    sdk.Suppressions.add({"email": "gone@example.org"})
    assert [item["email"] for item in sdk.Suppressions.list()["data"]] == ["gone@example.org"]
    assert sdk.Suppressions.remove("gone@example.org")["deleted"] is True
