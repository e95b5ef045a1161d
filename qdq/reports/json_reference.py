"""The reference page of exit codes and JSON, generated from the records of the commands."""

from __future__ import annotations

from collections.abc import Mapping

from qdq.reports.json_output import JSON_VERSION, VERSION_KEY
from qdq.reports.markdown import escape_prose, format_table, join_parts
from qdq.reports.record_docs import (
    FieldDoc,
    RecordType,
    describe_fields,
    describe_record,
    describe_type,
    find_inner_records,
    find_records,
)
from qdq.reports.reference_pages import GENERATED

_EXIT_CODES = (
    ("0", "success, and nothing was found"),
    (
        "1",
        "something was found: `check` has findings, the pairs of two models or plans differ, a "
        "promise is broken, a build is refused, a threshold is missed, or a rule case fails",
    ),
    (
        "2",
        "the command could not run: one line on standard error names the place, the fact and the "
        "fix, and nothing is written. `check`, and `quantize --out-dir`, continue with the other "
        "models. A full or closed standard output and a crash of a library in C++ end so too",
    ),
    (
        "3",
        "an error that qdq does not foresee: one line names it; `qdq --debug COMMAND ...` prints "
        "the traceback before it, for a report",
    ),
    ("130", "interrupted by Ctrl-C; the code is 143 for SIGTERM and 129 for SIGHUP"),
)

_CONVENTIONS = (
    f"`--format json` prints one object, and `--report FILE.json` writes one. `{VERSION_KEY}` is "
    f"the version of the layout ({JSON_VERSION}). It is raised when a field changes its meaning or "
    "is removed, not when a field is added. NaN and infinity are `null`.",
    "An edge is one input of a node. The name of a tensor or node in a subgraph follows the path "
    "of the subgraph, as in `if_3.then_branch/x`.",
)

_OTHER_FILES = (
    f"A scales file (`qdq calibrate -o`) is one object without `{VERSION_KEY}`. Ranges "
    "(`qdq ranges export --format json`) are one object that maps tensors to amax, also without "
    "it. Plan files (`qdq plan -o`) are YAML, described in [plans.md](plans.md).",
    "`qdq check --format sarif` prints SARIF 2.1.0. Every code is a rule, and every finding a "
    "result with the file, the node as its logical location, and a fingerprint of code and edge. A "
    "file that could not be checked is a tool execution notification.",
    "A baseline (`qdq check --write-baseline`) is one object with `qdq_baseline` (1) and "
    "`findings`, sorted, one per line: `model`, the path relative to the baseline, `code` and "
    "`where`.",
)

_HEADERS = ("field", "type", "meaning")


def json_page(records: Mapping[str, RecordType]) -> str:
    """Return the page for the records that each command prints or writes.

    Each command has a section, and so has each record that occurs in several places. A record of
    one command alone is described in the section of the command.
    """
    shared = _find_shared_records(records)
    parts = [
        "# Exit codes and JSON",
        GENERATED,
        format_table(("code", "meaning"), _EXIT_CODES),
        *_CONVENTIONS,
        "## Commands",
    ]
    for command, record in records.items():
        parts.append(f"### `{command}`")
        if record in shared:
            parts.append(f"One {_link(record)} object.")
        else:
            parts += _record_parts(record)
    parts += ["## Other files and formats", *_OTHER_FILES, "## Records"]
    for record in shared:
        parts += [f"### {record.__name__}", *_record_parts(record)]
    return join_parts(parts)


def _find_shared_records(records: Mapping[str, RecordType]) -> list[RecordType]:
    """Return the records that have a section, in the order of their first occurrence.

    Raises ValueError where two of them have one name, which is their anchor.
    """
    occurring: dict[RecordType, None] = {}
    for root in records.values():
        occurring.update(dict.fromkeys(find_records(root)))
    roots = list(records.values())
    inner: set[RecordType] = set()
    for record in occurring:
        inner.update(find_inner_records(record))
    shared = [record for record in occurring if record in inner or roots.count(record) > 1]
    names = [record.__name__ for record in shared]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"several records are named {name}. Rename all but one of them.")
    return shared


def _record_parts(record: RecordType) -> list[str]:
    """Return a record's docstring and the table of its fields."""
    rows = [_field_row(field) for field in describe_fields(record)]
    return [escape_prose(describe_record(record)), format_table(_HEADERS, rows)]


def _field_row(field: FieldDoc) -> tuple[str, str, str]:
    type_text = describe_type(field.type, _link)
    if field.is_optional:
        type_text = f"{type_text}, or absent"
    return f"`{field.name}`", type_text, escape_prose(field.meaning)


def _link(record: RecordType) -> str:
    return f"[{record.__name__}](#{record.__name__.lower()})"
