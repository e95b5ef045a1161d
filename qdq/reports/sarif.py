"""Findings as SARIF 2.1.0 (OASIS, Static Analysis Results Interchange Format) and as GitHub's workflow commands."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from qdq.checking.catalogue import ERROR, PROBLEMS, WARNING, Problem
from qdq.checking.finding import Finding
from qdq.checking.selection import fingerprint, relative_posix_path

VERSION = "2.1.0"
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"

#: What relative paths of artifacts are relative to: the folder that the command ran in.
_ROOT = "%SRCROOT%"
_COMMANDS = {ERROR: "error", WARNING: "warning"}


class CheckedModel(msgspec.Struct, frozen=True):
    """The findings in one model, or why there are none."""

    model: str
    findings: tuple[Finding, ...] = ()
    #: One sentence where it could not be checked, else "".
    failure: str = ""
    #: What `--fix` did to it, one sentence each.
    fixed: tuple[str, ...] = ()


def to_sarif(models: Iterable[CheckedModel], version: str) -> bytes:
    """Return a SARIF log of one run: every code as a rule, every finding as a result, files that could not be checked as notifications."""
    order = {code: i for i, code in enumerate(PROBLEMS)}
    results: list[Any] = []
    failures: list[Any] = []
    for checked in models:
        results += [
            _result(checked.model, finding, order[finding.code]) for finding in checked.findings
        ]
        if checked.failure:
            failures.append(
                {
                    "level": "error",
                    "message": {"text": checked.failure},
                    "locations": [{"physicalLocation": _file(checked.model)}],
                }
            )
    driver = {
        "name": "qdq",
        "semanticVersion": version,
        "rules": [_rule(problem) for problem in PROBLEMS.values()],
    }
    invocation = {"executionSuccessful": not failures, "toolExecutionNotifications": failures}
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    return (
        msgspec.json.format(
            msgspec.json.encode({"$schema": _SCHEMA, "version": VERSION, "runs": [run]}), indent=1
        )
        + b"\n"
    )


def _rule(problem: Problem) -> dict[str, Any]:
    text = f"{problem.cost} To mend it: {problem.fix}."
    return {
        "id": problem.code,
        "name": "".join(word.capitalize() for word in problem.code.split("-")),
        "shortDescription": {"text": problem.title},
        "fullDescription": {"text": text},
        "help": {"text": text, "markdown": f"{text}\n\n[{problem.page}]({problem.page})"},
        "defaultConfiguration": {"level": problem.severity},
        "properties": {"page": problem.page},
    }


def _result(model: str, finding: Finding, rule: int) -> dict[str, Any]:
    location: dict[str, Any] = {"physicalLocation": _file(model)}
    if finding.node:
        name = finding.node.rpartition("/")[2] or finding.node
        location["logicalLocations"] = [
            {"name": name, "fullyQualifiedName": finding.node, "kind": "element"}
        ]
    at = f"{finding.where}: " if finding.where else ""
    return {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": finding.severity,
        "message": {"text": f"{at}{finding.problem}; {finding.fix}."},
        "locations": [location],
        "partialFingerprints": {"qdqFinding/v1": fingerprint(finding)},
    }


def _file(model: str) -> dict[str, Any]:
    path = relative_posix_path(Path(model), Path())
    if path.startswith("../") or Path(path).is_absolute():
        return {"artifactLocation": {"uri": Path(model).absolute().as_uri()}}
    return {"artifactLocation": {"uri": quote(path), "uriBaseId": _ROOT}}


def to_github(checked: CheckedModel) -> list[str]:
    """Return the findings in one model as workflow commands, which GitHub shows beside the file (workflow commands, setting a message)."""
    lines = (
        [f"::error file={_property(checked.model)},title=qdq::{_data(checked.failure)}"]
        if checked.failure
        else []
    )
    for finding in checked.findings:
        at = f"{finding.where}: " if finding.where else ""
        command = _COMMANDS.get(finding.severity, "notice")
        lines.append(
            f"::{command} file={_property(checked.model)},title={_property(f'qdq {finding.code}')}::{_data(f'{at}{finding.problem}; {finding.fix}')}"
        )
    return lines


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
