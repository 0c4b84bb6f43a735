"""Cases of the corpus: each character that could end, garble or disguise a header, in each text that ends up in one.

A table of texts and a table of characters; a case is one of each. What may be refused with which code and where
stands beside the text.
"""

from collections.abc import Callable
from typing import Any

GOOD = {"from": "shop@example.com", "to": "ada@example.org", "subject": "Hi", "text": "Hello"}
FILE = {"filename": "a.txt", "content": "YQ=="}

CONTROLS = {
    "CR": "\r",
    "LF": "\n",
    "CRLF and a header": "\r\nBcc: evil@example.net",
    "VT": "\v",
    "FF": "\f",
    "ESC": "\x1b",
    "DEL": "\x7f",
    "U+0085": "\x85",
    "U+2028": "\u2028",
    "U+2029": "\u2029",
}
NOT_JSON = {"U+0000": "\0", "a lone surrogate": "\ud800"}  # jsonb holds neither
TURNED = {"U+202E": "\u202e", "U+2066": "\u2066"}

# name: (how a text gets there, code, field, whether marks that turn text are content there)
TEXTS: dict[str, tuple[Callable[[str], dict[str, Any]], str, str, bool]] = {
    "the sender's name": (lambda c: {"from": f"A{c}B <shop@example.com>"}, "invalid_address", "/from", False),
    "the sender's quoted name": (
        lambda c: {"from": f'"A{c}B" <shop@example.com>'}, "invalid_address", "/from", False
    ),
    "the sender's local part": (lambda c: {"from": f"a{c}b@example.com"}, "invalid_address", "/from", False),
    "the sender's domain": (lambda c: {"from": f"a@exam{c}ple.com"}, "invalid_address", "/from", False),
    "a recipient's name": (lambda c: {"to": f"A{c}B <ada@example.org>"}, "invalid_address", "/to", True),
    "a recipient's name apart": (
        lambda c: {"to": [{"address": "ada@example.org", "name": f"A{c}B"}]}, "invalid_address", "/to/0", True
    ),
    "a recipient's local part": (lambda c: {"to": f"a{c}b@example.org"}, "invalid_address", "/to", False),
    "a copy's name": (lambda c: {"cc": [f"A{c}B <bob@example.org>"]}, "invalid_address", "/cc/0", True),
    "a blind copy's name": (lambda c: {"bcc": [f"A{c}B <bob@example.org>"]}, "invalid_address", "/bcc/0", True),
    "a name to reply to": (lambda c: {"reply_to": f"A{c}B <bob@example.org>"}, "invalid_address", "/reply_to", True),
    "an address to reply to": (lambda c: {"reply_to": [f"b{c}b@example.org"]}, "invalid_address", "/reply_to/0", False),
    "the subject": (lambda c: {"subject": f"A{c}B"}, "invalid_subject", "/subject", True),
    "a header's value": (lambda c: {"headers": {"X-Shop": f"A{c}B"}}, "invalid_header", "/headers/X-Shop", True),
    "a filename": (
        lambda c: {"attachments": [FILE | {"filename": f"a{c}b.txt"}]},
        "invalid_attachment", "/attachments/0/filename", False,
    ),
    "a content id": (
        lambda c: {"attachments": [FILE | {"content_id": f"a{c}b"}]},
        "invalid_attachment", "/attachments/0/content_id", False,
    ),
    "a content type": (
        lambda c: {"attachments": [FILE | {"content_type": f"text/plain; a=b{c}c"}]},
        "invalid_attachment", "/attachments/0/content_type", True,
    ),
    "a tag's name": (lambda c: {"tags": [{"name": f"a{c}b", "value": "v"}]}, "invalid_tag", "/tags/0", False),
    "a tag's value": (lambda c: {"tags": [{"name": "a", "value": f"a{c}b"}]}, "invalid_tag", "/tags/0", False),
}  # fmt: skip
# Where a name of an object, or a step before the text, is what cannot be written.
_WHERE_NOT_JSON = {
    "a recipient's name apart": "/to/0/name",
    "a tag's name": "/tags/0/name",
    "a tag's value": "/tags/0/value",
}

RESERVED = (
    *(
        "DKIM-Signature",
        "dkim-anything",
        "DomainKey-Signature",
        "X-Google-DKIM-Signature",
        "ARC-Message-Signature",
    ),
    *(
        "Received",
        "Received-SPF",
        "X-Received",
        "Return-Path",
        "Delivered-To",
        "X-Original-To",
        "Original-Recipient",
    ),
    *("Envelope-To", "Envelope-From", "X-Envelope-From", "Apparently-To", "Errors-To", "BIMI-Indicator"),
    *("Resent-Sender", "Resent-Message-ID", "sENDER", "MESSAGE-id", "reply-TO"),
)


def cases() -> list[dict[str, Any]]:
    """Return cases in the shape of `corpus.json`."""
    found = []
    for where, (put, code, field, turned) in TEXTS.items():
        fault: Any = {"code": code, "field": field, "status": 422}
        for called, character in CONTROLS.items():
            found.append({"name": f"{called} in {where}", "body": GOOD | put(character), "expect": fault})
        for called, character in TURNED.items():
            found.append(
                {
                    "name": f"{called} in {where}",
                    "body": GOOD | put(character),
                    "expect": "ok" if turned else fault,
                }
            )
        for called, character in NOT_JSON.items():
            at = _WHERE_NOT_JSON.get(where, field)
            found.append(
                {
                    "name": f"{called} in {where}",
                    "body": GOOD | put(character),
                    "expect": {"code": "invalid_body", "field": at, "status": 422},
                    "ways": ["http", "python"],
                }
            )
    found += [
        {
            "name": f"nobody but pgmail or a later server sets {name}",
            "body": GOOD | {"headers": {name: "forged"}},
            "expect": {"code": "reserved_header", "field": f"/headers/{name}", "status": 422},
        }
        for name in RESERVED
    ]
    found += [
        {
            "name": f"a header's name with {called}",
            "body": GOOD | {"headers": {f"X-A{character}B": "v"}},
            "expect": {"code": "invalid_header", "field": f"/headers/X-A{character}B", "status": 422},
            "ways": ["sql", "http", "python"],
        }
        for called, character in ({**CONTROLS, **TURNED, "a colon": ":", "a space": " ", "é": "é"}).items()
    ]
    return found
