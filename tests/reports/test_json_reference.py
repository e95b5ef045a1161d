"""The JSON reference has a table for every record that a command prints, and a row for every field."""

from __future__ import annotations

import re

import msgspec
import pytest

from qdq.cli.json_records import JSON_RECORDS
from qdq.reports.json_output import JSON_VERSION
from qdq.reports.json_reference import json_page
from qdq.reports.record_docs import describe_fields, describe_record, find_records
from qdq.reports.report import Report


class Inner(msgspec.Struct, frozen=True):
    """An inner record."""

    #: A value, ``a`` or
    #: None | more.
    value: str | None
    pairs: tuple[tuple[str, int], ...] = ()


class Base(msgspec.Struct, frozen=True):
    """A base."""

    #: From the base.
    number: float


class Outer(Base, frozen=True):
    """A record.

    In two
    paragraphs.
    """

    inner: tuple[Inner, ...] = ()
    #: Renamed.
    from_: bool = msgspec.field(name="from", default=False)
    extra: Inner | msgspec.UnsetType = msgspec.UNSET


class Alone(msgspec.Struct, frozen=True):
    """Has no other records."""

    table: dict[str, int]


def sections(page: str) -> dict[str, str]:
    """Return the sections of a page by heading."""
    parts = re.split(r"^### (.*)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(section: str) -> list[str]:
    """Return the names of the fields in a section's table."""
    return re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)


def test_every_record_has_its_table_and_every_field_its_row() -> None:
    by_heading = sections(json_page(JSON_RECORDS))
    for command, root in JSON_RECORDS.items():
        section = by_heading[f"`{command}`"]
        for record in find_records(root):
            text = by_heading.get(record.__name__, section)
            expected = [field.name for field in describe_fields(record)]
            assert rows(text) == expected, (command, record)


def test_every_link_of_the_page_has_a_heading() -> None:
    page = json_page(JSON_RECORDS)
    headings = {heading.lower() for heading in sections(page)}
    links = set(re.findall(r"\]\(#(\w+)\)", page))
    assert links
    assert links <= headings


def test_the_fields_are_the_keys_of_json() -> None:
    content = msgspec.to_builtins(Outer(1.0, (), False, Inner("a")))
    assert [field.name for field in describe_fields(Outer)] == list(content)
    optional = [field.name for field in describe_fields(Report) if field.is_optional]
    assert optional == [
        "build_search",
        "recovery",
        "partial",
        "existing",
        "cast",
        "original_accuracy",
        "file_choices",
    ]


def test_a_record_in_two_places_has_a_section_and_others_are_in_their_command() -> None:
    page = json_page({"first": Outer, "second": Alone})
    by_heading = sections(page)
    assert list(by_heading) == ["`first`", "`second`", "Inner"]
    assert "| `table` | object of integer |  |" in by_heading["`second`"]
    assert "A record.\n\nIn two paragraphs.\n" in by_heading["`first`"]
    assert "| `number` | number | From the base. |" in by_heading["`first`"]
    assert "| `inner` | list of [Inner](#inner) | An inner record. |" in by_heading["`first`"]
    assert "| `from` | boolean | Renamed. |" in by_heading["`first`"]
    assert "| `extra` | [Inner](#inner), or absent |" in by_heading["`first`"]
    assert "| `value` | string or null | A value, `a` or null \\| more. |" in page
    assert "| `pairs` | list of list (string, integer) |  |" in page


def test_the_page_has_the_version_and_the_exit_codes() -> None:
    page = json_page({"first": Alone})
    assert f"the version of the layout ({JSON_VERSION})" in page
    assert re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE) == ["0", "1", "2", "3", "130"]


def test_types_without_a_form_in_json_are_refused() -> None:
    class Odd(msgspec.Struct, frozen=True):
        """Has a type that is no JSON."""

        value: complex

    class Other(msgspec.Struct, frozen=True):
        """Has a record of the same name."""

        inner: Inner

    renamed = type("Inner", (Alone,), {"__module__": __name__})
    assert describe_record(Odd) == "Has a type that is no JSON."
    with pytest.raises(TypeError, match="no plain form in JSON"):
        json_page({"odd": Odd})
    with pytest.raises(ValueError, match="several records are named Inner"):
        json_page({"a": Other, "b": renamed, "c": renamed})
