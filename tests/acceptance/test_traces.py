"""One trace from the caller's request to the SMTP reply, over processes of their own."""

import gzip
import http.server
import json
import threading
import urllib.request

import pytest

from tests.waiting import eventually_now

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


class Collector(http.server.ThreadingHTTPServer):
    """Takes OTLP over HTTP and keeps the spans, by name."""

    def __init__(self):
        self.spans = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def of(self, trace):
        return [span for span in self.spans if span["trace"] == trace]


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            role = {x.key: x.value.string_value for x in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.server.spans += [
                    {
                        "name": span.name,
                        "role": role["pgmail.role"],
                        "service": role["service.name"],
                        "trace": span.trace_id.hex(),
                        "id": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "since": span.start_time_unix_nano,
                        "until": span.end_time_unix_nano,
                        "facts": {x.key: x.value.string_value or x.value.int_value for x in span.attributes},
                    }
                    for span in scope.spans
                ]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector():
    pytest.importorskip("opentelemetry.proto")
    made = Collector()
    yield made
    made.shutdown()
    made.server_close()


def post(api, body, traceparent):
    request = urllib.request.Request(
        f"http://127.0.0.1:{api.port}/emails",
        data=json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {api.key}",
            "Content-Type": "application/json",
            "traceparent": traceparent,
        },
    )
    with urllib.request.urlopen(request, timeout=15) as answer:
        return json.load(answer)["id"]


@pytest.mark.one_server
def test_one_trace_goes_from_the_callers_request_to_the_reply_and_over_a_retry(new_server, fleet, collector):
    server = new_server()
    server.ask(
        "select pgmail.save_stream('transactional', '{\"retry_base_seconds\": 1, \"retry_jitter\": 0}')"
    )
    fleet.worker(server.dsn("worker"), OTLP_URL=collector.url)
    api = fleet.api(server.dsn("api"), OTLP_URL=collector.url)
    body = {"from": "a@example.com", "to": "deferonce@example.org", "subject": "s", "text": "t"}
    sent = post(api, body, f"00-{TRACE}-{CALLER}-01")
    assert server.ask("select traceparent from pgmail.message where id = %s", [sent]).startswith(
        f"00-{TRACE}-"
    )

    def delivered():
        found = [span for span in collector.of(TRACE) if span["name"] == "deliver"]
        return found if {span["facts"]["pgmail.result"] for span in found} == {"deferred", "sent"} else None

    deliveries = eventually_now(delivered, 60)
    first = eventually_now(lambda: [s for s in collector.of(TRACE) if s["name"] == "POST /emails"], 30)[0]
    spans = collector.of(TRACE)
    enqueue = next(span for span in spans if span["name"] == "enqueue")
    assert first["parent"] == CALLER
    assert (first["role"], first["service"]) == ("api", "pgmail")
    assert first["facts"]["http.response.status_code"] == 200
    assert enqueue["parent"] == first["id"]
    for delivery in deliveries:
        assert delivery["parent"] == enqueue["id"]
        assert delivery["role"] == "worker"
        assert delivery["facts"]["pgmail.message"] == sent
        parts = {span["name"]: span for span in spans if span["parent"] == delivery["id"]}
        assert set(parts) == {"render", "connection", "smtp"} or set(parts) == {"connection", "smtp"}
        told = {"deferred": 451, "sent": 250}[delivery["facts"]["pgmail.result"]]
        assert parts["smtp"]["facts"]["smtp.code"] == told
        assert first["since"] <= parts["smtp"]["since"] <= parts["smtp"]["until"]
    assert len([span for span in spans if span["name"] == "queue" and span["parent"] == enqueue["id"]]) == 2
    assert "example.org" not in json.dumps([s["facts"] for s in spans if s["name"] != "deliver"])
    assert "deferonce" not in json.dumps(spans)
    # what its caller does not sample is carried on, and makes no spans
    quiet = "1" * 32
    post(api, body | {"to": "ada@example.org"}, f"00-{quiet}-{CALLER}-00")
    eventually_now(lambda: fleet.arrived.total() >= 2, 30)
    assert collector.of(quiet) == []


@pytest.mark.one_server
def test_a_collector_that_is_away_delays_no_mail(new_server, fleet):
    server = new_server()
    nowhere = "http://127.0.0.1:1"
    worker = fleet.worker(server.dsn("worker"), OTLP_URL=nowhere)
    api = fleet.api(server.dsn("api"), OTLP_URL=nowhere)
    body = {"from": "a@example.com", "to": "ada@example.org", "subject": "s", "text": "t"}
    for _ in range(3):
        post(api, body, f"00-{TRACE}-{CALLER}-01")
    eventually_now(lambda: fleet.arrived.total() >= 3, 30)
    fleet.end(worker)
    fleet.end(api.process)
