"""What is written about the routes is what there is: ops/docs/http.md and /schema."""

import re
from pathlib import Path

from pgmail import sqlfiles
from pgmail.api.app import create_app
from pgmail.api.openapi import EMAIL
from pgmail.api.streams import StreamSettings
from pgmail.config import Settings
from pgmail.domain.check import KEYS
from pgmail.store.database import Database
from tests.api.conftest import client

PAGE = Path(sqlfiles.home()) / "ops" / "docs" / "http.md"


def routes():
    app = create_app(Settings(), Database("postgresql:///none", name="none"))
    found = set()
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            if not handler.handler_id.startswith("litestar"):
                path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
                found |= {f"{method} {path}" for method in handler.http_methods if method != "OPTIONS"}
    return {item for item in found if "/schema" not in item}


def test_each_route_has_its_line_and_each_line_its_route():
    text = PAGE.read_text(encoding="utf-8")
    told = set(re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^`]*)`", text))
    assert {item for item in told if "/schema" not in item} == routes()
    assert "GET /schema" in told


def test_the_schema_describes_every_key_of_an_email():
    assert set(EMAIL) == set(KEYS)


async def test_the_schema_is_served_without_a_key_and_without_foreign_scripts():
    async with client("postgresql:///none", None) as api:
        answer = await api.get("/schema")
        found = answer.json()
        assert answer.status_code == 200
        assert found["openapi"].startswith("3.")
        told = {
            f"{method.upper()} {path}"
            for path, methods in found["paths"].items()
            for method in methods
            if method != "parameters"
        }
        assert told == routes()
        assert set(found["components"]["schemas"]["Stream"]["properties"]) == set(
            StreamSettings.__struct_fields__
        )
        references = set(re.findall(r"#/components/schemas/(\w+)", answer.text))
        assert references <= set(found["components"]["schemas"])
