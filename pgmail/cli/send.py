"""`pgmail send`: one email from options, or a whole body from JSON; with `--csv` a mailing (`send_csv`).

Options are the keys of the body (ops/docs/email.md), checked by the same law. It prints the id. What can go
wrong: an address list in one option; `--to` takes one address and may be given again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pgmail.cli import common, send_csv
from pgmail.errors import Refused

_TEXT = common.Text()
_RESULT = "\0result"  # `--json` without a file, which no file can be named


def _json_body(source: str) -> Any:
    """The whole body from a file, or from standard input for `-`."""
    try:
        text = common.read(source)
    except OSError as error:
        raise click.BadParameter(f"{source}: {error.strerror}", param_hint="--json") from None
    try:
        return common.parse_json(text)
    except ValueError as error:
        raise Refused("invalid_body", "", f"not JSON: {error}") from None


def _attachments(files: tuple[str, ...], assets: tuple[str, ...]) -> list[dict[str, Any]]:
    from pgmail.domain.email import Attachment  # noqa: PLC0415 - most mail has none

    found: list[dict[str, Any]] = []
    for name in files:
        try:
            file = Attachment.from_path(Path(name))
        except OSError as error:
            raise click.BadParameter(f"{name}: {error.strerror}", param_hint="--attach") from None
        found.append({"filename": file.filename, "content": file.content})
    return found + [{"asset": name} for name in assets]


def _one_or_many(values: tuple[str, ...]) -> str | list[str] | None:
    """One address as it stands, so that a fault is at `/to` and not at `/to/0`."""
    return None if not values else values[0] if len(values) == 1 else list(values)


@click.command(short_help="Enqueue an email; print its id.")
@click.option("--from", "sender", metavar="ADDRESS", help="Sender: addr@domain or 'Name <addr@domain>'.")
@click.option("--to", multiple=True, metavar="ADDRESS", help="Recipient; may be given again.")
@click.option("--cc", multiple=True, metavar="ADDRESS", help="Copy, shown to all; may be given again.")
@click.option("--bcc", multiple=True, metavar="ADDRESS", help="Copy, shown to nobody; may be given again.")
@click.option("--reply-to", multiple=True, metavar="ADDRESS", help="Where answers go; may be given again.")
@click.option("--mode", metavar="MODE", help="envelope (one email, To and Cc shown to all) or personal.")
@click.option("--subject", type=_TEXT, metavar="TEXT", help="Subject line.")
@click.option("--text", type=_TEXT, metavar="TEXT", help="Plain text; @FILE reads a file, @- standard input.")
@click.option("--html", type=_TEXT, metavar="TEXT", help="HTML; @FILE reads a file, @- standard input.")
@click.option("--template", metavar="NAME", help="A published template instead of subject, text and html.")
@click.option("--template-version", type=int, metavar="N", help="Its version. Defaults to the published one.")
@click.option(
    "--variable", "-v", type=common.Pair(), multiple=True, metavar="NAME=VALUE", help="A variable, as text."
)
@click.option("--variables", type=common.Json(), metavar="JSON", help="Variables as an object, or @FILE.")
@click.option(
    "--header", type=common.Pair(":"), multiple=True, metavar="'NAME: VALUE'", help="A header field."
)
@click.option("--attach", multiple=True, metavar="FILE", help="A file to attach; may be given again.")
@click.option("--asset", multiple=True, metavar="NAME", help="A stored asset to attach; may be given again.")
@click.option("--tag", type=common.Pair(), multiple=True, metavar="NAME=VALUE", help="A tag to find it by.")
@click.option("--metadata", type=common.Json(), metavar="JSON", help="An object that is kept, not sent.")
@click.option("--stream", metavar="NAME", help="Stream. Defaults to transactional; with --csv to broadcast.")
@click.option("--priority", metavar="WORD", help="high, normal or low. Defaults to the stream's.")
@click.option(
    "--at", "scheduled_at", metavar="TIME", help="When: ISO 8601, or 'in 5 minutes'. Defaults to now."
)
@click.option("--expires-at", metavar="TIME", help="Not sent after this moment (ISO 8601).")
@click.option(
    "--on-limit", metavar="WORD", help="What a limit does: delay, hold or error. Defaults to delay."
)
@click.option("--test", is_flag=True, help="A test: recorded as any email, delivered to the sandbox only.")
@click.option("--idempotency-key", metavar="KEY", help="The same key within 24 hours sends only once.")
@send_csv.options
@click.option(
    "--json",
    "source",
    is_flag=False,
    flag_value=_RESULT,
    metavar="[FILE]",
    help="Read the whole body from FILE, as of POST /emails; - is stdin. With --csv: print the result as JSON.",
)
def send(source: str | None, **options: Any) -> None:
    """Enqueue one email and print its id, or a mailing with --csv. It is sent when a worker runs."""
    path = options.pop("csv")
    if path is not None:
        if source not in (None, _RESULT):
            raise click.UsageError("--json FILE brings one email, and --csv a list; give one of them.")
        send_csv.run(path, options, _body(options), as_json=source is not None)
        return
    if given := sorted(name for name in send_csv.OPTIONS if options[name] not in (None, False)):
        raise click.UsageError(f"--{given[0].replace('_', '-')} is for a mailing; give --csv FILE as well.")
    if source == _RESULT:
        raise click.UsageError("--json wants a FILE with the body, or - for standard input.")
    if source is not None:
        if given := sorted(name for name, value in options.items() if value not in (None, (), False)):
            raise click.UsageError(f"--json brings the whole body; leave out {', '.join(given)}.")
        body = _json_body(source)
    else:
        body = _body(options)
    click.echo(common.run(_send(body)))


def _body(options: dict[str, Any]) -> dict[str, Any]:
    """The body that the options mean; what was not given is absent."""
    variables = dict(options["variable"])
    if isinstance(options["variables"], dict):
        variables = options["variables"] | variables
    elif options["variables"] is not None:
        variables = options["variables"]  # for the law to refuse
    keys = ("mode", "subject", "text", "html", "metadata", "stream", "priority", "scheduled_at")
    body = {key: options[key] for key in (*keys, "expires_at", "on_limit", "idempotency_key")}
    body["from"] = options["sender"]
    body["test"] = options["test"] or None
    for key in ("to", "cc", "bcc", "reply_to"):
        body[key] = _one_or_many(options[key])
    if options["template"] is not None:
        body["template"] = {"id": options["template"]}
        if options["template_version"] is not None:
            body["template"]["version"] = options["template_version"]
    if variables != {} or options["variables"] is not None:
        body["variables"] = variables
    body["headers"] = dict(options["header"]) or None
    body["tags"] = dict(options["tag"]) or None
    body["attachments"] = _attachments(options["attach"], options["asset"]) or None
    return {key: value for key, value in body.items() if value is not None}


async def _send(body: Any) -> Any:
    from pgmail.client import send as enqueue  # noqa: PLC0415
    from pgmail.client_bodies import checked  # noqa: PLC0415

    if not isinstance(body, dict):
        raise Refused("invalid_body", "", "an email is a JSON object")
    checked(body, common.now())  # a bad email is refused although no database is there
    seal = common.sealer(common.settings())
    async with common.database() as connection:
        return await enqueue(connection, body, seal=seal)
