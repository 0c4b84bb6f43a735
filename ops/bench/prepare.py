"""Makes ready what a race needs: npm packages and a virtual environment for the peers, in the work folder.

Nothing is installed into the system or into pgmail's own environment. What is not there and cannot be made (no
Node.js, no Redis, no network) is told, and those contestants do not start.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cached_property
from pathlib import Path

from services import has, program, run

from pgmail import __version__
from pgmail.errors import SandboxError

PEERS = Path(__file__).resolve().parent / "peers"
INSTALL_SECONDS = 600
NPM = ("bullmq", "express", "graphile-worker", "ioredis", "nodemailer", "pg")
PYTHON = ("asyncpg", "celery", "pgqueuer", "procrastinate", "psycopg", "redis")


class Prepared:
    """The drivers of the peers and what they run on. Each part is made when it is first asked for."""

    def __init__(self, work: Path) -> None:
        self.work = work

    @cached_property
    def node(self) -> Path:
        """The folder of the drivers on Node.js, with their packages. SandboxError without npm or a network."""
        if missing := has("node", "npm"):
            raise SandboxError(f"{' and '.join(missing)} not installed")
        folder = self.work / "node"
        folder.mkdir(parents=True, exist_ok=True)
        wanted = (PEERS / "package.json").read_bytes()
        stamp = folder / "installed.json"
        for path in (*PEERS.glob("*.mjs"), PEERS / "package.json"):
            shutil.copy(path, folder)  # a module is looked for beside the file that imports it
        if not stamp.is_file() or stamp.read_bytes() != wanted:
            _say("installing npm packages")
            run(["npm", "install", "--no-audit", "--no-fund"], seconds=INSTALL_SECONDS, cwd=folder)
            stamp.write_bytes(wanted)
        return folder

    @cached_property
    def python(self) -> Path:
        """The interpreter of the peers' environment. SandboxError without a network."""
        folder = self.work / "venv"
        python, stamp = folder / "bin" / "python", folder / "installed.txt"
        wanted = (PEERS / "requirements.txt").read_bytes()
        if not stamp.is_file() or stamp.read_bytes() != wanted:
            _say("installing Python packages")
            run([sys.executable, "-m", "venv", "--clear", folder], seconds=INSTALL_SECONDS)
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            run([*install, "--requirement", PEERS / "requirements.txt"], seconds=INSTALL_SECONDS)
            stamp.write_bytes(wanted)
        return python

    def versions(self) -> dict[str, str]:
        """The version of everything that is here."""
        found = {"pgmail": __version__, "python": sys.version.split()[0]}
        for name in NPM:
            path = self.work / "node" / "node_modules" / name / "package.json"
            if path.is_file():
                found[name] = json.loads(path.read_bytes())["version"]
        if (self.work / "venv" / "installed.txt").is_file():
            code = "import importlib.metadata as m, sys; print(*(m.version(n) for n in sys.argv[1:]))"
            words = run([self.python, "-c", code, *PYTHON], seconds=60).split()
            found |= dict(zip(PYTHON, words, strict=True))
        for name, argv in (
            ("node", ["node", "--version"]),
            ("redis-server", ["redis-server", "--version"]),
            ("postfix", ["postconf", "-d", "mail_version"]),
            ("wrk", ["wrk", "--version"]),
        ):
            if not has(argv[0]):
                out = subprocess.run(
                    [program(argv[0]), *argv[1:]], check=False, capture_output=True, text=True
                )
                if number := re.search(r"\d+\.\d+(\.\d+)*", out.stdout + out.stderr):
                    found[name] = number[0]
        return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
