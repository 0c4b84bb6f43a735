"""A preview of what is in the template editor, with the variables beside it. Nothing is stored.

It is made between other requests, in a thread, one at a time, within the bounds of mail that is made between other
mail (`render.templates.QUICK_TOKENS`): so a template that costs too much is told so, and freezes nobody. Its HTML is
answered for a frame without rights: no scripts, no forms, no requests to anywhere. No transaction is open meanwhile.

What can go wrong: everything that a template may do wrong, which is what a preview is for. Each fault is told with its
part and line.
"""

from __future__ import annotations

import asyncio
import html as markup
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from litestar import Request, Response, post

from pgmail import publish as publishing
from pgmail.dashboard.frame import html, page
from pgmail.dashboard.guard import SEE, caller_of, database_of
from pgmail.dashboard.manage.questions import Given, given_of
from pgmail.dashboard.preview import MAIL_POLICY
from pgmail.errors import Refused, TemplateFault
from pgmail.render.templates import QUICK_SOURCE, QUICK_TOKENS, Bundle, Rendered, Source, compile_bundle
from pgmail.store.published import Version, published
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

SECONDS = 0.1
MOST_CHARS = 1_000_000
MOST_NODES = 20_000
_maker = ThreadPoolExecutor(1, thread_name_prefix="preview")


@post("/templates/preview", scope=SEE, status_code=200, test=True)
async def preview(request: AnyRequest) -> Response[Any]:
    """Subject, text and faults."""
    given = await given_of(request)
    rendered, error = await _made(request, given)
    return page(request, "manage/template_preview.html", title="Preview", rendered=rendered, error=error)


@post("/templates/preview/html", scope=SEE, status_code=200, test=True)
async def preview_html(request: AnyRequest) -> Response[Any]:
    """The HTML, for the frame that locks it up."""
    rendered, error = await _made(request, await given_of(request))
    if rendered is None or rendered.html is None:
        because = str(error) if error is not None else "This template has no HTML part."
        text = f"<!doctype html><meta charset=utf-8><title>No preview</title><p>{markup.escape(because)}</p>"
    else:
        text = rendered.html
    return html(text, headers={"Content-Security-Policy": MAIL_POLICY})


async def _made(request: AnyRequest, given: Given) -> tuple[Rendered | None, TemplateFault | Refused | None]:
    source = Source(
        subject=given.raw("subject") or None, text=given.raw("text") or None, html=given.raw("html") or None
    )
    try:
        _need_part(source)
        variables = _variables(given.raw("variables"))
        bundle = await publishing.bundle(_reader(request), given.one("name"), source)
        return await asyncio.get_running_loop().run_in_executor(_maker, _render, bundle, variables), None
    except (TemplateFault, Refused) as error:
        return None, error


def _reader(request: AnyRequest) -> publishing.Read:
    """What reads published templates, in a transaction that is over before anything is made of them."""

    async def read(names: Iterable[str]) -> dict[str, Version]:
        async with acting_as(database_of(request), caller_of(request)) as connection:
            return await published(connection, names)

    return read


def _need_part(source: Source) -> None:
    if source.text is None and source.html is None:
        raise Refused("missing_field", "/text", "a text or an HTML part is required")


def _variables(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refused(
            "invalid_variables", "/variables", f"the variables are no JSON object: {error}"
        ) from None


def _render(bundle: Bundle, variables: dict[str, Any]) -> Rendered:
    compiled = compile_bundle(bundle, most_tokens=QUICK_TOKENS, most_source=QUICK_SOURCE)
    return compiled.render(
        variables, seconds=SECONDS, max_chars=MOST_CHARS, max_nodes=MOST_NODES, with_text=True
    )


HANDLERS = (preview, preview_html)
