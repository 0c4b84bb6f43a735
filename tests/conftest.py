"""Fixtures are plugins with names: what a test asks for is in the file that says so."""

import logging
import signal
import sys
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest
import structlog

_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:  # `tests` is a package wherever pytest is started, and whatever its import mode
    sys.path.insert(0, _ROOT)

pytest_plugins = [
    name for name in ("tests.fix_db", "tests.fix_clock", "tests.fix_smtp") if find_spec(name) is not None
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked long, as `make bench` does")


# A machine that stalls for a fifth of a second is no fault of what is tested.
hypothesis.settings.register_profile(
    "pgmail", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("pgmail")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes many seconds; runs with --long only")
    # A shell without job control starts what it puts in the background with SIGINT ignored, and children inherit that:
    # those that a test ends by Ctrl-C would never hear it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        skipped = pytest.mark.skip(reason="long: runs with --long")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skipped)


@pytest.fixture(autouse=True)
def own_memory(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A state folder for each test: databases of tests are copies of one, and would look restored to the next."""
    folder = tmp_path_factory.getbasetemp() / f"state-{uuid.uuid4().hex}"
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """How this process logs stays a test's own: a command that it runs in here sets that up for itself."""
    root, known, config = logging.getLogger(), structlog.is_configured(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    now = structlog.is_configured(), structlog.get_config()["logger_factory"]
    if now != (known, config["logger_factory"]):  # who captures lines sets it up too, and leaves the factory
        structlog.configure(**config) if known else structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(level)
