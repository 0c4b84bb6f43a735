"""What sample mail is made of: people, things, sentences, and the shop's own templates. Data only.

All domains are reserved for examples (RFC 2606, RFC 6761). Names and sentences come in several scripts, since
mail that was only tried in ASCII was not tried.
"""

# ruff: noqa: RUF001 - signs that look like others are what is tried here

from __future__ import annotations

from typing import NamedTuple


class Person(NamedTuple):
    """A name as shown, and the local part of an address."""

    name: str
    local: str


class Greeting(NamedTuple):
    """A subject and a text in one language; both say much the same."""

    subject: str
    text: str


SHOP = "Harbour Books <orders@shop.example.com>"
ACCOUNTS = "Harbour Books Accounts <accounts@shop.example.com>"
NEWS = "Harbour Books Weekly <weekly@news.example.com>"
HELP = "help@shop.example.com"

DOMAINS = (
    "example.org",
    "example.net",
    "example.com",
    "mail.example",
    "post.example",
    "correo.example",
    "poczta.example",
    "bücher.example",
)

PEOPLE = (
    Person("Ada Lovelace", "ada"),
    Person("Grace Hopper", "grace.hopper"),
    Person("José Ortega", "jose"),
    Person("Zoë Håkansson", "zoe"),
    Person("Łukasz Żak", "lukasz"),
    Person("山田 太郎", "yamada"),
    Person("김민준", "minjun"),
    Person("王小明", "xiaoming"),
    Person("Ольга Петрова", "olga.petrova"),
    Person("Μαρία Παππά", "maria"),
    Person("نور حداد", "noor"),
    Person("אורי לוי", "uri"),
    Person("Nguyễn Thị Hoa", "hoa"),
    Person('O\'Brien, "Red"', "red.obrien"),
    Person("Anne-Sophie Durand", "as.durand"),
    Person("T. S.", "t+books"),
    Person("Åsa Öberg", "asa_oberg"),
    Person("Chidi Okafor", "chidi"),
    Person("Priya Raman", "priya"),
    Person("", "plain"),
)

THINGS = (
    ("The Left Hand of Darkness", 1299),
    ("Gödel, Escher, Bach", 2450),
    ("Invisible Cities", 1100),
    ("吾輩は猫である", 980),
    ("Мастер и Маргарита", 1350),
    ("Cien años de soledad", 1425),
    ("A Pattern Language", 6500),
    ("The Art of Computer Programming, vol. 4B", 7400),
    ("Kirjailijan päiväkirja", 1690),
    ("Tea towel, “Read more”", 850),
)

GREETINGS = (
    Greeting(
        "🎉 Happy birthday from all of us", "A year older, a shelf fuller. 📚 Ten percent off, today only. 🎂"
    ),
    Greeting("ご注文ありがとうございます", "ご注文を承りました。発送まで二、三日お待ちください。"),
    Greeting("您的订单已发货 📦", "您好！您的订单已经发货，预计三天内送达。"),
    Greeting("주문해 주셔서 감사합니다", "주문이 접수되었습니다. 곧 발송해 드리겠습니다."),
    Greeting("شكراً لطلبك", "تم استلام طلبك وسنرسله خلال يومين."),
    Greeting("תודה על ההזמנה", "ההזמנה התקבלה ותישלח בתוך יומיים."),
    Greeting("Спасибо за заказ № 1024", "Заказ принят и будет отправлен в течение двух дней."),
    Greeting(
        "Ihre Bestellung wird nächste Woche geliefert", "Schöne Grüße aus dem Lager: größtenteils verpackt."
    ),
    Greeting(
        "👩‍👩‍👧‍👦 Family card: read together",
        "One card for the whole family 👨‍👩‍👧, valid until 31 December.",
    ),
    Greeting("Tack för din beställning – två dagar", "Vi packar just nu. Hälsningar från hamnen."),
)

