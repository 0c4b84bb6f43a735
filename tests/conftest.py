"""Fixtures are plugins with names: what a test asks for is in the file that says so."""

import sys
from importlib.util import find_spec
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:  # `tests` is a package wherever pytest is started, and whatever its import mode
    sys.path.insert(0, _ROOT)

pytest_plugins = [
    name for name in ("tests.fix_db", "tests.fix_clock", "tests.fix_smtp") if find_spec(name) is not None
]
