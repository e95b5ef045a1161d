"""The build hook: adds the pages of docs/, and compiles qdq/compiled/compiled.c with a C compiler.

Without one, or where it fails, the package is built without the library; qdq then calculates with
numpy. CC names another compiler, and QDQ_COMPILE=0 leaves the library out.
"""

from __future__ import annotations

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FOLDER = Path("qdq", "compiled")
_SOURCE = _FOLDER / "compiled.c"
_LIBRARY = _FOLDER / "libqdq.so"

#: Where `qdq docs` finds the pages in a wheel. An installation in place reads docs/.
_PAGES = Path("qdq", "shipped_docs")


class CompiledPartHook(BuildHookInterface):
    """Adds the library to a wheel, or puts it beside its source for an installation in place."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the library; without it, the wheel is for every platform."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        if version != "editable":
            build_data["force_include"].update(_list_pages(root / "docs"))
        # Importing it as a part of qdq would need qdq's dependencies.
        compilation = runpy.run_path(str(root / _FOLDER / "compilation.py"))
        problem = compilation["compile_library"](root / _SOURCE, root / _LIBRARY)
        if problem:
            self.app.display_warning(f"qdq is built without its compiled part: {problem}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_name_platform()}"
        build_data["artifacts"].append(f"/{_LIBRARY.as_posix()}")

    def clean(self, versions: list[str]) -> None:
        """Remove the library."""
        Path(self.root, _LIBRARY).unlink(missing_ok=True)


def _list_pages(folder: Path) -> dict[str, str]:
    """Return the pages in Markdown, and the place of each in the wheel."""
    pages = sorted(folder.rglob("*.md"))
    return {str(page): str(_PAGES / page.relative_to(folder)) for page in pages}


def _name_platform() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
