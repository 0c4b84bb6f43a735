"""Lists of addresses that get no mail, as people and other providers write them."""

from datetime import UTC, datetime

import pytest

from pgmail.domain.suppression_file import Bad, Entry, read
from pgmail.errors import Refused


def rows(text):
    return list(read(text.splitlines(keepends=True)))


def facts(text):
    """(address, reason, source, created) of the one row."""
    (row,) = rows(text)
    assert isinstance(row, Entry)
    return row.address, row.reason, row.source, row.created_at


def at(*parts):
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "status,reason,email,created\n5.1.1,550 5.1.1 The email account does not exist,a@b.example,1443651125\n",
            ("a@b.example", "bounced", "5.1.1 550 5.1.1 The email account does not exist", at(2015, 9, 30, 22, 12, 5)),
        ),
        ("email,created\na@b.example,1443651125\n", ("a@b.example", None, None, at(2015, 9, 30, 22, 12, 5))),
        (
            'address,code,error,created_at\na@b.example,605,Too old,"Fri, 21 Oct 2011 11:02:55 UTC"\n',
            ("a@b.example", "bounced", "605 Too old", at(2011, 10, 21, 11, 2, 55)),
        ),
        (
            "EmailAddress,Reason,LastUpdateTime\na@b.example,COMPLAINT,2020-04-10T21:03:05Z\n",
            ("a@b.example", "complained", None, at(2020, 4, 10, 21, 3, 5)),
        ),
        (
            "EmailAddress,SuppressionReason,Origin,CreatedAt\na@b.example,HardBounce,Recipient,2019-12-10 08:58:33\n",
            ("a@b.example", "bounced", "Recipient", at(2019, 12, 10, 8, 58, 33)),
        ),
        (
            "EmailAddress;SuppressionReason\r\na@b.example;ManualSuppression\r\n",
            ("a@b.example", "manual", None, None),
        ),
        ('{"address": "a@b.example", "reason": "invalid", "stream": null}\n', ("a@b.example", "invalid", None, None)),
        (
            "email,reason\na@b.example,450 mailbox full\n",
            ("a@b.example", None, "450 mailbox full", None),
        ),
    ],
    ids=["sendgrid bounces", "sendgrid unsubscribes", "mailgun", "ses", "postmark", "semicolons", "json", "temporary"],
)  # fmt: skip
def test_exports_of_others_are_read(text, expected):
    assert facts(text) == expected


def test_a_single_column_needs_no_header_and_a_mark_of_the_encoding_is_none_of_it():
    assert [row.address for row in rows("\ufeffa@b.example\n\nb@b.example\n")] == [
        "a@b.example",
        "b@b.example",
    ]
    assert [(row.line, row.address) for row in rows("\nEmail\n\na@b.example")] == [(4, "a@b.example")]


def test_a_file_without_addresses_is_refused_and_an_empty_one_has_none():
    for text in ("name,city\nAda,London\n", "Ada\n", 'email\n"never closed' + "x" * 140_000):
        with pytest.raises(Refused) as caught:
            rows(text)
        assert caught.value.code == "invalid_csv"
    assert rows("") == []


def test_bad_rows_are_told_with_their_line_and_the_others_go_on():
    text = "email,expires_at\na@b.example,\n,\nb\ufffd@b.example,\nc@b.example,some day\n"
    text += "d@b.example,2030-01-01T00:00:00Z\n"
    found = rows(text)
    assert [(row.line, row.code) for row in found if isinstance(row, Bad)] == [
        (4, "invalid_address"),
        (5, "invalid_time"),
    ]
    assert found[-1].expires_at == at(2030, 1, 1)
    assert [
        row.code for row in rows('{"email": "a@b.example"}\nnonsense\n[1]\n') if isinstance(row, Bad)
    ] == [
        "invalid_json",
        "invalid_json",
    ]
