"""Servers of a test's own (`own_server`): a fresh one, and pgmail's processes on one host."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.acceptance.own_server import Fleet, Server, prepared


@pytest.fixture(scope="session")
def prepared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from prepared(tmp_path_factory.mktemp("prepared") / "pg")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Callable[[Server], Server]]:
    """Say which servers are to be removed with the test; answers them."""
    made: list[Server] = []

    def note(server: Server) -> Server:
        made.append(server)
        return server

    yield note
    for server in made:
        server.remove()


@pytest.fixture
def new_server(prepared_server: Server, servers, tmp_path: Path) -> Callable[..., Server]:
    """A running server with a pgmail schema and nothing in it; `settings` are PostgreSQL's."""
    number = count()

    def make(**settings: str) -> Server:
        return servers(prepared_server.copy_to(tmp_path / f"pg{next(number)}", **settings)).start()

    return make


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()
