"""The import contract of pyproject.toml can fail, and packages keep their private names."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Return the outcome of import-linter on a copy of the package."""
    command = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [command, "--no-cache"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("graph/bodies.py", "from qdq.planning.planner import plan", "a package imports only from"),
        ("graph/source.py", "from qdq.graph.loader import load", "no cycles between siblings"),
        ("planning/planner.py", "import polygraphy", "no package imports TensorRT or Polygraphy"),
    ],
)
def test_a_planted_import_breaks_the_contract(
    tmp_path: Path, module: str, statement: str, contract: str
) -> None:
    shutil.copytree(ROOT / "qdq", tmp_path / "qdq")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    planted = tmp_path / "qdq" / module
    planted.write_text(f"{planted.read_text()}\n{statement}\n")

    result = lint_imports(tmp_path)

    assert result.returncode == 1, result.stderr
    broken = [line for line in result.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(line.startswith(contract) for line in broken)


def test_no_package_imports_private_names_of_another() -> None:
    offences = []
    for path in sorted((ROOT / "qdq").rglob("*.py")):
        package = path.relative_to(ROOT).parts[:2]
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("qdq"):
                continue
            if tuple(str(node.module).split(".")[:2]) == package:
                continue
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            offences += [f"{path.name}: {name}" for name in private if name != "__version__"]

    assert offences == []
