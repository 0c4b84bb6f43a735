"""Sealed octets and the keys that wrap keys."""

import base64
import sys
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmail.config import Settings, describe
from pgmail.config_text import key_pairs, keys_fault, mask_keys
from pgmail.errors import KeyMissing, SealBroken, SettingsError
from pgmail.sealing.box import keyed_hash, new_key, place, seal, unseal
from pgmail.sealing.keks import Keks, new_pair, read
from pgmail.sealing.mail import DataKey, open_content, sealed

KEY = bytes(range(32))
WHERE = place(1, UUID(int=7), "content")


@given(st.binary(max_size=200))
def test_what_was_sealed_opens_and_no_two_sealings_are_alike(plain):
    first, second = seal(KEY, plain, WHERE), seal(KEY, plain, WHERE)
    assert first != second
    assert unseal(KEY, first, WHERE) == unseal(KEY, second, WHERE) == plain


def test_every_single_bit_counts():
    octets = seal(KEY, b"plain", WHERE)
    for bit in range(len(octets) * 8):
        changed = bytearray(octets)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken):
            unseal(KEY, bytes(changed), WHERE)


@pytest.mark.parametrize("length", range(33))
def test_what_is_cut_short_is_broken_and_no_crash(length):
    with pytest.raises(SealBroken):
        unseal(KEY, seal(KEY, b"plain", WHERE)[:length], WHERE)


@pytest.mark.parametrize(
    "elsewhere",
    [
        place(2, UUID(int=7), "content"), place(1, UUID(int=8), "content"), place(1, UUID(int=7), "attachment 1"),
        place(1, None, "content"),
    ],
)  # fmt: skip
def test_moved_to_another_tenant_message_or_purpose_it_does_not_open(elsewhere):
    with pytest.raises(SealBroken):
        unseal(KEY, seal(KEY, b"plain", WHERE), elsewhere)
    with pytest.raises(SealBroken):
        unseal(new_key(), seal(KEY, b"plain", WHERE), WHERE)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"sealed": 5}', b'{"sealed": "%%"}', b'{"sealed": "AAAA"}', b"\xff"]
)
def test_a_content_that_is_none_is_broken_and_no_crash(content):
    with pytest.raises(SealBroken):
        open_content(content, KEY, 1, UUID(int=7))


def stored(secret, **open_):
    """A `message.content` in which somebody who holds the data key sealed what was never judged."""
    octets = seal(KEY, msgspec.json.encode(secret), place(1, UUID(int=7), "content"))
    form = {
        "from": {"address": "me@example.com"},
        "headers": None,
        "sealed": base64.b64encode(octets).decode(),
    }
    return msgspec.json.encode(form | open_)


def test_what_is_sealed_adds_texts_and_nothing_that_stands_open():
    secret = {
        "subject": "s",
        "text": "t",
        "headers": {"X-A": "b"},
        "variables": {"a": 1},
        "filenames": ["a.pdf", None],
    }
    forged = {"from": {"address": "ceo@bank.example"}, "to": [], "cc": [], "reply_to": [], "attachments": 9}
    opened = open_content(stored(secret | forged), KEY, 1, UUID(int=7))
    assert opened == {"from": {"address": "me@example.com"}} | secret
    assert open_content(stored({"text": "t"}), KEY, 1, UUID(int=7))["text"] == "t"


@pytest.mark.parametrize(
    "secret",
    [
        {"headers": {"X-A: b\r\nDKIM-Signature": "forged"}}, {"headers": {"From": "ceo@bank.example"}},
        {"headers": {"X-A": "b\r\nBcc: c@example.com"}}, {"headers": {"X-A": 5}}, {"headers": "X-A"},
        {"subject": "s\r\nBcc: c@example.com"}, {"subject": 5}, {"text": 5}, {"html": ["x"]}, {"variables": []},
        {"filenames": "a"}, {"filenames": [5]}, {"filenames": ["a\r\nb"]}, {"filenames": ["a\u202egpj.exe"]}, [], "x",
    ],
)  # fmt: skip
def test_what_the_law_would_refuse_is_refused_when_it_is_opened(secret):
    with pytest.raises(SealBroken) as caught:
        open_content(stored(secret), KEY, 1, UUID(int=7))
    assert "bank" not in str(caught.value)


