"""What `mkdocs build` takes from the project: the address of the site, and the library's reference.

The page of the library is generated from the public names of qdq; mkdocstrings replaces its lines
that begin with ``:::`` by the docstrings. No module of qdq is run for them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LIBRARY_PAGE = "reference/library.md"
_ADDRESS = re.compile(r'^Documentation = "(\S+)"$', re.MULTILINE)
_INTRODUCTION = """# Library reference

The names of `qdq.__all__`, from their docstrings. They are stable across releases; every other name
may move. [The library](../library.md) is the introduction, and
[a converter](../how-to/converter.md) an example.
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Return the configuration with the address that pyproject.toml names."""
    match = _ADDRESS.search((ROOT / "pyproject.toml").read_text("utf-8"))
    if match is None:
        raise ValueError("pyproject.toml: [project.urls] names no Documentation. Add it.")
    config.site_url = match[1]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the files of the site with the reference of the library."""
    files.append(File.generated(config, LIBRARY_PAGE, content=library_page()))
    return files


def library_page() -> str:
    """Return a section for functions and one for records, with a directive for each name."""
    homes = read_public_names()
    functions = [name for name in homes if name[0].islower()]
    records = [name for name in homes if name[0].isupper()]
    parts = [_INTRODUCTION]
    for title, names in (("Functions", functions), ("Records", records)):
        parts.append(f"## {title}\n")
        for name in sorted(names):
            parts.append(f"::: {homes[name]}.{name}\n")
    return "\n".join(parts)


def read_public_names() -> dict[str, str]:
    """Return the module of each public name, from the source of the package."""
    tree = ast.parse((ROOT / "qdq" / "__init__.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME":
            homes: dict[str, str] = ast.literal_eval(node.value)
            return homes
    raise ValueError(
        "qdq/__init__.py: no table _HOME of the public names. Adapt read_public_names."
    )
