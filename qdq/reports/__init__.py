"""Reports: records as text, Markdown, JSON, SARIF, GitHub annotations and reference pages."""

from __future__ import annotations

from qdq.reports.json_output import to_json
from qdq.reports.report import Report, render
from qdq.reports.sarif import to_github, to_sarif

__all__ = [
    "Report",
    "render",
    "to_github",
    "to_json",
    "to_sarif",
]