def test_sealed_octets_that_are_no_json_or_nest_without_end_are_broken_and_no_crash():
    for plain in (b"\xff", b"{", b'{"variables":' + b"[" * 100_000):
        octets = seal(KEY, plain, place(1, UUID(int=7), "content"))
        content = msgspec.json.encode({"sealed": base64.b64encode(octets).decode()})
        with pytest.raises(SealBroken):
            open_content(content, KEY, 1, UUID(int=7))


def test_the_hash_beside_a_key_is_the_same_for_the_same_text_only_with_the_key():
    assert keyed_hash(KEY, b"123456") == keyed_hash(KEY, b"123456") != keyed_hash(KEY, b"123457")
    assert keyed_hash(KEY, b"123456") != keyed_hash(new_key(), b"123456")


def test_a_body_keeps_all_that_it_has_beside_its_sealed_form_and_keys_show_in_no_repr():
    body = {"from": "a@example.com", "to": "b@example.com", "subject": None, "text": "x"}
    data_key = DataKey(1, 3, KEY, KEY)
    made = sealed(body, data_key, datetime.now(UTC))
    form = made.pop("sealed")
    assert made == body
    assert (form["tenant"], form["key"]) == (1, 3)
    assert repr(data_key) == "DataKey(1, 3)"
    assert repr(Keks({"k": KEY})) == "Keks(k)"


def test_keys_come_from_settings_file_and_command_and_the_first_of_all_wraps(tmp_path):
    (tmp_path / "keys").write_text(f"{new_pair('file')}\n{new_pair('older')}\n")
    command = f"{sys.executable} -c \"print('{new_pair('command')}')\""
    settings = Settings(
        seal_keys=new_pair("own"), seal_key_file=str(tmp_path / "keys"), seal_key_command=command
    )
    keks = read(settings)
    assert keks.names == ["own", "file", "older", "command"]
    name, wrapped = keks.wrap(1, KEY)
    assert (name, keks.unwrap(1, name, wrapped)) == ("own", KEY)
    assert not read(Settings())
    with pytest.raises(KeyMissing, match="PGMAIL_SEAL_KEYS"):
        read(Settings()).wrap(1, KEY)


WORD = base64.b64encode(b"kanari").decode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (WORD * 8, "entry 1 is not name=base64"),
        (f"k={WORD}", "k has 6 octets; a key has 32"),
        (f"k={WORD}%", "k is not base64"),
        (f"{new_pair('k')} {new_pair('k')}", "k comes twice"),
    ],
    ids=["no pair", "short", "no base64", "twice"],  # keys are made anew, and processes must agree on names
)
def test_what_is_wrong_with_keys_is_said_without_showing_them(text, words):
    fault = keys_fault(text)
    assert words in fault
    assert WORD not in fault


def test_faults_of_files_and_commands_name_their_setting_and_nothing_that_was_printed(tmp_path):
    other = tmp_path / "keys"
    other.write_text(new_pair("k"))
    for settings, words in (
        (Settings(seal_key_file="/nowhere"), "PGMAIL_SEAL_KEY_FILE: /nowhere: No such file"),
        (Settings(seal_key_command="/nowhere x"), "PGMAIL_SEAL_KEY_COMMAND: cannot be run: No such file"),
        (Settings(seal_key_command=f"sh -c 'echo {WORD}; exit 3'"), "PGMAIL_SEAL_KEY_COMMAND: ended with 3"),
        (Settings(seal_key_command='"'), "PGMAIL_SEAL_KEY_COMMAND: cannot be run"),
        (Settings(seal_keys=new_pair("k"), seal_key_file=str(other)), "k is another key than an earlier one"),
    ):
        with pytest.raises(SettingsError) as error:
            read(settings)
        assert words in str(error.value)
        assert WORD not in str(error.value)


def test_keys_are_masked_wherever_settings_are_shown():
    pair = new_pair("k1")
    (shown,) = [row.value for row in describe(Settings(seal_keys=pair)) if row.name == "PGMAIL_SEAL_KEYS"]
    assert shown == "k1=***"
    assert mask_keys("nonsense") == "***"
    assert len(key_pairs(pair)["k1"]) == 32
