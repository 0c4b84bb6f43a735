"""Settings: where they come from, what is refused, what is shown."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from pgmail import config
from pgmail.config import Settings, describe, load, rows
from pgmail.config_text import database_fault, mask_url, relay_fault, relays_fault
from pgmail.errors import SettingsError

DOC = Path(__file__).parents[2] / "ops" / "docs" / "settings.md"


def faults_of(environ, folder, **more):
    with pytest.raises(SettingsError) as error:
        load(environ, folder=folder, **more)
    return error.value.faults


def test_defaults_need_nothing(tmp_path):
    settings = load({}, folder=tmp_path)
    assert settings.api_port == 8025
    assert settings.relay_url == "smtp://127.0.0.1:25"
    assert set(settings.sources.values()) == {"default"}
    assert settings == Settings(sources=settings.sources)


def test_the_environment_wins_over_the_file_and_an_option_over_both(tmp_path):
    (tmp_path / "pgmail.toml").write_text(
        'api_port = 1\nworker_concurrency = 7\nsilence_seconds = 9\nnotify = false\nlog_level = "debug"\n'
    )
    environ = {"PGMAIL_API_PORT": " 2 ", "PGMAIL_WORKER_CONCURRENCY": "8", "OTHER": "x", "PGMAIL_NOTIFY": ""}
    settings = load(environ, folder=tmp_path, options={"api_port": "3"})
    assert (settings.api_port, settings.worker_concurrency, settings.silence_seconds) == (3, 8, 9.0)
    assert settings.notify is False
    assert {name: source for name, source in settings.sources.items() if source != "default"} == {
        "api_port": "option",
        "worker_concurrency": "environment",
        "silence_seconds": "pgmail.toml",
        "notify": "pgmail.toml",
        "log_level": "pgmail.toml",
    }


def test_pgmail_config_names_the_file(tmp_path):
    (tmp_path / "other.toml").write_text("api_port = 9")
    assert load({"PGMAIL_CONFIG": "other.toml"}, folder=tmp_path).api_port == 9
    assert load({"PGMAIL_CONFIG": str(tmp_path / "other.toml")}).api_port == 9
    assert "there is no file" in faults_of({"PGMAIL_CONFIG": "none.toml"}, tmp_path)[0]


def test_the_process_environment_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGMAIL_SETTLE_BATCH", "7")
    assert load().settle_batch == 7


def test_all_faults_are_named_at_once(tmp_path):
    (tmp_path / "pgmail.toml").write_text(
        'api_prot = 1\nsettle_batch = "many"\nnotify = 1\nlog_level = 3\n[worker]\nx = 1\n'
    )
    environ = {
        "PGMAIL_DATABSE_URL": "postgres://u:hunter2@h/db",
        "PGMAIL_API_PORT": "99999",
        "PGMAIL_API_PROCESSES": "two",
        "PGMAIL_NOTIFY": "perhaps",
        "PGMAIL_LOG_FORMAT": "xml",
        "PGMAIL_SILENCE_SECONDS": "nan",
        "PGMAIL_DRAIN_SECONDS": "inf",
        "PGMAIL_ROLE_PREFIX": "PgMail-",
        "PGMAIL_HELO_NAME": "a b",
        "PGMAIL_MESSAGE_ID_DOMAIN": "localhost",
        "PGMAIL_RELAY_URL": "http://user:hunter2@relay",
    }
    faults = faults_of(environ, tmp_path, options={"data_folder": "  "})
    assert "hunter2" not in str(faults)
    assert faults == [
        "pgmail.toml: api_prot: no such setting; did you mean api_port?",
        "pgmail.toml: settle_batch: must be a whole number of results from 1 to 5,000, not 'many'",
        "pgmail.toml: notify: must be true or false, not 1",
        "pgmail.toml: log_level: must be a text, not 3",
        "pgmail.toml: worker: no such setting",
        "PGMAIL_API_PORT: must be a whole number from 0 to 65,535, not 99999",
        "PGMAIL_API_PROCESSES: must be a whole number of processes from 1 to 256, not 'two'",
        "PGMAIL_DATABSE_URL: no such setting; did you mean PGMAIL_DATABASE_URL?",
        "PGMAIL_DRAIN_SECONDS: must be a number of s from 0 to 3,600, not inf",
        "PGMAIL_HELO_NAME: must be a host name, or an address in brackets",
        "PGMAIL_LOG_FORMAT: must be auto, json or console, not 'xml'",
        "PGMAIL_MESSAGE_ID_DOMAIN: must be a domain name such as mail.example.com, in ASCII",
        "PGMAIL_NOTIFY: must be true or false, not 'perhaps'",
        "PGMAIL_RELAY_URL: must be smtp://host:port or smtps://host:port",
        "PGMAIL_ROLE_PREFIX: must be 1 to 32 of a-z, 0-9 and _, not beginning with a digit",
        "PGMAIL_SILENCE_SECONDS: must be a number of s from 0.5 to 600, not nan",
        "--data-folder: must not be empty",
    ]


@pytest.mark.parametrize("content", [b"api_port = ", b"\xff", b"api_port = 1\napi_port = 2"])
def test_a_file_that_cannot_be_read_is_one_fault(tmp_path, content):
    (tmp_path / "pgmail.toml").write_bytes(content)
    (fault,) = faults_of({}, tmp_path)
    assert "cannot be read" in fault


def test_a_float_is_no_whole_number_and_a_boolean_no_number(tmp_path):
    (tmp_path / "pgmail.toml").write_text("api_port = 80.0\nsettle_batch = true\n")
    assert len(faults_of({}, tmp_path)) == 2


def test_settings_that_contradict_each_other_are_refused(tmp_path):
    environ = {"PGMAIL_SILENCE_SECONDS": "1", "PGMAIL_BEAT_INTERVAL_MS": "900"}
    (fault,) = faults_of(environ, tmp_path)
    assert "PGMAIL_BEAT_INTERVAL_MS" in fault


def test_what_kubernetes_makes_of_a_service_named_pgmail_is_no_fault(tmp_path):
    environ = {
        "PGMAIL_SERVICE_HOST": "10.0.0.1",
        "PGMAIL_SERVICE_PORT": "8025",
        "PGMAIL_SERVICE_PORT_HTTP": "8025",
        "PGMAIL_PORT": "tcp://10.0.0.1:8025",
        "PGMAIL_PORT_8025_TCP": "tcp://10.0.0.1:8025",
        "PGMAIL_PORT_8025_TCP_ADDR": "10.0.0.1",
        "PGMAIL_API_PORT": "tcp://10.0.0.1:8025",
        "PGMAIL_API_SERVICE_HOST": "10.0.0.1",
    }
    assert load(environ, folder=tmp_path).api_port == 8025


def test_a_database_is_named_by_role_and_falls_back_to_the_common_one(tmp_path):
    settings = load({"PGMAIL_DATABASE_URL": "host=a", "PGMAIL_API_DATABASE_URL": "host=b"}, folder=tmp_path)
    assert [settings.database(role) for role in (None, "owner", "worker", "api")] == ["host=a"] * 3 + [
        "host=b"
    ]
    with pytest.raises(SettingsError, match="PGMAIL_DATABASE_URL is not set"):
        load({}, folder=tmp_path).database()
    with pytest.raises(SettingsError, match="PGMAIL_OWNER_DATABASE_URL"):
        load({}, folder=tmp_path).database("owner")


@pytest.mark.parametrize(
    ("fqdn", "helo"), [("mx.example.com", "mx.example.com"), ("box", "[127.0.0.1]"), ("a b.c", "[127.0.0.1]")]
)
def test_the_greeting_is_a_full_name_or_a_literal(monkeypatch, fqdn, helo):
    monkeypatch.setattr(socket, "getfqdn", lambda: fqdn)
    assert Settings().helo == helo
    assert Settings(helo_name="mail.example.com").helo == "mail.example.com"


GOOD_DATABASES = [
    "postgres://localhost/db",
    "postgresql://u:p%40ss@h1:5432,h2:5433/db?target_session_attrs=read-write",
    "postgresql://u@[::1]:5432/db",
    "postgresql:///db?host=/var/run/postgresql",
    "postgresql://",
    "host=a,b port=1,2 dbname=x password='a b\\'c'",
    "dbname = x",
    "",
]


@pytest.mark.parametrize("text", GOOD_DATABASES)
def test_a_database_is_named_by_url_or_by_keywords(text):
    assert database_fault(text) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mysql://h/db", "postgresql:// URL"),
        ("localhost", "libpq keywords"),
        ("host=a b c", "libpq keywords"),
        ("password='open", "libpq keywords"),
        ("postgres://h:0/db", "port outside"),
        ("postgres://h:70000/db", "port outside"),
        ("postgres://u:p:a@h:x/db", "malformed host"),
        ("postgres://u:pa/ss@h/db", "malformed host"),
    ],
)
def test_what_names_no_database_is_refused(text, reason):
    assert reason in database_fault(text)


@pytest.mark.parametrize("text", ["smtp://h", "smtps://u:p@h:465", "smtp://[::1]:25?tls=none", "smtp://h/"])
def test_a_relay_is_named_by_url(text):
    assert relay_fault(text) is None


@pytest.mark.parametrize(
    "text", ["h:25", "http://h", "smtp://", "smtp://h:0", "smtp://h:99999", "smtp://h/x", "smtp://[::1"]
)
def test_what_names_no_relay_is_refused(text):
    assert relay_fault(text)


def test_more_relays_are_named_in_one_setting_beside_the_default(tmp_path):
    two = "ses=smtps://u:p%20w@ses.example:465?helo=a.example  bulk=smtp://10.0.0.5"
    (tmp_path / "pgmail.toml").write_text(f'relay_urls = "{two}"')
    for settings in (load({}, folder=tmp_path), load({"PGMAIL_RELAY_URLS": two}, folder=tmp_path / "none")):
        assert settings.relays == {
            "default": "smtp://127.0.0.1:25",
            "ses": "smtps://u:p%20w@ses.example:465?helo=a.example",
            "bulk": "smtp://10.0.0.5",
        }
        (shown,) = [row.value for row in describe(settings) if row.name == "PGMAIL_RELAY_URLS"]
        assert shown == "ses=smtps://u:***@ses.example:465?helo=a.example  bulk=smtp://10.0.0.5"
    assert Settings().relays == {"default": "smtp://127.0.0.1:25"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("smtp://u:hunter2@h", "name=url pairs"),
        ("a=smtp://h b", "name=url pairs"),
        ("-a=smtp://h", "name=url pairs"),
        ("default=smtp://h", "PGMAIL_RELAY_URL"),
        ("a=smtp://h a=smtp://g", "a comes twice"),
        ("a=http://u:hunter2@h", "a must be smtp://"),
    ],
)
def test_what_names_no_relays_is_refused_without_the_password(text, reason):
    fault = relays_fault(text)
    assert reason in fault
    assert "hunter2" not in fault


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgres://u:pw@h/db", "postgres://u:***@h/db"),
        ("a=smtp://u:p@w@h b=smtps://v:x:y@g", "a=smtp://u:***@h b=smtps://v:***@g"),
        ("postgres://u:p@w/x:y@h/db", "postgres://u:***@h/db"),
        ("postgres://u@h/db", "postgres://u@h/db"),
        (
            "postgres://h1:1,h2:2/db?sslpassword=pw&password=pw2&x=1",
            "postgres://h1:1,h2:2/db?sslpassword=***&password=***&x=1",
        ),
        ("host=h password='p w' user=u", "host=h password=*** user=u"),
        ("host=h PASSWORD = pw", "host=h PASSWORD = ***"),
        ("password='open pw", "password=***"),
        ("smtp://u:pw@h:587?tls=starttls", "smtp://u:***@h:587?tls=starttls"),
    ],
)
def test_passwords_are_never_shown(text, shown):
    assert mask_url(text) == shown


def test_describe_shows_every_setting_and_masks_secrets(tmp_path):
    settings = load(
        {"PGMAIL_DATABASE_URL": "postgres://u:hunter2@h/db", "PGMAIL_NOTIFY": "off"}, folder=tmp_path
    )
    shown = {row.name: row for row in describe(settings)}
    assert list(shown) == [setting.env_name for setting in rows().values()]
    assert shown["PGMAIL_DATABASE_URL"].value == "postgres://u:***@h/db"
    assert (shown["PGMAIL_NOTIFY"].value, shown["PGMAIL_NOTIFY"].source) == ("false", "environment")
    assert shown["PGMAIL_NOTIFY"].default == "true"
    assert shown["PGMAIL_HELO_NAME"].value == "the host's full name"
    assert shown["PGMAIL_POLL_INTERVAL_MS"].unit == "ms"
    assert "hunter2" not in str(shown)


def test_every_field_is_a_row_with_a_text_and_its_default_is_legal():
    fields = set(Settings.__struct_fields__) - {"sources"}
    assert set(rows()) == fields
    for setting in rows().values():
        assert setting.row.text.endswith("."), setting.name
        if setting.default != "":
            assert config.judge(setting, setting.default) == setting.default


def test_the_documentation_has_each_setting_with_its_default_unit_range_and_text():
    lines = dict(re.findall(r"^\| `(PGMAIL_\w+)` \| (.*) \|$", DOC.read_text(encoding="utf-8"), re.MULTILINE))
    expected = {}
    for row in describe(Settings()):
        setting = rows()[row.name.removeprefix("PGMAIL_").lower()]
        expected[row.name] = f"{row.default} | {row.unit} | {config.allowed(setting)} | {row.text}"
    assert lines == expected, "ops/docs/settings.md is not what pgmail/config_settings.py says"
