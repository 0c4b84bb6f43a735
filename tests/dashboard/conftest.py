"""What the tests of the dashboard share: the app with the dashboard mounted, and a browser that is signed in."""

import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from pgmail.config import Settings
from pgmail.dashboard.mount import mount
from pgmail.domain.keys import make_key
from pgmail.store.database import Database
from pgmail.store.keys import Limits
from tests.routed import create_app

ROOT = "/dashboard"
HOST = "http://pgmail.test"


def new_key(db: Any, name: str = "dash", *, tenant: int | None = None, **limits: Any) -> str:
    """Make a key of the first tenant, or another, with limits."""
    import msgspec

    made = Limits(**limits)
    key, hint, hash_ = make_key(test=made.test)
    with db.connect() as connection:
        if tenant is not None:
            connection.execute("select set_config('pgmail.tenant', %s, false)", [str(tenant)])
        connection.execute(
            "select pgmail.make_key(%s, %s, %s, %s::jsonb)",
            [name, hint, hash_, msgspec.json.encode(made).decode()],
        )
    return key


@pytest.fixture
def key(db: Any) -> str:
    return new_key(db)


class Browser(httpx.AsyncClient):
    """A client that keeps cookies and knows its session's token."""

    csrf = ""
    app: Any = None

    async def sign_in(self, key: str, next: str = "") -> httpx.Response:
        answer = await self.post(f"{ROOT}/sign-in", data={"key": key, "next": next}, headers={"Origin": HOST})
        if answer.status_code == 303:
            page = await self.get(f"{ROOT}/emails")
            found = re.search(r'name="csrf" content="([^"]+)"', page.text)
            self.csrf = found[1] if found else ""
        return answer

    async def act(self, path: str, data: dict[str, str] | None = None, **headers: str) -> httpx.Response:
        """Ask for a change as htmx does."""
        given = {"HX-Request": "true", "X-CSRF-Token": self.csrf, "Origin": HOST} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return await self.post(path, data=data or {}, headers=given)


@contextlib.asynccontextmanager
async def browser(
    dsn: str, key: str | None, *, settings: Settings | None = None, clock: Any = None, keks: Any = None
) -> AsyncIterator[Browser]:
    """A browser on an app on this database, signed in if there is a key."""
    database = Database(dsn, name="dash-test", low=0, high=4)
    await database.open()
    app = create_app(settings or Settings(), database, clock=clock, keks=keks, mounts=[mount])
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    try:
        async with Browser(transport=transport, base_url=HOST) as made:
            made.app = app
            if key is not None:
                answer = await made.sign_in(key)
                assert answer.status_code == 303, answer.text
            yield made
    finally:
        app.state.live.stopping.set()
        await database.close()


@pytest.fixture
async def page(db: Any, key: str) -> AsyncIterator[Browser]:
    async with browser(db.dsn_for("api"), key) as made:
        yield made
