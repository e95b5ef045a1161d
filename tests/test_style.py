"""The budgets of CONTRIBUTING.md: function and module sizes, density, names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import style

from tests.support.paths import ROOT

QDQ = ROOT / "qdq"
MOST_NODES_PER_LINE = 4.5
MOST_NESTED_COMPREHENSIONS = 1.0

#: Words that say nothing about what they hold.
DIALECT = {
    "given", "found", "had", "way", "told", "said", "made", "became", "one", "each", "ours", "theirs",
}  # fmt: skip
#: `given` is a keyword of `calibrate` and `quantize`, and a key of rule files.
GIVEN_IS_PUBLIC = {
    "calibration/calibrator.py",
    "pipeline/quantize_model.py",
    "pipeline/quantize_request.py",
    "pipeline/sensitivity_analysis.py",
    "rules/rule.py",
    "cli/facts.py",
}


@pytest.fixture(scope="module")
def tree() -> style.Tree:
    return style.measure(QDQ)


def test_functions_stay_in_budget(tree: style.Tree) -> None:
    assert [str(function) for function in tree.long_functions] == []


def test_modules_stay_in_budget(tree: style.Tree) -> None:
    assert [str(path) for path in tree.long_modules] == []


def test_lines_are_not_dense(tree: style.Tree) -> None:
    assert tree.expressions / tree.code_lines <= MOST_NODES_PER_LINE
    assert 1000 * tree.nested_comprehensions / tree.code_lines <= MOST_NESTED_COMPREHENSIONS


def test_docstrings_name_what_they_return(tree: style.Tree) -> None:
    assert tree.return_what == 0


def test_a_dense_tree_is_measured_as_such(tmp_path: Path) -> None:
    """The measures themselves: each of them sees what it is there to see."""
    body = "    return [(a if a else b, [c for c in x]) for a in x for b in a]\n"
    lines = [f"    v{i} = {i}\n" for i in range(style.MOST_FUNCTION_LINES)]
    (tmp_path / "m.py").write_text(
        f'"""A."""\ndef f(x):\n    """Return what f is."""\n{body}def g():\n{"".join(lines)}'
    )

    dense = style.measure(tmp_path)

    assert [function.name for function in dense.long_functions] == ["g"]
    assert (dense.comprehensions, dense.nested_comprehensions, dense.conditionals) == (2, 1, 1)
    assert dense.return_what == 1


def test_no_identifier_is_of_the_dialect() -> None:
    offences = [
        f"{path.relative_to(QDQ)}:{line} {name}"
        for path in sorted(QDQ.rglob("*.py"))
        for line, name in _identifiers(path)
        if name.strip("_") in DIALECT and not _is_public_given(path, name)
    ]

    assert offences == []


def _is_public_given(path: Path, name: str) -> bool:
    return name == "given" and path.relative_to(QDQ).as_posix() in GIVEN_IS_PUBLIC


def _identifiers(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and name of everything that a module binds."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
