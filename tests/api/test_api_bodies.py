"""What is no body: malformed, ambiguous, of another type, too large. Never a 500, never half understood."""

import pytest

from pgmail.api import bodies
from pgmail.api.bodies import decode
from pgmail.config import Settings
from pgmail.errors import Refused
from tests.api.conftest import EMAIL, client

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"{} {}", 400),
        (b"{'from': 1}", 400),
        (b'{"a": NaN}', 400),
        (b'{"a": -Infinity}', 400),
        (b'{"a": 01}', 400),
        (b'"\xff"', 400),
        (b"\xef\xbb\xbf{}", 400),
        (b"1" * 5000, 400),
        (b"[" * 100_000, 422),
        (b"[" * 100_000 + b"]" * 100_000, 422),
        (b'{"from":"a@b.co","from":"c@d.co"}', 422),
        (b'{"a" :1,"a" :2}', 422),
        (b'{"variables":{"x":[{"y":1,"y":2}]}}', 422),
        (b'{"metadata":{"n":1e400}}', 422),
        (b"[]", 422),
        (b"null", 422),
    ],
)
async def test_what_is_no_body_is_refused_as_such(api, raw, status):
    answer = await api.post("/emails", content=raw, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (status, "invalid_body")


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a": "b\\":c", "d": ":)"}', {"a": 'b":c', "d": ":)"}),
        (b'{"a" : {"a" : [{"a": 1}]}}', {"a": {"a": [{"a": 1}]}}),
        (b'{"a":12345678901234567890123}', {"a": 12345678901234567890123}),
        (b'{"a":"\\ud800"}', {"a": "\ud800"}),
        (b'{"a":[' + b"1," * 300 + b"256]}", {"a": [1] * 300 + [256]}),
        (b'{"a":[' + b"1," * 300 + b"255]}", {"a": [1] * 300 + [255]}),
    ],
)
def test_what_is_json_is_read_as_it_stands(raw, value):
    assert decode(raw) == value


def test_one_parser_reads_a_plain_body(monkeypatch):
    monkeypatch.setattr(bodies, "_decode_slowly", lambda _: pytest.fail("asked the slow parser"))
    assert decode(b'{"a":{"b":[1,{"c":null}]},"d":"http://x"}')["d"] == "http://x"


def test_a_key_given_twice_is_named():
    with pytest.raises(Refused, match="'to' stands twice"):
        decode(b'{"to":1,"cc":2,"to":3}')


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
async def test_another_type_is_415(api, headers):
    answer = await api.post("/emails", content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.shop+json", ""])
async def test_json_by_any_name_is_read(api, kind):
    answer = await api.post("/emails", content=b"[]", headers={"Content-Type": kind})
    assert answer.json()["code"] == "invalid_body"


async def test_a_body_over_the_limit_is_413_with_and_without_a_length(db, key):
    settings = Settings(max_body_bytes=65_536)
    raw = b'{"text":"' + b"x" * 70_000 + b'"}'

    async def chunks():
        for i in range(0, len(raw), 10_000):
            yield raw[i : i + 10_000]

    async with client(db.dsn_for("api"), key, settings=settings) as api:
        for content in (raw, chunks()):
            answer = await api.post("/emails", content=content, headers=JSON)
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        fits = await api.post("/emails", json=EMAIL | {"text": "x" * 60_000})
        assert fits.status_code == 200


async def test_a_large_body_is_read_whole(api):
    email = (await api.post("/emails", json=EMAIL | {"text": "Zeile: ä\n" * 20_000})).json()["id"]
    assert (await api.get(f"/emails/{email}")).json()["text"] == "Zeile: ä\n" * 20_000


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"text": "Hi {{ name", "variables": {}}, "invalid_template", "/text"),
        ({"html": "{% if %}", "variables": {}}, "invalid_template", "/html"),
        ({"subject": "{{ }}", "variables": {}}, "invalid_template", "/subject"),
        ({"text": "Hi {{ name }}", "variables": {}}, "missing_variable", "/variables"),
    ],
)
async def test_templates_of_the_email_itself_are_compiled_first(api, changes, code, field):
    answer = await api.post("/emails", json=EMAIL | changes)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, code, field)


async def test_without_variables_a_text_is_no_template(api):
    assert (await api.post("/emails", json=EMAIL | {"text": "{{ not a template"})).status_code == 200