STORIES = (
    ("Ten books for a long winter", "Snow outside, a lamp inside. Our booksellers chose what they reread."),
    ("Why we still print a catalogue", "It costs a fortune and nobody measures it. We would do it again."),
    ("Meet the translator", "“A sentence is finished when removing a word hurts.” An hour with Mira Kovač."),
    ("The shelf by the window", "Readers write about one place in the shop more than about any book."),
)

STYLE = (
    "body{margin:0;background:#f4f1ea;color:#22302e;font:16px/1.55 Georgia,'Times New Roman',serif}"
    ".page{max-width:560px;margin:0 auto;padding:32px 28px;background:#fffdf8}"
    "h1{font-size:26px;line-height:1.2;margin:0 0 16px}"
    "a.button{display:inline-block;padding:11px 20px;border-radius:6px;background:#175e54;color:#fffdf8;"
    "text-decoration:none;font-family:Helvetica,Arial,sans-serif;font-size:15px}"
    "table.items{width:100%;border-collapse:collapse;margin:18px 0}"
    "table.items td{padding:9px 0;border-bottom:1px solid #e5dfd0}"
    "td.sum{text-align:right;white-space:nowrap}"
    ".small{color:#6b7472;font-size:13px}"
)

LAYOUT_HTML = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{% block title %}Harbour Books'
    "{% endblock %}</title>\n<style>" + STYLE + '</style></head>\n<body><div class="page">\n'
    '<p class="small">HARBOUR BOOKS &middot; on the quay since 1931</p>\n{% block content %}{% endblock %}\n'
    '<p class="small">You get this mail because you have an account with us. '
    "{% block reason %}{% endblock %}</p>\n</div></body></html>\n"
)
LAYOUT_TEXT = "{% block content %}{% endblock %}\n--\nHarbour Books, on the quay since 1931\n"

WELCOME_SUBJECT = "Welcome aboard, {{ name }}"
WELCOME_HTML = (
    "{% extends 'layout' %}{% block title %}Welcome{% endblock %}{% block content %}\n"
    "<h1>Welcome aboard, {{ name }}</h1>\n"
    "<p>Your reading card is number <strong>{{ card }}</strong>. It has {{ points }} points on it already: "
    'enough for a coffee on the quay.</p>\n<p><a class="button" href="{{ link }}">Choose a first book</a></p>\n'
    "{% endblock %}"
)
WELCOME_TEXT = (
    "{% extends 'layout' %}{% block content %}Welcome aboard, {{ name }}.\n\n"
    "Your reading card is number {{ card }}, with {{ points }} points on it.\n"
    "Choose a first book: {{ link }}\n{% endblock %}"
)

RECEIPT_SUBJECT = "Your order {{ number }}"
RECEIPT_HTML = (
    "{% extends 'layout' %}{% block title %}Order {{ number }}{% endblock %}{% block content %}\n"
    "<h1>Thank you, {{ name }}</h1>\n<p>We pack order <strong>{{ number }}</strong> today.</p>\n"
    '<table class="items">{% for item in items %}<tr><td>{{ item.title }}</td>'
    '<td class="sum">{{ item.price }}</td></tr>{% endfor %}'
    '<tr><td><strong>Total</strong></td><td class="sum"><strong>{{ total }}</strong></td></tr></table>\n'
    "{% endblock %}{% block reason %}It is your receipt.{% endblock %}"
)
RECEIPT_TEXT = (
    "{% extends 'layout' %}{% block content %}Thank you, {{ name }}.\n\nOrder {{ number }}\n"
    "{% for item in items %}  {{ item.title }}  {{ item.price }}\n{% endfor %}  Total  {{ total }}\n{% endblock %}"
)


def page(title: str, content: str) -> str:
    """A whole HTML page in the shop's style; `title` and `content` are HTML already."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<style>{STYLE}</style></head>\n<body><div class="page"><h1>{title}</h1>\n{content}\n'
        '<p class="small">Harbour Books, on the quay since 1931</p></div></body></html>\n'
    )
