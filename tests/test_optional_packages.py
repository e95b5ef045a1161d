from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import qdq
from qdq import optional_packages
from qdq.data import images
from qdq.errors import MissingPackageError
from qdq.optional_packages import explain_missing, is_installed, require_package
from tests.support.cli_runner import refused, save, tiny_model
from tests.support.paths import PEERS, ROOT

RUNTIME = "Install it with pip install 'qdq[run]'."

#: Runs the command line where some packages cannot be imported, and prints what is loaded.
LOADED = """
import json, sys
for name in sys.argv[1].split(","):
    if name:
        sys.modules[name] = None
from qdq.cli import main
code = main(sys.argv[2:])
heavy = ("onnxruntime", "polygraphy", "PIL", "psutil", "distributed", "onnx_graphsurgeon",
         "onnx.reference")
print(json.dumps([code, [name for name in heavy if sys.modules.get(name)]]))
"""


def loaded_by(missing: str, *arguments: object) -> tuple[int, list[str]]:
    """Return the exit code of a command in a new process, and the heavy packages that it loads."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, missing, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    code, names = json.loads(done.stdout.splitlines()[-1])
    return code, names


@pytest.fixture
def _core_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_packages, "is_installed", lambda name: False)


def test_only_missing_packages_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_installed("onnxruntime")
    assert explain_missing("onnxruntime", "PIL") == ""
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert explain_missing("onnxruntime", "PIL") == (
        f"Pillow, which reads pictures, is not installed. {RUNTIME}"
    )
    with pytest.raises(MissingPackageError, match=r"Pillow, .* pip install 'qdq\[run\]'\."):
        require_package("PIL")


def test_every_extra_in_a_message_exists() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for package in optional_packages._PACKAGES.values():
        assert f"\n{package.extra} = [" in text


@pytest.mark.usefixtures("_core_alone")
def test_the_library_raises_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    late = optional_packages._LatePackage("onnxruntime")
    with pytest.raises(MissingPackageError, match=r"ONNX Runtime, .* pip install 'qdq\[run\]'\."):
        late.SessionOptions  # noqa: B018
    monkeypatch.setattr("qdq.runtime.session.ort", late)
    with pytest.raises(qdq.QdqError, match="ONNX Runtime"):
        qdq.quantize(tiny_model(), "noise")


def test_pictures_need_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingPackageError, match="Pillow, which reads pictures"):
        images._open(tmp_path / "picture.png", "gray")


def test_a_late_package_is_the_package() -> None:
    import onnxruntime

    late = optional_packages._LatePackage("onnxruntime")
    assert late.InferenceSession is onnxruntime.InferenceSession
    with pytest.raises(AttributeError):
        late.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    ("package", "arguments", "message"),
    [
        ("distributed", ("--data", "noise", "--workers", 2), "Dask, which runs --workers and"),
        ("polygraphy", ("--data", "inputs.json"), "Polygraphy, which compares and builds models"),
    ],
)
def test_a_command_says_the_line_to_type(
    tmp_path: Path,
    package: str,
    arguments: tuple[object, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    (tmp_path / "inputs.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)

    line = refused(tmp_path, "quantize", model, "-o", tmp_path / "q.onnx", *arguments)

    assert message in line
    assert line.endswith("]'.\n")
    assert "is not installed. Install it with pip install 'qdq[" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", PEERS / "torch_script.onnx"),
        ("plan", PEERS / "float.onnx"),
        ("diff", PEERS / "torch_script.onnx", PEERS / "torch_script.onnx"),
        ("explain", PEERS / "float.onnx", "/first/Conv"),
        ("rules", "show", "residual-inputs"),
        ("check", "--codes"),
    ],
)
def test_commands_that_run_no_model_load_nothing_heavy(arguments: tuple[object, ...]) -> None:
    code, names = loaded_by("onnxruntime,polygraphy,PIL", *arguments)
    assert code in (0, 1)
    assert names == []


def test_a_strip_loads_nothing_heavy(tmp_path: Path) -> None:
    arguments = ("strip", PEERS / "torch_script.onnx", "-o", tmp_path / "float.onnx")
    assert loaded_by("onnxruntime", *arguments) == (0, [])
