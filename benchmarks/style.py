"""Measure how dense the code of a tree is: function lengths, expression nodes a line,
comprehensions.

    python benchmarks/style.py                  # qdq
    python benchmarks/style.py qdq ../other     # several trees, side by side

A code line holds at least one token that is no comment and no docstring. An expression node is an
`ast.expr`: `a.b(c + 1)` has seven. Tests, generated and vendored files of other trees are left out.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MOST_FUNCTION_LINES = 40
MOST_FUNCTION_NODES = 150
MOST_MODULE_LINES = 400
MOST_COLUMNS = 100

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (*_FUNCTIONS, ast.ClassDef, ast.Module)
_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
_LEFT_OUT = (
    "test",
    "tests",
    "testdata",
    "_vendor",
    "vendor",
    "third_party",
    "build",
    "node_modules",
)


@dataclass(frozen=True)
class Function:
    """One function: where it begins, and its size with the functions in it."""

    path: Path
    line: int
    name: str
    lines: int
    nodes: int

    @property
    def is_long(self) -> bool:
        """Whether it exceeds a budget."""
        return self.lines > MOST_FUNCTION_LINES or self.nodes > MOST_FUNCTION_NODES

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.name}: {self.lines} lines, {self.nodes} nodes"


@dataclass
class Tree:
    """The counts of all modules below a folder."""

    name: str
    modules: dict[Path, int] = field(default_factory=dict)
    functions: list[Function] = field(default_factory=list)
    code_lines: int = 0
    long_lines: int = 0
    expressions: int = 0
    comprehensions: int = 0
    nested_comprehensions: int = 0
    conditionals: int = 0
    return_what: int = 0

    @property
    def lines(self) -> int:
        """Lines of all modules, blank ones too."""
        return sum(self.modules.values())

    @property
    def long_functions(self) -> list[Function]:
        """The functions over budget, the largest first."""
        return sorted((f for f in self.functions if f.is_long), key=lambda f: -f.nodes)

    @property
    def long_modules(self) -> list[Path]:
        """The modules over budget."""
        return [path for path, lines in self.modules.items() if lines > MOST_MODULE_LINES]


def measure(folder: Path) -> Tree:
    """Return the counts of all Python modules in a folder."""
    tree = Tree(folder.resolve().name)
    for path in _modules(folder):
        _add_module(tree, path)
    return tree


def _modules(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*.py")):
        below = path.relative_to(folder).parts
        is_test = path.name.startswith("test_") or path.stem.endswith("_test")
        if not is_test and path.name != "conftest.py" and not set(below).intersection(_LEFT_OUT):
            yield path


def _add_module(tree: Tree, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    module = ast.parse(text)
    lines = text.splitlines()
    tree.modules[path] = len(lines)
    tree.long_lines += sum(len(line) > MOST_COLUMNS for line in lines)
    tree.code_lines += len(_code_lines(text) - _docstring_lines(module))
    for node in ast.walk(module):
        _add_node(tree, path, node)


def _add_node(tree: Tree, path: Path, node: ast.AST) -> None:
    tree.expressions += isinstance(node, ast.expr)
    tree.conditionals += isinstance(node, ast.IfExp)
    if isinstance(node, _COMPREHENSIONS):
        tree.comprehensions += 1
        tree.nested_comprehensions += _is_nested(node)
    if isinstance(node, _DOCUMENTED):
        tree.return_what += (ast.get_docstring(node) or "").startswith("Return what")
    if isinstance(node, _FUNCTIONS):
        nodes = sum(isinstance(child, ast.expr) for child in ast.walk(node))
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        tree.functions.append(Function(path, node.lineno, node.name, length, nodes))


def _is_nested(comprehension: ast.expr) -> bool:
    """Whether a comprehension has several `for`, or another comprehension inside."""
    inside = [node for node in ast.walk(comprehension) if isinstance(node, _COMPREHENSIONS)]
    return len(inside) > 1 or any(len(node.generators) > 1 for node in inside)


def _code_lines(text: str) -> set[int]:
    """Return the numbers of the lines that hold a token besides comments."""
    numbers: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE and token.string:
            numbers.update(range(token.start[0], token.end[0] + 1))
    return numbers


def _docstring_lines(module: ast.Module) -> set[int]:
    """Return the numbers of the lines of docstrings."""
    numbers: set[int] = set()
    for node in ast.walk(module):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            numbers.update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return numbers


def rows(tree: Tree) -> dict[str, str]:
    """Return the figures of a tree by name."""
    lengths = sorted(f.lines for f in tree.functions) or [0]
    thousands = tree.code_lines / 1000 or 1.0
    return {
        "modules": f"{len(tree.modules)}",
        "lines": f"{tree.lines}",
        "code lines": f"{tree.code_lines}",
        f"modules over {MOST_MODULE_LINES} lines": f"{len(tree.long_modules)}",
        "function lines, median": f"{statistics.median(lengths):g}",
        "function lines, 90th percentile": f"{lengths[int(len(lengths) * 0.9)]}",
        "function lines, most": f"{lengths[-1]}",
        "functions over budget": f"{len(tree.long_functions)}",
        "expression nodes a code line": f"{tree.expressions / (tree.code_lines or 1):.2f}",
        "comprehensions per 1,000": f"{tree.comprehensions / thousands:.1f}",
        "nested comprehensions per 1,000": f"{tree.nested_comprehensions / thousands:.1f}",
        "conditional expressions per 1,000": f"{tree.conditionals / thousands:.1f}",
        f"lines over {MOST_COLUMNS} columns": f"{tree.long_lines / (tree.lines or 1):.1%}",
        "docstrings that begin 'Return what'": f"{tree.return_what}",
    }


def main() -> None:
    """Print one column of figures for each tree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trees", nargs="*", type=Path, default=[Path(__file__).parents[1] / "qdq"])
    parser.add_argument("--over", action="store_true", help="also list what is over budget")
    arguments = parser.parse_args()
    trees = [measure(folder) for folder in arguments.trees]
    columns = [rows(tree) for tree in trees]
    print(f"{'':38}" + "".join(f"{tree.name:>14}" for tree in trees))
    for name in columns[0]:
        print(f"{name:38}" + "".join(f"{column[name]:>14}" for column in columns))
    if arguments.over:
        for tree in trees:
            print(*tree.long_modules, *tree.long_functions, sep="\n")


if __name__ == "__main__":
    main()
