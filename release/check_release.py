"""Check what must be true before a release is tagged, or while its tag is built.

    python release/check_release.py [--tag v0.2.0] [DIST]

The version is that of qdq/__init__.py. CHANGELOG.md has a section of it, the documentation has an
address, and DIST holds the two wheels and the sdist of that version.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: The address that stands for one that is not chosen yet (RFC 2606).
PLACEHOLDER = ".example/"


def read_version(root: Path) -> str:
    """Return the version of the package."""
    text = (root / "qdq" / "__init__.py").read_text("utf-8")
    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if match is None:
        raise SystemExit("qdq/__init__.py: there is no __version__.")
    return match[1]


def find_problems(root: Path, tag: str, folder: Path | None) -> Iterator[str]:
    """Yield one line for each thing that prevents the release."""
    version = read_version(root)
    if tag and tag != f"v{version}":
        yield f"the tag is {tag}, and qdq/__init__.py has {version}. Tag v{version}."
    changes = (root / "CHANGELOG.md").read_text("utf-8")
    sections = re.findall(r"^## (.*)$", changes, re.MULTILINE)
    if not sections or sections[0].split()[0] != version:
        yield f"CHANGELOG.md: its first section is not {version}. Name it so."
    if PLACEHOLDER in (root / "qdq" / "documentation.py").read_text("utf-8"):
        yield (
            "pyproject.toml: the address of the documentation is a placeholder. Put the address of "
            "the site there and into qdq/documentation.py, and run make docs."
        )
    if folder is not None:
        yield from _find_missing_files(folder, version)


def _find_missing_files(folder: Path, version: str) -> Iterator[str]:
    names = {path.name for path in folder.iterdir()}
    kinds = {
        "the sdist": f"qdq-{version}.tar.gz",
        "the wheel without the compiled part": f"qdq-{version}-py3-none-any.whl",
    }
    for kind, name in kinds.items():
        if name not in names:
            yield f"{folder}: {kind}, {name}, is missing. Run make dist."
    if not any(re.fullmatch(rf"qdq-{version}-py3-none-.*linux.*\.whl", name) for name in names):
        yield f"{folder}: the wheel with the compiled part is missing. Run make dist."


def main() -> int:
    """Print the problems and return 1 if there are any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tag", default="", help="the tag that is released")
    parser.add_argument("folder", type=Path, nargs="?", help="the folder of the distributions")
    arguments = parser.parse_args()
    problems = list(find_problems(ROOT, arguments.tag, arguments.folder))
    for problem in problems:
        print(problem)
    if not problems:
        print(f"ready: git tag v{read_version(ROOT)}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
