"""Who looks on while a bench runs: two live overviews, two pages and metrics that are polled, ten listeners.

Three of the listeners are told everything that happens, seven only bounces. It reads and forgets, in a process of its
own, until SIGTERM; then it says on a line of JSON how much it was told, and how many streams still ran.

    python watchers.py PORT METRICS_PORT < a key with the scopes admin, read, manage and send
"""

from __future__ import annotations

import http.client
import json
import selectors
import signal
import socket
import sys
import time
from contextlib import ExitStack, closing
from urllib.parse import urlencode

HOST = "127.0.0.1"
STREAMS = (
    *["/dashboard/live/overview?span=1h"] * 2,
    *["/events/stream"] * 3,
    *["/events/stream?type=email.bounced"] * 7,
)
POLLED = (("/dashboard/queue/live", 5.0), ("/dashboard/workers/live", 3.0), ("/metrics", 5.0))
LONGEST_WAIT = 0.5


class Watchers:
    """All of them, on one thread."""

    def __init__(self, port: int, metrics_port: int, key: str) -> None:
        self._port, self._metrics_port = port, metrics_port
        self._headers = {"Authorization": f"Bearer {key}", "Cookie": _signed_in(port, key)}
        self.told = dict.fromkeys(STREAMS, 0)  # octets
        self.pages = dict.fromkeys((path for path, _ in POLLED), 0)
        self.refused: list[str] = []
        self.streams = 0
        self.over = False

    def run(self) -> None:
        """Look on until it is over."""
        now = time.monotonic()
        due = {path: now + every for path, every in POLLED}
        with selectors.DefaultSelector() as selector, ExitStack() as stack:
            for path in STREAMS:
                stream = stack.enter_context(closing(self._opened(path)))
                selector.register(stream, selectors.EVENT_READ, path)
            self.streams = len(STREAMS)
            print(json.dumps({"ready": True}), flush=True)
            while not self.over:
                wait = min(LONGEST_WAIT, max(min(due.values()) - time.monotonic(), 0))
                for event, _ in selector.select(wait):
                    octets = event.fileobj.recv(1 << 20)
                    self.told[event.data] += len(octets)
                    if not octets:
                        selector.unregister(event.fileobj)
                        self.streams -= 1
                for path, every in POLLED:
                    if time.monotonic() >= due[path]:
                        self._poll(path)
                        due[path] = time.monotonic() + every

    def _opened(self, path: str) -> socket.socket:
        connection = socket.create_connection((HOST, self._port), timeout=10)
        lines = [f"GET {path} HTTP/1.1", f"Host: {HOST}:{self._port}"]
        lines += [f"{name}: {text}" for name, text in self._headers.items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        if not (head := connection.recv(1 << 16)).startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"{path}: {head[:200]!r}")
        return connection

    def _poll(self, path: str) -> None:
        port = self._metrics_port if path == "/metrics" else self._port
        with closing(http.client.HTTPConnection(HOST, port, timeout=10)) as connection:
            connection.request("GET", path, headers=self._headers)
            answer = connection.getresponse()
            answer.read()
            self.pages[path] += 1
            if answer.status != 200:
                self.refused.append(f"{path}: {answer.status}")


def _signed_in(port: int, key: str) -> str:
    """Sign in as people do; the cookies."""
    with closing(http.client.HTTPConnection(HOST, port, timeout=10)) as connection:
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Origin": f"http://{HOST}:{port}",
        }
        connection.request("POST", "/dashboard/sign-in", urlencode({"key": key, "next": ""}), headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 303:
            raise SystemExit(f"cannot sign in: {answer.status}")
        return "; ".join(cookie.partition(";")[0] for cookie in answer.headers.get_all("Set-Cookie", []))


def main() -> None:
    """Look on."""
    all_ = Watchers(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.read().strip())

    def stop(*_: object) -> None:
        all_.over = True

    signal.signal(signal.SIGTERM, stop)
    all_.run()
    said = {"streams": all_.streams, "told": all_.told, "pages": all_.pages, "refused": all_.refused}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
