"""The documentation of records, read from their types and their source.

A field is described by the `#:` comment above it, a record by its docstring.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator

import msgspec
from msgspec import inspect as types

RecordType = type[msgspec.Struct]

#: Returns the text of a link to a record's table.
LinkFunction = Callable[[RecordType], str]

_SCALARS = {
    types.AnyType: "any value",
    types.BoolType: "boolean",
    types.FloatType: "number",
    types.IntType: "integer",
    types.NoneType: "null",
    types.StrType: "string",
}
_COMMENT_MARK = "#:"
_NONE = re.compile(r"\bNone\b")
_DOUBLE_BACKTICKS = re.compile(r"``([^`]+)``")


class FieldDoc(msgspec.Struct, frozen=True):
    """The documentation of one field of a record."""

    #: The key in JSON.
    name: str
    type: types.Type
    #: The comment above the field, in one line; without one the docstring of the record in it.
    meaning: str
    #: Whether the field may be absent.
    is_optional: bool


def describe_record(record: RecordType) -> str:
    """Return a record's docstring, each paragraph in one line."""
    docstring = inspect.cleandoc(record.__doc__ or "")
    paragraphs = [_join_lines(paragraph) for paragraph in docstring.split("\n\n")]
    return "\n\n".join(paragraphs)


def describe_fields(record: RecordType) -> list[FieldDoc]:
    """Return the documentation of each field, in the order of JSON."""
    comments = _read_comments(record)
    defaults = {field.name: field.default for field in msgspec.structs.fields(record)}
    fields = []
    for field in _struct_type(record).fields:
        meaning = comments.get(field.name) or _describe_only_record(field.type)
        is_optional = defaults[field.name] is msgspec.UNSET
        fields.append(FieldDoc(field.encode_name, field.type, meaning, is_optional))
    return fields


def find_records(record: RecordType) -> list[RecordType]:
    """Return a record and those that occur in it, in the order of their first occurrence."""
    records: dict[RecordType, None] = {}
    pending = [record]
    while pending:
        current = pending.pop()
        if current not in records:
            records[current] = None
            inner = list(find_inner_records(current))
            pending += reversed(inner)
    return list(records)


def find_inner_records(record: RecordType) -> Iterator[RecordType]:
    """Yield the records that occur in the fields of a record, those in lists included."""
    for field in _struct_type(record).fields:
        yield from _records_in_type(field.type)


def describe_type(field_type: types.Type, link: LinkFunction) -> str:
    """Return a type in plain words, such as ``list of integer``; `link` names records.

    Raises TypeError for a type without a form in JSON.
    """
    if isinstance(field_type, types.StructType):
        return link(field_type.cls)
    if isinstance(field_type, types.UnionType):
        return _describe_union(field_type, link)
    if isinstance(field_type, types.LiteralType):
        return " or ".join(f"`{value}`" for value in field_type.values)
    if isinstance(field_type, types.TupleType | types.CollectionType | types.DictType):
        return _describe_container(field_type, link)
    scalar = _SCALARS.get(type(field_type))
    if scalar is None:
        raise TypeError(f"{field_type} has no plain form in JSON")
    return scalar


def _describe_container(
    container: types.TupleType | types.CollectionType | types.DictType, link: LinkFunction
) -> str:
    if isinstance(container, types.TupleType):
        items = [describe_type(item, link) for item in container.item_types]
        return f"list ({', '.join(items)})"
    if isinstance(container, types.CollectionType):
        return f"list of {describe_type(container.item_type, link)}"
    return f"object of {describe_type(container.value_type, link)}"


def _describe_union(union: types.UnionType, link: LinkFunction) -> str:
    """Return the members of a union, null last."""
    members = [describe_type(member, link) for member in union.types]
    members.sort(key="null".__eq__)
    return " or ".join(members)


def _struct_type(record: RecordType) -> types.StructType:
    struct_type = types.type_info(record)
    assert isinstance(struct_type, types.StructType)
    return struct_type


def _describe_only_record(field_type: types.Type) -> str:
    """Return the first paragraph about the record in a type, "" unless there is just one."""
    records = list(_records_in_type(field_type))
    if len(records) != 1:
        return ""
    return describe_record(records[0]).partition("\n\n")[0]


def _records_in_type(field_type: types.Type) -> Iterator[RecordType]:
    if isinstance(field_type, types.StructType):
        yield field_type.cls
    elif isinstance(field_type, types.UnionType):
        for member in field_type.types:
            yield from _records_in_type(member)
    elif isinstance(field_type, types.TupleType):
        for item in field_type.item_types:
            yield from _records_in_type(item)
    elif isinstance(field_type, types.CollectionType):
        yield from _records_in_type(field_type.item_type)
    elif isinstance(field_type, types.DictType):
        yield from _records_in_type(field_type.value_type)


def _read_comments(record: RecordType) -> dict[str, str]:
    """Return the `#:` comment above each field of a record, and of the records it extends."""
    comments: dict[str, str] = {}
    for base in reversed(record.__mro__):
        if issubclass(base, msgspec.Struct) and base is not msgspec.Struct:
            comments |= _read_class_comments(base)
    return comments


def _read_class_comments(record: RecordType) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(record))
    lines = source.splitlines()
    (class_node,) = ast.parse(source).body
    assert isinstance(class_node, ast.ClassDef)
    comments = {}
    for node in class_node.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            comments[node.target.id] = _read_comment(lines, node.lineno - 1)
    return comments


def _read_comment(lines: list[str], field_line: int) -> str:
    """Return the comment that ends above a line, as one line."""
    comment: list[str] = []
    for line in reversed(lines[:field_line]):
        text = line.strip()
        if not text.startswith(_COMMENT_MARK):
            break
        comment.insert(0, text.removeprefix(_COMMENT_MARK))
    return _join_lines("\n".join(comment))


def _join_lines(text: str) -> str:
    """Return text in one line, with code as in Markdown and None as in JSON."""
    line = " ".join(text.split())
    line = _DOUBLE_BACKTICKS.sub(r"`\1`", line)
    return _NONE.sub("null", line)
