"""The kinds of sample mail: for each a function that writes one body of `POST /emails` (ops/docs/email.md).

Together they use what a body can hold: literal text, HTML alone (the text part is made from it), stored
templates with a layout, inline templates, attachments, an inline picture, a stored asset, Cc and Bcc, personal
variables, three priorities, two streams, own headers, metadata.

What can go wrong: `welcome`, `receipt` and `terms` need the shop's templates and asset in the database.
"""

from __future__ import annotations

import base64
import random
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import msgspec

from pgmail.sandbox import traffic_files as files
from pgmail.sandbox import traffic_words as words

Body = dict[str, Any]

ASSET = "terms"
LAYOUT, WELCOME, RECEIPT = "layout", "welcome", "receipt"

_INKS: tuple[tuple[files.Colour, files.Colour], ...] = (
    ((23, 94, 84), (226, 178, 92)),
    ((36, 59, 107), (231, 136, 120)),
    ((92, 45, 88), (240, 196, 140)),
)


class Guest(msgspec.Struct, frozen=True):
    """A recipient: who it is, the plain address, and both together as a body has them."""

    person: words.Person
    address: str
    shown: str

    @property
    def first_name(self) -> str:
        """What a letter begins with."""
        return self.person.name.split(" ")[0].strip("\"',") or "reader"


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """What a body is written from: the number of the mail, its recipients, and chance."""

    number: int
    guests: list[Guest]
    rng: random.Random

    @property
    def guest(self) -> Guest:
        """The first recipient."""
        return self.guests[0]

    @property
    def order_number(self) -> str:
        """The shop's own number for an order."""
        return f"HB-{10_000 + self.number}"


def order(scene: Scene) -> Body:
    """Plain text, literal: braces in it mean nothing."""
    lines, total = _basket(scene)
    listed = "\n".join(f"  {title:<46} {_money(price):>8}" for title, price in lines)
    return {
        "from": words.SHOP,
        "to": scene.guest.shown,
        "reply_to": words.HELP,
        "subject": f"Order {scene.order_number} is on its way",
        "text": (
            f"Dear {scene.guest.first_name},\n\nwe packed your order {scene.order_number}:\n\n{listed}\n"
            f"  {'Total':<46} {_money(total):>8}\n\n"
            ".A line that begins with a dot arrives as it is; so does {{ this }}.\n\nHarbour Books\n"
        ),
        "metadata": {"order": scene.order_number, "cents": total},
    }


def welcome(scene: Scene) -> Body:
    """A stored template with a layout."""
    return {
        "from": words.ACCOUNTS,
        "to": scene.guest.shown,
        "template": {
            "id": WELCOME,
            "variables": {
                "name": scene.guest.first_name,
                "card": f"{scene.rng.randrange(10**8):08d}",
                "points": scene.rng.randrange(5, 60, 5),
                "link": f"https://shop.example.com/first?card={scene.number}&from=mail",
            },
        },
    }


def receipt(scene: Scene) -> Body:
    """A stored template with a layout and a list."""
    lines, total = _basket(scene)
    return {
        "from": words.SHOP,
        "to": scene.guest.shown,
        "template": {"id": RECEIPT},
        "variables": {
            "name": scene.guest.first_name,
            "number": scene.order_number,
            "items": [{"title": title, "price": _money(price)} for title, price in lines],
            "total": _money(total),
        },
    }


