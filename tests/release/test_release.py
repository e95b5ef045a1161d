"""What a release needs: one version, stated floors, pinned tools and actions, and the checks before a tag."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

import qdq
from tests.support.paths import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHECKS = runpy.run_path(str(ROOT / "release" / "check_release.py"))

#: The package of a requirement, and the oldest version that it allows.
_FLOOR = re.compile(r"^([\w-]+)>=([\w.]+)")


def read_floors() -> dict[str, str]:
    """Return the oldest version of each package that users install, as pyproject.toml states it."""
    extras = PROJECT["project"]["optional-dependencies"]
    users = [extras[name] for name in ("run", "rtx", "dask", "report", "all")]
    floors = {}
    for requirement in sum(users, PROJECT["project"]["dependencies"]):
        match = _FLOOR.match(requirement)
        if match:
            floors[match[1]] = match[2]
    return floors


def test_the_version_is_stated_once() -> None:
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert CHECKS["read_version"](ROOT) == qdq.__version__


def test_the_oldest_constraints_are_the_floors_of_the_project() -> None:
    lines = (ROOT / "constraints" / "oldest.txt").read_text().splitlines()
    pins = dict(line.removesuffix(".*").split("==") for line in lines if not line.startswith("#"))

    assert pins == read_floors()


def test_every_package_that_users_install_is_pinned_for_the_tests() -> None:
    text = (ROOT / "constraints" / "test.txt").read_text()
    pinned = {re.split("==", line)[0].lower().replace("_", "-") for line in text.splitlines()}

    assert {name.lower().replace("_", "-") for name in read_floors()} <= pinned


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_to_commits_and_permissions_are_stated(workflow: Path) -> None:
    content = yaml.safe_load(workflow.read_text())

    assert content["permissions"] == {}
    assert "has not run yet" in workflow.read_text()
    for job in content["jobs"].values():
        assert job["permissions"]
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), step


def test_the_workflows_test_every_supported_python() -> None:
    content = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    versions = content["jobs"]["test"]["strategy"]["matrix"]["python"]

    assert versions == ["3.10", "3.11", "3.12", "3.13"]
    assert PROJECT["project"]["requires-python"] == ">=3.10,<3.14"


def make_project(folder: Path, address: str, heading: str) -> Path:
    (folder / "qdq").mkdir()
    (folder / "qdq" / "__init__.py").write_text('__version__ = "1.2.0"\n')
    (folder / "qdq" / "documentation.py").write_text(f'SITE = "{address}"\n')
    (folder / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n")
    dist = folder / "dist"
    dist.mkdir()
    for name in ("1.2.0.tar.gz", "1.2.0-py3-none-any.whl", "1.2.0-py3-none-linux_x86_64.whl"):
        (dist / f"qdq-{name}").touch()
    return folder


def test_a_release_that_is_ready_has_no_problems(tmp_path: Path) -> None:
    root = make_project(tmp_path, "https://qdq.test/", "1.2.0")

    assert list(CHECKS["find_problems"](root, "v1.2.0", root / "dist")) == []


def test_each_thing_that_prevents_a_release_is_named(tmp_path: Path) -> None:
    root = make_project(tmp_path, "https://qdq.example/", "Unreleased")
    (root / "dist" / "qdq-1.2.0-py3-none-linux_x86_64.whl").unlink()

    tag, changes, address, wheel = CHECKS["find_problems"](root, "v1.3.0", root / "dist")

    assert tag == "the tag is v1.3.0, and qdq/__init__.py has 1.2.0. Tag v1.2.0."
    assert changes.startswith("CHANGELOG.md: its first section is not 1.2.0")
    assert "placeholder" in address
    assert "the wheel with the compiled part is missing" in wheel


def test_the_changes_of_this_version_come_first() -> None:
    problems = list(CHECKS["find_problems"](ROOT, "", None))

    assert not [problem for problem in problems if problem.startswith("CHANGELOG")]


def test_every_run_builds_the_distributions_twice() -> None:
    commands = (ROOT / ".ci" / "run").read_text().splitlines()

    assert "make dist" in commands
    assert "compare_builds.py" in (ROOT / "Makefile").read_text()
