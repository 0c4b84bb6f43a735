"""The settings themselves: each is one annotated line of `Settings`, with type, default, unit, range and text.

The same lines make ops/docs/settings.md, which a test holds against this file. `pgmail.config` reads them.

What can go wrong: a value that is well by itself and not beside another. That is judged once all are known, in
`pgmail.config.load`.
"""

from __future__ import annotations

import re
import socket
from typing import Annotated, Literal

import msgspec

from pgmail.config_people import recipients_fault, redirect_fault, sender_fault, subject_fault
from pgmail.config_rows import Row
from pgmail.config_text import (
    database_fault,
    dns_servers_fault,
    dns_servers_of,
    keys_fault,
    mask_keys,
    mask_path,
    networks_fault,
    relay_fault,
    relay_or_none_fault,
    relay_pairs,
    relays_fault,
    web_fault,
)
from pgmail.errors import SettingsError

Role = Literal["owner", "worker", "api"]

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\]|\[IPv6:[0-9A-Fa-f:.]+\]")


def _host_fault(text: str) -> str | None:
    return None if not text or _HOST.fullmatch(text) else "must be a host name, or an address in brackets"


def _domain_fault(text: str) -> str | None:
    good = not text or ("." in text and re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})+", text))
    return None if good else "must be a domain name such as mail.example.com, in ASCII"


def _prefix_fault(text: str) -> str | None:
    good = re.fullmatch(r"[a-z_][a-z0-9_]{0,31}", text)
    return None if good else "must be 1 to 32 of a-z, 0-9 and _, not beginning with a digit"


def _http_fault(text: str) -> str | None:
    return (
        None
        if not text or re.fullmatch(r"https?://[^\s/@]+(/\S*)?", text)
        else "must be an http:// or https:// URL"
    )


def _filled_fault(text: str) -> str | None:
    return None if text else "must not be empty"


