"""The law of an email in Python: the corpus, and what the corpus cannot say."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from pgmail.domain import check, when
from pgmail.domain.check import check_email, check_idempotency_key
from pgmail.domain.check_attachments import check_content_type, decode
from pgmail.domain.check_body import MAX_DEPTH, pointer
from pgmail.domain.email import Attachment, Email, Recipient, prepare
from pgmail.errors import Refused
from tests import corpus

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
CASES = corpus.cases(NOW, "python")
GOOD = {"from": "shop@example.com", "to": "ada@example.org", "subject": "Hi", "text": "Hello"}


def fault_of(body):
    try:
        check_email(body, now=NOW)
    except Refused as refused:
        return refused.code, refused.field, refused.status
    return None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_python_answers_as_the_law_says(case):
    found = fault_of(case.body)
    if case.expect is None:
        assert found is None
    elif case.expect.code in corpus.STATE_CODES:
        # SQL alone knows; what Python may find is only the same.
        assert found in {None, (case.expect.code, case.expect.field, case.expect.status)}
    else:
        assert found == (case.expect.code, case.expect.field, case.expect.status)


@pytest.mark.parametrize("body", ["mail", 7, None, [], True])
def test_what_is_no_object_is_no_email(body):
    assert fault_of(body) == ("invalid_body", "", 422)


def test_the_corpus_has_every_code_of_the_law_and_names_no_need_or_way_that_is_none():
    codes = {case.expect.code for case in corpus.cases(NOW) if case.expect}
    assert codes == {
        *("invalid_body", "unknown_key", "missing_field", "invalid_address", "too_many_recipients"),
        *("invalid_mode", "invalid_template", "unknown_template", "invalid_subject", "invalid_text"),
        *("invalid_variables", "missing_variable", "invalid_header", "reserved_header"),
        *("invalid_attachment", "unknown_asset", "invalid_tag", "invalid_metadata", "unknown_stream"),
        *("invalid_priority", "invalid_time", "time_in_past", "time_too_far", "invalid_on_limit"),
        *("invalid_idempotency_key", "invalid_test", "too_large", "idempotency_conflict", "limit_reached"),
    }
    assert all(case.ways <= corpus.WAYS for case in corpus.cases(NOW))
    assert {need.partition(":")[0] for case in corpus.cases(NOW) for need in case.needs} == corpus.NEEDS


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (float("nan"), "/metadata/a"),
        (float("inf"), "/metadata/a"),
        (NOW, "/metadata/a"),
        (b"x", "/metadata/a"),
        ({1: 2}, "/metadata/a"),
        ({"k\0": 2}, "/metadata/a"),
        ([["\udc00"]], "/metadata/a/0/0"),
    ],
)
def test_what_jsonb_cannot_hold_is_refused_at_its_pointer(value, field):
    assert fault_of({**GOOD, "metadata": {"a": value}}) == ("invalid_body", field, 422)


def test_deep_nesting_is_refused_and_harms_nobody():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert fault_of({**GOOD, "metadata": {"a": deep}}) == ("invalid_body", "/metadata", 422)
    while deep:  # freed level by level, as no interpreter likes it otherwise
        deep = deep[0]
    fine = "x"
    for _ in range(MAX_DEPTH - 10):
        fine = [fine]
    assert fault_of({**GOOD, "metadata": {"a": fine}}) is None


def test_a_misspelt_key_is_told_its_likely_name():
    with pytest.raises(Refused, match="did you mean 'subject'"):
        check_email({**GOOD, "subjct": "x"}, now=NOW)


@pytest.mark.parametrize(
    ("key", "ours"),
    [("sender", "from"), ("recipient", "to"), ("send_at", "scheduled_at"), ("body_html", "html")],
)
def test_a_key_by_its_name_elsewhere_is_told_its_name_here(key, ours):
    with pytest.raises(Refused, match=f"did you mean '{ours}'"):
        check_email({**GOOD, key: "x"}, now=NOW)


def test_the_check_changes_nothing():
    body = {**GOOD, "scheduled_at": "in 5 minutes", "attachments": [{"filename": "a", "content": [1]}]}
    before = repr(body)
    check_email(body, now=NOW)
    prepare(body, NOW)
    assert repr(body) == before


def test_prepare_gives_sql_iso_times_and_base64():
    body = {
        **GOOD,
        "scheduled_at": "in 5 minutes",
        "attachments": [
            {"filename": "a", "content": [104, 105]},
            {"filename": "b", "content": b"hi"},
            {"filename": "c", "content": "aGk="},
            {"asset": "logo"},
        ],
    }
    check_email(body, now=NOW)
    ready = prepare(body, NOW)
    assert ready["scheduled_at"] == "2026-11-21T12:05:00Z"
    assert [item.get("content") for item in ready["attachments"]] == ["aGk=", "aGk=", "aGk=", None]
    iso = {**GOOD, "scheduled_at": "2026-11-21T13:00:00+01:00"}
    assert prepare(iso, NOW) == iso


def test_an_idempotency_key_of_the_header_is_checked_by_itself():
    check_idempotency_key(None)
    check_idempotency_key("a b")
    for key in ("", " a", "a ", "a\n", "é", "k" * 257):
        with pytest.raises(Refused) as refused:
            check_idempotency_key(key)
        assert refused.value.field == "/idempotency_key"


def test_pointers_escape_as_rfc_6901_says():
    assert pointer() == ""
    assert pointer("headers", "a/b~c", 3) == "/headers/a~1b~0c/3"


@pytest.mark.parametrize("content", ["aGk", "a-b_", "é", 5, None, [300], ["a"], [1.5], "aGk=\x0b"])
def test_content_that_cannot_be_decoded_says_why(content):
    with pytest.raises(ValueError, match=r"\w"):
        decode(content)


def test_content_comes_in_four_forms():
    assert {decode("aGk="), decode(" aG\r\nk=\t"), decode([104, 105]), decode(b"hi")} == {b"hi"}


def test_content_types_are_judged_in_linear_time():
    assert check_content_type('text/plain; charset="utf-8" ; x=y') is None
    assert check_content_type("text/plain; " * 20)
    assert "structure" in check_content_type("MULTIPART/alternative")


def test_a_full_sized_body_is_checked_fast():
    content = base64.b64encode(bytes(15_000_000)).decode()
    body = {**GOOD, "attachments": [{"filename": "a", "content": content}], "text": "é" * 1_000_000}
    began = time.process_time()
    assert fault_of(body) is None
    assert time.process_time() - began < 2


# ---------------------------------------------------------------------------------------------- Email


def test_an_email_becomes_the_body_that_json_has():
    email = Email(
        sender="Shop <shop@example.com>",
        to=["a@example.org", Recipient(address="b@example.org", name="B")],
        cc=Recipient(address="c@example.org"),
        subject="Hi",
        text="Hello",
        variables={"price": Decimal("1.50"), "id": UUID(int=1), "day": NOW.date()},
        attachments=[Attachment(filename="a.txt", content=b"hi"), Attachment(asset="logo")],
        tags={"kind": "invoice"},
        scheduled_at=datetime(2026, 11, 21, 14, 0, tzinfo=ZoneInfo("Europe/Prague")),
        expires_at="2026-12-01T00:00:00Z",
    )
    body = email.to_body()
    assert body == {
        "from": "Shop <shop@example.com>",
        "to": ["a@example.org", {"address": "b@example.org", "name": "B"}],
        "cc": [{"address": "c@example.org"}],
        "subject": "Hi",
        "text": "Hello",
        "variables": {"price": "1.50", "id": str(UUID(int=1)), "day": "2026-11-21"},
        "attachments": [{"filename": "a.txt", "content": "aGk="}, {"asset": "logo"}],
        "tags": {"kind": "invoice"},
        "scheduled_at": "2026-11-21T13:00:00Z",
        "expires_at": "2026-12-01T00:00:00Z",
    }
    check_email(body, now=NOW)


def test_an_email_has_a_field_for_every_key_of_the_body():
    import msgspec

    assert tuple(field.encode_name for field in msgspec.structs.fields(Email)) != ()
    assert {field.encode_name for field in msgspec.structs.fields(Email)} == set(check.KEYS)


@pytest.mark.parametrize("field", ["scheduled_at", "expires_at"])
@pytest.mark.parametrize(
    ("moment", "reason"),
    [
        (datetime(2026, 11, 21, 12, 0, tzinfo=UTC).replace(tzinfo=None), "without a time zone"),
        (datetime(2027, 3, 28, 2, 30, tzinfo=ZoneInfo("Europe/Prague")), "does not exist in Europe/Prague"),
        (datetime.max.replace(tzinfo=ZoneInfo("America/New_York")), "end of the calendar"),
    ],
)
def test_a_datetime_without_one_meaning_is_refused(field, moment, reason):
    email = Email(sender="a@example.com", to="b@example.org", **{field: moment})
    with pytest.raises(Refused, match=reason) as refused:
        email.to_body()
    assert (refused.value.code, refused.value.field) == ("invalid_time", f"/{field}")


def test_an_ambiguous_datetime_means_what_its_fold_says():
    zone = ZoneInfo("Europe/Prague")
    for fold, hour in ((0, 0), (1, 1)):
        moment = datetime(2026, 10, 25, 2, 30, tzinfo=zone, fold=fold)
        email = Email(sender="a@example.com", to="b@example.org", scheduled_at=moment)
        assert email.to_body()["scheduled_at"] == f"2026-10-25T0{hour}:30:00Z"


def test_a_value_that_json_cannot_express_is_refused_at_its_key():
    email = Email(sender="a@example.com", to="b@example.org", variables={"f": object()})
    with pytest.raises(Refused) as refused:
        email.to_body()
    assert (refused.value.code, refused.value.field) == ("invalid_body", "/variables")


def test_an_attachment_is_read_from_a_path(tmp_path):
    path = tmp_path / "účet.pdf"
    path.write_bytes(b"%PDF")
    attachment = Attachment.from_path(path, content_id="bill")
    assert (attachment.filename, attachment.content, attachment.content_id) == ("účet.pdf", b"%PDF", "bill")
    assert (
        Attachment.from_path(str(path), filename="b.pdf", content_type="application/pdf").filename == "b.pdf"
    )
    with pytest.raises(FileNotFoundError):
        Attachment.from_path(tmp_path / "none")


def test_sixty_seconds_past_still_means_now():
    for seconds, fault in ((59, None), (61, "time_in_past")):
        moment = (NOW - timedelta(seconds=seconds)).isoformat()
        found = fault_of({**GOOD, "scheduled_at": moment})
        assert (found and found[0]) == fault
    assert when.parse_iso("2026-11-21T12:00:00Z") == NOW
