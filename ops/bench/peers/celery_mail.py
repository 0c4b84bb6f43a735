"""A Celery application that renders a template with Jinja2 and sends with smtplib over a connection kept open.

RACE_REDIS and RACE_SMTP are ports of the loopback. A task is acknowledged late, so that one that dies is redone.
"""

from __future__ import annotations

import os
import smtplib
from email.message import EmailMessage

from celery import Celery
from jinja2 import Environment

app = Celery("race", broker=f"redis://127.0.0.1:{os.environ['RACE_REDIS']}/0", backend=None)
app.conf.task_ignore_result = True
app.conf.worker_prefetch_multiplier = 64
app.conf.task_acks_late = True

LINE = "Hello {{ name }}, thank you for your order. " * 45
_environment = Environment(autoescape=True)
_text, _html = _environment.from_string(LINE), _environment.from_string(f"<p>{LINE}</p>")
_open: list[smtplib.SMTP] = []


@app.task
def send(to: str, name: str) -> None:
    """Send one mail."""
    if not _open:
        _open.append(smtplib.SMTP("127.0.0.1", int(os.environ["RACE_SMTP"])))
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "shop@example.com", to, f"Order for {name}"
    mail.set_content(_text.render(name=name))
    mail.add_alternative(_html.render(name=name), subtype="html")
    _open[0].send_message(mail)