def newsletter(scene: Scene) -> Body:
    """HTML alone, low priority, on the stream for broadcasts; the text part is made from it."""
    title, teaser = scene.rng.choice(words.STORIES)
    more = "".join(f"<li>{name}</li>" for name, _ in scene.rng.sample(words.THINGS, 3))
    return {
        "from": words.NEWS,
        "to": scene.guest.shown,
        "subject": title,
        "html": words.page(
            title,
            f"<p>{teaser}</p><h2>New on the shelf</h2><ul>{more}</ul>"
            '<p><a class="button" href="https://shop.example.com/weekly">Read on</a></p>',
        ),
        "headers": {
            "List-Unsubscribe": f"<https://shop.example.com/unsubscribe/{scene.number}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        },
        "stream": "broadcast",
        "priority": "low",
    }


def reset(scene: Scene) -> Body:
    """An inline template of high priority, that nobody should have to wait for."""
    return {
        "from": words.ACCOUNTS,
        "to": scene.guest.shown,
        "subject": "{{ code }} is your code, {{ name }}",
        "text": "Hello {{ name }},\n\nyour code is {{ code }}. It is good for ten minutes.\n",
        "html": words.page(
            "Your code",
            '<p>Hello {{ name }},</p><p style="font-size:34px;letter-spacing:6px"><b>{{ code }}</b></p>'
            "<p>It is good for ten minutes.</p>",
        ),
        "variables": {"name": scene.guest.first_name, "code": f"{scene.rng.randrange(10**6):06d}"},
        "priority": "high",
    }


def invoice(scene: Scene) -> Body:
    """A PDF attached."""
    lines, total = _basket(scene)
    listed = [f"{_money(price):>10}   {title}" for title, price in lines]
    paper = files.document(
        f"Invoice {scene.order_number}", ["Harbour Books", "", *listed, "", f"{_money(total):>10}   Total"]
    )
    return {
        "from": words.ACCOUNTS,
        "to": scene.guest.shown,
        "subject": f"Invoice {scene.order_number}",
        "text": f"Dear {scene.guest.first_name},\n\nthe invoice is attached.\n\nHarbour Books\n",
        "attachments": [{"filename": f"Invoice {scene.order_number}.pdf", "content": encoded(paper)}],
        "metadata": {"order": scene.order_number},
    }


def greeting(scene: Scene) -> Body:
    """A subject and a text in some script of the world."""
    said = scene.rng.choice(words.GREETINGS)
    return {
        "from": words.SHOP,
        "to": scene.guest.shown,
        "subject": said.subject,
        "text": f"{scene.guest.first_name},\n\n{said.text}\n",
    }


def postcard(scene: Scene) -> Body:
    """HTML with a picture of its own, referred to by Content-ID (RFC 2392)."""
    ink = scene.number % len(_INKS)
    return {
        "from": words.SHOP,
        "to": scene.guest.shown,
        "subject": "A postcard from the quay 🌊",
        "text": f"{scene.guest.first_name}, the sea says hello.\n",
        "html": words.page(
            "The sea says hello",
            f'<p><img src="cid:sea" width="504" height="168" alt="A bay in the evening"></p>'
            f"<p>{_escaped(scene.guest.first_name)}, we open at seven this summer.</p>",
        ),
        "attachments": [
            {
                "filename": "sea.png",
                "content": encoded(_picture(ink)),
                "content_type": "image/png",
                "content_id": "sea",
            }
        ],
    }


def team(scene: Scene) -> Body:
    """One email to four: To, two in Cc, one in Bcc."""
    to, first, second, hidden = (guest.shown for guest in scene.guests)
    return {
        "from": words.HELP,
        "to": to,
        "cc": [first, second],
        "bcc": hidden,
        "subject": f"Your group order {scene.order_number}",
        "text": "Hello all,\n\nthe parcels go to three addresses. Tell us if one of them is wrong.\n",
        "html": "<p>Hello all,</p><p>the parcels go to <b>three</b> addresses. Tell us if one is wrong.</p>",
    }


def reminder(scene: Scene) -> Body:
    """A reading to come, with an entry for the calendar."""
    begins = datetime(2027, 3, 1, 18, tzinfo=UTC) + timedelta(days=scene.number % 28)
    entry = files.appointment(f"reading-{scene.number}@shop.example.com", "Reading on the quay", begins)
    return {
        "from": words.SHOP,
        "to": scene.guest.shown,
        "subject": "A reading on the quay",
        "text": f"Dear {scene.guest.first_name},\n\nwe read on {begins:%d %B} at six. Bring a coat.\n",
        "attachments": [
            {
                "filename": "reading.ics",
                "content": encoded(entry),
                "content_type": "text/calendar; charset=utf-8",
            }
        ],
    }


def invitation(scene: Scene) -> Body:
    """Personal mode: each recipient sees only itself, and has variables of its own."""
    return {
        "from": words.NEWS,
        "mode": "personal",
        "to": [
            {
                "address": guest.address,
                **({"name": guest.person.name} if guest.person.name else {}),
                "variables": {"name": guest.first_name, "seat": f"{row}{scene.number % 30 + 1}"},
            }
            for row, guest in zip("ABCD", scene.guests, strict=False)
        ],
        "subject": "{{ name }}, seat {{ seat }} is yours",
        "text": "Dear {{ name }},\n\nfor the reading we kept seat {{ seat }} for you.\n\n{{ signed }}\n",
        "variables": {"signed": "Harbour Books"},
        "stream": "broadcast",
    }


def terms(scene: Scene) -> Body:
    """A file that is stored once, as an asset, and attached by its name."""
    return {
        "from": words.ACCOUNTS,
        "to": scene.guest.shown,
        "subject": "Our terms have changed",
        "html": f"<p>Dear {_escaped(scene.guest.first_name)},</p><p>we made our terms <i>shorter</i>.</p>",
        "attachments": [{"asset": ASSET}],
    }


def encoded(content: bytes) -> str:
    """Base64, as bodies have it."""
    return base64.b64encode(content).decode("ascii")


@cache
def _picture(ink: int) -> bytes:
    return files.picture(252, 84, *_INKS[ink])


def _basket(scene: Scene) -> tuple[list[tuple[str, int]], int]:
    """Some things with their prices in cents, and the sum."""
    lines = scene.rng.sample(words.THINGS, scene.rng.randint(1, 3))
    return lines, sum(price for _, price in lines)


def _money(cents: int) -> str:
    return f"€{cents // 100}.{cents % 100:02d}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
