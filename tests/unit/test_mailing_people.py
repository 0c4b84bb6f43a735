"""A row as a recipient: which rows make one, and with which variables."""

import pytest

from pgmail.errors import Refused
from pgmail.mailing.people import People, Unfit
from pgmail.mailing.table import Header


def people(*names, **options):
    display = names.index("name") if "name" in names else None
    header = Header(names, names.index("email"), display, tuple(enumerate(names)))
    return People(header, **options)


def fault(reader, *cells):
    with pytest.raises(Unfit) as caught:
        reader.check(cells)
    return caught.value.fault.column, caught.value.fault.code


def test_a_row_is_an_address_a_name_and_variables():
    reader = people("email", "name", "code")
    assert reader.check(["Ada@Example.COM", "Ada", "7"]) == "ada@example.com"
    assert reader.recipient([" Ada@Example.COM ", "Ada", "7"]) == {
        "address": "Ada@Example.COM",
        "name": "Ada",
        "variables": {"email": " Ada@Example.COM ", "name": "Ada", "code": "7"},
    }


def test_a_name_within_the_address_is_taken_from_it():
    reader = people("email")
    assert reader.check(["Ada <ada@example.com>"]) == "ada@example.com"
    found = reader.recipient(['"Ada, L" <ada@example.com>'])
    assert (found["address"], found["name"]) == ("ada@example.com", "Ada, L")


@pytest.mark.parametrize(
    ("cells", "column", "code"),
    [
        (["", "Ada"], "email", "missing_field"),
        (["  ", "Ada"], "email", "missing_field"),
        (["nobody", "Ada"], "email", "invalid_address"),
        (["a@example.com,b@example.com", "Ada"], "email", "invalid_address"),
        (["a@example.com", "A\nB"], "email", "invalid_address"),
    ],
)
def test_what_is_no_recipient_is_unfit(cells, column, code):
    assert fault(people("email", "name"), *cells) == (column, code)


def test_an_empty_cell_gives_no_variable_unless_it_is_kept():
    assert people("email", "x").recipient(["a@example.com", ""])["variables"] == {"email": "a@example.com"}
    assert people("email", "x", keep_empty=True).recipient(["a@example.com", ""])["variables"]["x"] == ""


def test_a_row_without_what_the_template_needs_is_unfit_unless_empty_is_kept():
    reader = people("email", "x")
    reader.require({"x"})
    assert fault(reader, "a@example.com", "") == ("x", "missing_variable")
    kept = people("email", "x", keep_empty=True)
    kept.require({"x"})
    assert kept.check(["a@example.com", ""]) == "a@example.com"


def test_a_variable_that_no_column_gives_refuses_the_mailing():
    with pytest.raises(Refused, match="'X' is another name") as caught:
        people("email", "X").require({"x"})
    assert (caught.value.code, caught.value.field) == ("missing_variable", "/variables")


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("12", 12),
        ("true", True),
        ("1.5", 1.5),
        ('"12"', "12"),
        ('["a", {"b": null}]', ["a", {"b": None}]),
        ("null", None),
        ("Ada", "Ada"),
        ("007", "007"),
        ("NaN", "NaN"),
        ("1e999", "1e999"),
        ("9" * 40, int("9" * 40)),
        ("9" * 5_000, "9" * 5_000),
        ("18446744073709551615", 18446744073709551615),
    ],
)
def test_typed_cells_are_json_or_else_text(cell, value):
    reader = people("email", "x", typed=True)
    reader.check(["a@example.com", cell])
    found = reader.recipient(["a@example.com", cell])["variables"]["x"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("cell", ["{", '"x', "[1,]", '"\\u0000"', '{"a": NaN}', "[" * 5_000 + "]" * 5_000])
def test_a_typed_cell_that_is_meant_as_json_and_is_not_is_unfit(cell):
    assert fault(people("email", "x", typed=True), "a@example.com", cell) == ("x", "invalid_variables")


def test_a_name_stays_a_text_where_cells_are_typed():
    assert people("email", "name", typed=True).recipient(["a@example.com", "true"])["name"] == "true"
