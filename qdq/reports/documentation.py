"""Where the documentation is: the URL that the project's metadata name."""

from __future__ import annotations

from functools import cache
from importlib import metadata

#: The label of the URL in ``[project.urls]``.
_LABEL = "documentation"


@cache
def _base_url() -> str:
    """Return the URL of the documentation in the installed package's metadata, "" for none."""
    try:
        urls = metadata.metadata("qdq").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    for entry in urls:
        label, _, url = entry.partition(", ")
        if label.lower() == _LABEL:
            return str(url).rstrip("/")
    return ""


def find_url(page: str) -> str:
    """Return the URL of a page such as ``docs/findings.md#opset``, "" where none is known."""
    base = _base_url()
    if not base:
        return ""
    path, _, anchor = page.partition("#")
    name = path.removeprefix("docs/").removesuffix(".md")
    return f"{base}/{name}/#{anchor}" if anchor else f"{base}/{name}/"