def _database(text: str, default: str = "database_url") -> Row:
    return Row(text, secret=True, fault=database_fault, empty=default)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, checked. `sources` tells for each where its value came from."""

    database_url: Annotated[
        str, _database("The database: a URL or libpq keywords; several hosts allowed.", "none")
    ] = ""
    owner_database_url: Annotated[str, _database("The same as the schema's owner, for migrations.")] = ""
    worker_database_url: Annotated[str, _database("The same as the worker's role.")] = ""
    api_database_url: Annotated[str, _database("The same as the API's role.")] = ""
    role_prefix: Annotated[
        str, Row("First part of the names of pgmail's roles, which are cluster-wide.", fault=_prefix_fault)
    ] = "pgmail_"

    relay_url: Annotated[
        str, Row("SMTP relay that takes the mail: smtp:// or smtps://.", secret=True, fault=relay_fault)
    ] = "smtp://127.0.0.1:25"
    relay_urls: Annotated[
        str,
        Row(
            "More relays that streams may name: name=url pairs, separated by blanks.",
            secret=True,
            fault=relays_fault,
            empty="none",
        ),
    ] = ""
    helo_name: Annotated[
        str, Row("Name that workers greet with (EHLO).", fault=_host_fault, empty="the host's full name")
    ] = ""
    message_id_domain: Annotated[
        str, Row("Domain at the right of each Message-ID.", fault=_domain_fault, empty="the From domain")
    ] = ""
    smtp_timeout_scale: Annotated[
        float, Row("Factor on the SMTP timeouts of RFC 5321, section 4.5.3.2.", low=0.01, high=10)
    ] = 1.0

    dns_servers: Annotated[
        str,
        Row(
            "Name servers asked about sender domains: IP addresses, with :port if not 53, separated by commas.",
            fault=dns_servers_fault,
            empty="the host's",
        ),
    ] = ""

    api_host: Annotated[str, Row("Address that the API listens on.", fault=_filled_fault)] = "127.0.0.1"
    api_port: Annotated[int, Row("Port that the API listens on; 0 takes a free one.", low=0, high=65_535)] = (
        8025
    )
    api_processes: Annotated[int, Row("API processes on this host.", "processes", low=1, high=256)] = 1
    api_pool_size: Annotated[
        int, Row("Most database connections of each API process.", "connections", low=1, high=200)
    ] = 8
    api_listeners: Annotated[
        int, Row("Most listeners to live events of each API process.", "listeners", low=1, high=100_000)
    ] = 2_000
    trusted_proxies: Annotated[
        str,
        Row(
            "Networks of the proxies whose X-Forwarded-For is believed, separated by blanks.",
            fault=networks_fault,
            empty="none",
        ),
    ] = ""
    max_body_bytes: Annotated[
        int, Row("Largest body of an HTTP request.", "bytes", low=65_536, high=1_073_741_824)
    ] = 41_943_040

    worker_processes: Annotated[int, Row("Worker processes on this host.", "processes", low=1, high=256)] = 1
    worker_concurrency: Annotated[
        int, Row("Emails that one worker process sends at the same time.", "emails", low=1, high=1_000)
    ] = 20
    worker_pool_size: Annotated[
        int, Row("Database connections of each worker, besides its listener.", "connections", low=1, high=100)
    ] = 3
    poll_interval_ms: Annotated[
        int, Row("Longest wait before a worker looks for mail unasked.", "ms", low=10, high=60_000)
    ] = 1_000
    notify: Annotated[
        bool, Row("Whether sleeping workers listen for NOTIFY; polling goes on either way.")
    ] = True
    settle_interval_ms: Annotated[
        int, Row("Longest time that results are gathered before they are recorded.", "ms", low=1, high=1_000)
    ] = 15
    settle_batch: Annotated[
        int, Row("Most results that are recorded in one statement.", "results", low=1, high=5_000)
    ] = 200
    intent_interval_ms: Annotated[
        int,
        Row("Longest time that intents to send are gathered, on streams that hold.", "ms", low=1, high=1_000),
    ] = 3
    beat_interval_ms: Annotated[
        int, Row("How often a process says that it is alive.", "ms", low=50, high=60_000)
    ] = 1_000
    silence_seconds: Annotated[
        float, Row("Silence after which a worker is dead and its mail is rescued.", "s", low=0.5, high=600)
    ] = 5.0
    drain_seconds: Annotated[
        float, Row("Longest wait for mail under way when told to stop.", "s", low=0, high=3_600)
    ] = 30.0

    redirect_to: Annotated[
        str,
        Row("For staging: the one address that all mail goes to.", fault=redirect_fault, empty="no redirect"),
    ] = ""
    allowed_recipients: Annotated[
        str,
        Row(
            "For staging: addresses and domains that alone get mail, separated by blanks.",
            fault=recipients_fault,
            empty="all",
        ),
    ] = ""
    subject_prefix: Annotated[
        str, Row("For staging: the word that each subject begins with.", fault=subject_fault, empty="none")
    ] = ""
    test_folder: Annotated[
        str, Row("Folder that keeps test email as .eml files.", empty="none: it is recorded only")
    ] = ""

    log_level: Annotated[
        str, Row("Least severe lines that are logged.", words=("debug", "info", "warning", "error"))
    ] = "info"
    log_format: Annotated[
        str, Row("json, console, or auto: console on a terminal.", words=("auto", "json", "console"))
    ] = "auto"
    data_folder: Annotated[
        str, Row("Folder of the embedded PostgreSQL and the sandbox.", fault=_filled_fault)
    ] = ".pgmail"
    state_dir: Annotated[
        str,
        Row(
            "Folder in which this host keeps what it saw committed, to notice a restored database.",
            empty="$XDG_STATE_HOME/pgmail, or ~/.local/state/pgmail",
        ),
    ] = ""

    api_tls_cert: Annotated[
        str, Row("PEM file of the API's certificate and its chain.", empty="none: plain HTTP")
    ] = ""
    api_tls_key: Annotated[
        str, Row("PEM file of its key, without a password.", empty="in the certificate's file")
    ] = ""
    api_plain_http: Annotated[
        bool, Row("Whether the API may speak plain HTTP on an address other than this machine's own.")
    ] = False

    metrics_host: Annotated[
        str, Row("Address of each process's listener for /metrics and /health.", fault=_filled_fault)
    ] = "127.0.0.1"
    metrics_port: Annotated[
        int,
        Row(
            "Its port, or the next free one above: each process has its own. 0 for none.", low=0, high=65_000
        ),
    ] = 9725
    metrics_networks: Annotated[
        str,
        Row(
            "Networks that may read /metrics besides this machine, separated by blanks.",
            fault=networks_fault,
            empty="none",
        ),
    ] = ""
    metrics_sites: Annotated[
        str,
        Row("Receiving sites that figures name, separated by blanks; all others are `other`.", empty="none"),
    ] = "gmail.com outlook.com yahoo.com icloud.com gmx.net proton.me t-online.de orange.fr comcast.net qq.com"
    otlp_url: Annotated[
        str,
        Row(
            "OpenTelemetry collector that spans go to (OTLP over HTTP), such as http://127.0.0.1:4318.",
            fault=_http_fault,
            empty="OTEL_EXPORTER_OTLP_ENDPOINT, or no tracing",
        ),
    ] = ""
    metrics_tenants: Annotated[
        bool, Row("Whether figures of the queue name tenants, the 100 with the most mail waiting.")
    ] = False

    seal_keys: Annotated[
        str,
        Row(
            "Keys that wrap the keys of sealed mail: name=base64 pairs; the first wraps, all unwrap.",
            secret=True,
            fault=keys_fault,
            empty="none",
            mask=mask_keys,
        ),
    ] = ""
    seal_key_file: Annotated[str, Row("File with more of them.", empty="none")] = ""
    seal_key_command: Annotated[
        str, Row("Command that prints more of them, run without a shell at start.", empty="none")
    ] = ""

    hook_networks: Annotated[
        str,
        Row(
            "Private networks that webhooks and alerts may call, by http too, separated by blanks.",
            fault=networks_fault,
            empty="none",
        ),
    ] = ""
    hook_concurrency: Annotated[
        int,
        Row(
            "Webhooks that one worker or maintain process calls at the same time, a quarter of them of one "
            "endpoint; 0 leaves it to others.",
            "calls",
            low=0,
            high=500,
        ),
    ] = 20
    hook_rate: Annotated[
        int, Row("Most calls of webhooks of each such process.", "calls/s", low=1, high=10_000)
    ] = 100
    hook_log_days: Annotated[
        int,
        Row(
            "How long calls of webhooks are logged, and kept for an endpoint that fails.",
            "days",
            low=4,
            high=90,
        ),
    ] = 14

    public_url: Annotated[
        str,
        Row(
            "Address at which people reach the API and the dashboard, for links in alerts: https://mail.example.com.",
            fault=web_fault,
            empty="alerts carry no links",
        ),
    ] = ""
    alert_relay_url: Annotated[
        str,
        Row(
            "SMTP relay that alerts by email go through, past the queue.",
            secret=True,
            fault=relay_or_none_fault,
            empty="relay_url",
        ),
    ] = ""
    alert_from: Annotated[
        str,
        Row("Address that alerts by email come from.", fault=sender_fault, empty="pgmail@ the host's name"),
    ] = ""
    alert_url: Annotated[
        str,
        Row(
            "URL that a process tells when it cannot reach the database: a webhook's, or Slack's.",
            secret=True,
            fault=web_fault,
            empty="none",
            mask=mask_path,
        ),
    ] = ""

    sources: dict[str, str] = {}

    def database(self, role: Role | None = None) -> str:
        """Return the connection string for a role, or the common one. Raises SettingsError without one."""
        url: str = (getattr(self, f"{role}_database_url") if role else "") or self.database_url
        if not url:
            also = f" (or PGMAIL_{role.upper()}_DATABASE_URL)" if role else ""
            raise SettingsError(
                [f"PGMAIL_DATABASE_URL{also} is not set; it looks like postgresql://user@host/mail"]
            )
        return url

    @property
    def relays(self) -> dict[str, str]:
        """The URL of each relay by its name; `default` is `relay_url`."""
        return {"default": self.relay_url} | relay_pairs(self.relay_urls)

    @property
    def name_servers(self) -> tuple[tuple[str, int], ...]:
        """Address and port of each name server in `dns_servers`; none means those of the host."""
        return dns_servers_of(self.dns_servers)

    @property
    def helo(self) -> str:
        """What to greet with: `helo_name`, the host's full name, or a literal (RFC 5321, section 4.1.1.1)."""
        name = self.helo_name or socket.getfqdn()
        return name if self.helo_name or ("." in name and _HOST.fullmatch(name)) else "[127.0.0.1]"
