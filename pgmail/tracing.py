"""Spans for OpenTelemetry: one trace from the caller's request to the reply of the receiving server.

    caller -> POST /emails -> enqueue -> (message.traceparent) -> deliver -> queue, render, connection, smtp

The trace travels in the row as a W3C traceparent; mail without one is not traced, nor is one whose caller does not
sample it. A worker's spans are made when they are over, with their times. They go to PGMAIL_OTLP_URL, or to where
OTEL_EXPORTER_OTLP_ENDPOINT says, by a thread of the SDK's; without either there is no tracing, and nothing of
OpenTelemetry is loaded.

What can go wrong: the collector is away. Spans wait in a bounded queue and are dropped when it is full; mail never
waits for them. No span holds an address, a subject or a body.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import structlog

from pgmail.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from pgmail.config import Settings

_log = structlog.get_logger()

FLUSH_SECONDS = 3.0  # for the last spans, when a process stops
_STANDARD = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_FORM = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")

Facts = Mapping[str, str | int | float | bool | None]
NONE: Facts = MappingProxyType({})


def start(settings: Settings, role: str) -> Tracing | None:
    """Return what makes spans in a process of this role, or None where nobody wants any.

    Raises SettingsError where PGMAIL_OTLP_URL wants them and `pgmail[tracing]` is not installed.
    """
    standard = next((os.environ[name] for name in _STANDARD if os.environ.get(name)), "")
    if not (settings.otlp_url or standard) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        return Tracing(settings.otlp_url, role)
    except ImportError:
        if settings.otlp_url:
            raise SettingsError(["PGMAIL_OTLP_URL: tracing takes pip install 'pgmail[tracing]'"]) from None
        # The variable is the whole host's, perhaps: no reason not to start.
        _log.warning("tracing.not_installed", want="pip install 'pgmail[tracing]'")
        return None


class Tracing:
    """Makes spans and hands them to an exporter. Belongs to one process."""

    def __init__(self, url: str, role: str, *, processor: Any = None) -> None:
        """`url` is the collector's base, `""` for what the standard variables say. Raises ImportError."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "pgmail"}
        self._provider = TracerProvider(
            resource=Resource.create(named | {"pgmail.role": role}), shutdown_on_exit=False
        )
        if processor is None:
            exporter = (
                OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces") if url else OTLPSpanExporter()
            )
            processor = BatchSpanProcessor(exporter, schedule_delay_millis=1_000)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("pgmail")

    def begin(self, name: str, parent: str | None, kind: str, at_ns: int | None = None) -> Open:
        """Begin a span: `kind` is server, client, producer, consumer or internal; `parent` a traceparent or None."""
        from opentelemetry.trace import SpanKind  # noqa: PLC0415

        span = self._tracer.start_span(
            name, context=_context(parent), kind=SpanKind[kind.upper()], start_time=at_ns
        )
        return Open(span)

    def attempt(self, traceparent: str | None, waited_seconds: float, facts: Facts) -> Attempt | None:
        """Return the record of one attempt to deliver, or None where its caller does not sample it."""
        found = None if traceparent is None else _FORM.fullmatch(traceparent)
        if traceparent is None or found is None or not int(found[3], 16) & 1:
            return None
        return Attempt(self, traceparent, waited_seconds, facts)

    async def close(self) -> None:
        """Send what is left, for a moment."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def over() -> None:
            if not done.done():
                done.set_result(None)

        def end() -> None:
            self._provider.force_flush(int(FLUSH_SECONDS * 1000))
            self._provider.shutdown()
            loop.call_soon_threadsafe(over)

        import threading  # noqa: PLC0415 - a pool's thread would be waited for at exit, however long it took

        threading.Thread(target=_quietly, args=(end,), name="tracing.close", daemon=True).start()
        await asyncio.wait({done}, timeout=FLUSH_SECONDS + 1)


class Open:
    """A span that is not over yet."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """What its children name as their parent."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(self, facts: Facts, *, error: str | None = None, at_ns: int | None = None) -> None:
        """End it: what is known of it, and what went wrong in a word."""
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

        self._span.set_attributes({key: value for key, value in facts.items() if value is not None})
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(at_ns)


class Attempt:
    """One attempt to deliver a mail of a trace: what took how long, told at its end."""

    __slots__ = ("_began_ns", "_facts", "_parts", "_traceparent", "_tracing", "_waited_ns", "result")

    def __init__(self, tracing: Tracing, traceparent: str, waited_seconds: float, facts: Facts) -> None:
        self._tracing, self._traceparent, self._facts = tracing, traceparent, facts
        self._began_ns = time.time_ns()
        self._waited_ns = max(0, round(waited_seconds * 1e9))
        self._parts: list[tuple[str, str, int, int, Facts, str | None]] = []
        self.result: str | None = None
        """What became of it; None: its lease went back."""

    def part(
        self, name: str, seconds: float, facts: Facts = NONE, *, kind: str = "internal", error: str | None = None,
        ago: float = 0.0,
    ) -> None:  # fmt: skip
        """Take note of a part that took so many seconds and ended just now, or so many seconds `ago`."""
        end = time.time_ns() - round(ago * 1e9)
        self._parts.append((name, kind, end - round(seconds * 1e9), end, facts, error))

    def end(self) -> None:
        """Tell it: the wait in the queue, then the attempt with its parts. Raises nothing: mail matters more."""
        try:
            self._tell()
        except Exception:  # noqa: BLE001 - mail matters more
            _log.exception("tracing.failed")

    def _tell(self) -> None:
        tracing, began = self._tracing, self._began_ns
        queue = tracing.begin("queue", self._traceparent, "internal", began - self._waited_ns)
        queue.end({}, at_ns=began)
        whole = tracing.begin("deliver", self._traceparent, "consumer", began)
        parent = whole.traceparent
        for name, kind, since, until, facts, error in self._parts:
            tracing.begin(name, parent, kind, since).end(facts, error=error, at_ns=until)
        result = self.result or "given_back"
        bad = result in ("bounced", "dead")
        whole.end({**self._facts, "pgmail.result": result}, error=result if bad else None)


def _context(traceparent: str | None) -> Any:
    """The parent's context; without one the span begins a trace."""
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.trace import (  # noqa: PLC0415
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        set_span_in_context,
    )

    found = None if traceparent is None else _FORM.fullmatch(traceparent)
    if found is None:
        return Context()
    trace, span, flags = (int(word, 16) for word in found.groups())
    remote = SpanContext(trace, span, is_remote=True, trace_flags=TraceFlags(flags))
    return set_span_in_context(NonRecordingSpan(remote), Context())


def _quietly(end: Any) -> None:
    try:
        end()
    except Exception as error:  # noqa: BLE001 - the last spans are lost, and nothing else
        _log.info("tracing.lost", error=str(error))
