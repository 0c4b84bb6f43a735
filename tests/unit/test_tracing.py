"""Spans: which trace they belong to, and that nobody pays for them who wants none."""

import subprocess
import sys

import pytest

from pgmail.api.traced import carry
from pgmail.config import Settings, load
from pgmail.errors import SettingsError
from pgmail.tracing import Tracing, start

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = TRACE[:-1] + "0"


@pytest.fixture
def kept():
    """A tracing whose spans stay here."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    return Tracing("", "worker", processor=SimpleSpanProcessor(exporter)), exporter.get_finished_spans


def hexed(span):
    parent = None if span.parent is None else f"{span.parent.span_id:016x}"
    return f"{span.context.trace_id:032x}", parent


def test_an_attempt_is_told_below_its_callers_span_with_its_parts(kept):
    tracing, spans = kept
    attempt = tracing.attempt(TRACE, 2.0, {"pgmail.stream": "transactional"})
    attempt.part("render", 0.01)
    attempt.part("smtp", 0.02, {"smtp.code": 550, "smtp.enhanced": None}, kind="client", error="550 at rcpt")
    attempt.result = "bounced"
    attempt.end()
    found = {span.name: span for span in spans()}
    assert set(found) == {"queue", "deliver", "render", "smtp"}
    assert {hexed(span)[0] for span in spans()} == {TRACE[3:35]}
    assert hexed(found["queue"])[1] == hexed(found["deliver"])[1] == TRACE[36:52]
    assert hexed(found["smtp"])[1] == f"{found['deliver'].context.span_id:016x}"
    assert found["queue"].end_time - found["queue"].start_time == 2_000_000_000
    assert found["queue"].end_time == found["deliver"].start_time
    assert dict(found["smtp"].attributes) == {"smtp.code": 550}
    assert not found["smtp"].status.is_ok
    assert found["deliver"].attributes["pgmail.result"] == "bounced"


@pytest.mark.parametrize("given", [None, "zz", UNSAMPLED, TRACE.upper()])
def test_mail_without_a_trace_that_is_sampled_is_not_traced(kept, given):
    tracing, _ = kept
    assert tracing.attempt(given, 0.0, {}) is None


def test_what_is_no_traceparent_begins_a_trace_of_its_own(kept):
    tracing, spans = kept
    tracing.begin("POST /emails", "zz", "server").end({})
    (span,) = spans()
    assert span.parent is None


def test_an_email_that_brings_a_trace_keeps_it():
    own, other, batch = {"traceparent": "its own"}, {}, [{}, "no email"]
    for value in (own, other, batch):
        carry(value, TRACE)
    assert own == {"traceparent": "its own"}
    assert other == {"traceparent": TRACE}
    assert batch == [{"traceparent": TRACE}, "no email"]


def test_tracing_is_off_unless_asked_for_and_loads_nothing(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert start(Settings(), "worker") is None
    code = (
        "import sys; from pgmail.config import Settings; from pgmail.tracing import start;"
        "import pgmail.api.app, pgmail.worker.process; assert start(Settings(), 'api') is None;"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_extra_a_setting_is_a_fault_and_a_variable_of_the_host_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"pgmail\[tracing\]"):
        start(Settings(otlp_url="http://127.0.0.1:4318"), "worker")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert start(Settings(), "worker") is None


def test_the_standard_switch_turns_it_off(monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert start(Settings(otlp_url="http://127.0.0.1:4318"), "worker") is None


def test_an_address_of_a_collector_is_a_url(tmp_path):
    with pytest.raises(SettingsError, match="http://"):
        load({"PGMAIL_OTLP_URL": "127.0.0.1:4318"}, folder=tmp_path)
