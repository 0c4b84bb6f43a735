"""The SQL files are found and read as they are meant."""

import pytest

from pgmail import sqlfiles


def test_a_block_gives_name_kind_purpose_and_statement():
    found = sqlfiles.parse(
        "-- What this file is for.\n\n"
        "-- name: claim_batch :many\n-- Takes work,\n-- the oldest first.\nselect 1;\n\n"
        "-- name: beat :exec\n-- Says that we live.\nselect '-- not a comment', 50 % 7\n  -- a reason\nfrom x;\n",
        "a.sql",
    )
    assert list(found) == ["claim_batch", "beat"]
    assert found["claim_batch"] == ("claim_batch", "many", "select 1", "Takes work, the oldest first.")
    assert found["beat"].text == "select '-- not a comment', 50 % 7\n  -- a reason\nfrom x"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("-- name: x\n-- p\nselect 1;", "is not '-- name:"),
        ("-- name: x :all\n-- p\nselect 1;", "is not '-- name:"),
        ("-- name: x :one\nselect 1;", "no purpose"),
        ("-- name: x :one\n-- p\n", "no statement"),
        ("-- name: x :one\n-- p\nselect 1;\n-- name: x :one\n-- p\nselect 2;", "comes twice"),
        ("select 1;\n-- name: x :one\n-- p\nselect 1;", "before the first"),
    ],
)
def test_a_malformed_file_is_refused_by_name(text, fault):
    with pytest.raises(ValueError, match=fault) as caught:
        sqlfiles.parse(text, "queries/a.sql")
    assert str(caught.value).startswith("queries/a.sql: ")


def test_every_file_of_queries_is_well_formed():
    names = [path.stem for path in (sqlfiles.sql_folder() / "queries").glob("*.sql")]
    assert names
    assert all(sqlfiles.queries(name) for name in names)


def test_functions_and_migrations_come_in_order_and_in_pairs():
    assert [path.name for path in sqlfiles.functions()] == sorted(path.name for path in sqlfiles.functions())
    numbers = [step.number for step in sqlfiles.migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_file_is_read_by_its_path_below_sql():
    assert "-- section: create" in sqlfiles.read("roles.sql")
