"""What a command logs: nothing by default, and never into what it prints or with anybody's address."""

import asyncio
import json
import logging

import click
import pytest
import structlog
from click.testing import CliRunner

from pgmail.cli import common
from pgmail.cli.front import DEBUG_ENV, Front

_WHO = "ada@example.org"


def _cli():
    @click.command()
    def look():
        async def act():
            structlog.get_logger().info("news", to=_WHO)
            structlog.get_logger().warning("trouble", to=_WHO, password="secret")
            logging.getLogger("psycopg.pool").warning("cannot reach %s", _WHO)
            asyncio.get_running_loop().call_exception_handler({"message": f"never retrieved: {_WHO}"})

        common.run(act())
        click.echo('{"done": true}')

    root = Front("pgmail", places={})
    root.add_command(look)
    return root


@pytest.mark.parametrize("debug", [False, True])
def test_what_a_command_logs_stands_on_standard_error_masked_and_only_if_it_is_trouble(monkeypatch, debug):
    monkeypatch.setenv(DEBUG_ENV, "1" if debug else "0")
    told = CliRunner().invoke(_cli(), ["look"])
    assert (told.exit_code, told.stdout) == (0, '{"done": true}\n')
    lines = [json.loads(line) for line in told.stderr.splitlines()]
    texts = [line["event"] for line in lines]
    assert texts == ["news"] * debug + [
        "trouble",
        "cannot reach a***@example.org",
        "never retrieved: a***@example.org",
    ]
    assert {line["to"] for line in lines if "to" in line} == {"a***@example.org"}
    assert "secret" not in told.stderr


def test_a_test_finds_the_log_as_it_was_before_a_command_ran():
    assert not structlog.is_configured()
