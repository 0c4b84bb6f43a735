"""Ports of the loopback: one that is free, and whether a server answers.

What can go wrong: a port that was free is somebody else's a moment later. Who starts a server there sees that it does
not come up, and tries another.
"""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

HOST = "127.0.0.1"


def free_port(wanted: int = 0) -> int:
    """Return `wanted` if nobody listens there, else any port that nobody listens on just now."""
    with socket.socket() as probe:
        if wanted:  # a server that ended a moment ago is no reason against it
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError:
            if not wanted:
                raise
            return free_port()
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Tell whether a GET of `http://...` is answered with 200."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=5)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
