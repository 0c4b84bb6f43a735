"""What the drivers on Python share: options, the message of the race, one line of JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

LINE = "Hello User, thank you for your order. " * 45


def options(description: str | None) -> argparse.Namespace:
    """The options that all drivers take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--dsn", default="", help="the PostgreSQL to use")
    parser.add_argument("--jobs", type=int, default=1000, help="how many")
    parser.add_argument("--payload", choices=("small", "full"), default="small", help="what a job carries")
    parser.add_argument("--concurrency", type=int, default=20, help="jobs at a time, or a batch")
    parser.add_argument("--work", type=int, default=1, help="0 only queues")
    return parser.parse_args()


def payload(kind: str, number: int) -> dict[str, Any]:
    """What a job carries: a little, or a whole mail of about 4 kB."""
    to = f"u{number}@example{number % 20}.com"
    if kind == "small":
        return {
            "from_": "shop@example.com",
            "to": to,
            "subject": "Hello",
            "text": "Hi, your order shipped.",
            "html": "",
        }
    return {
        "from_": "shop@example.com",
        "to": to,
        "subject": "Order for User",
        "text": LINE,
        "html": f"<p>{LINE}</p>",
    }


def thousands(total: int) -> Iterator[range]:
    """The numbers below `total`, a thousand at a time."""
    for low in range(0, total, 1000):
        yield range(low, min(low + 1000, total))


def say(**facts: float) -> None:
    """Print the figures."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
