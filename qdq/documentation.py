"""Where the documentation is: the site of the project, and the same pages in the package."""

from __future__ import annotations

from pathlib import Path

#: The site. ``[project.urls]`` of pyproject.toml names it too, and a test compares them: a checkout
#: that is not installed has no metadata.
SITE = "https://qdq.example/"

_PACKAGE = Path(__file__).parent


def locate_page(name: str, section: str = "") -> str:
    """Return the address of a page such as ``findings``, or of the section of a heading in it."""
    address = f"{SITE}{name}/"
    return f"{address}#{section}" if section else address


def pages_folder() -> Path:
    """Return the folder of the pages in Markdown.

    It is inside the wheel, or next to the package in a checkout.
    """
    in_wheel = _PACKAGE / "shipped_docs"
    if in_wheel.is_dir():
        return in_wheel
    return _PACKAGE.parent / "docs"
