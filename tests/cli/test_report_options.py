"""The options --report and --open of every command that has them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from qdq.cli import viewer
from qdq.errors import UsageError
from tests.support.cli_runner import contents, refused, run, samples, save, tiny_model

COMMANDS = {
    "quantize": "quantize m.onnx --data d -o new.onnx",
    "validate": "validate m.onnx q.onnx --data d",
    "check": "check q.onnx",
    "sensitivity": "sensitivity m.onnx --data d",
    "sensitivity --float": "sensitivity m.onnx --data d --float fp16",
    "diff": "diff m.onnx q.onnx",
}
FORMS = ("r.html", "r.md", "r.json", "r.txt")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(tiny_model(), folder / "m.onnx")
    data = samples(folder / "d")
    assert run("quantize", folder / "m.onnx", "--data", data, "-o", folder / "q.onnx")[0] == 0
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("m.onnx", "q.onnx", "d"):
        (tmp_path / name).symlink_to(models / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_one_call_writes_every_form(folder: Path, command: str) -> None:
    reports = [word for form in FORMS for word in ("--report", form)]
    code, _, errors = run(*COMMANDS[command].split(), *reports)
    assert code == (1 if command == "diff" else 0), errors
    page = (folder / "r.html").read_text()
    assert page.startswith("<!doctype html>")
    name = command.split(maxsplit=1)[0]
    assert f'<p class="command">qdq {name}</p>' in page
    assert '"name":"conv"' not in page
    graph = page.split('id="graph-data">')[1].split("</script>")[0]
    names = [node[0] for node in json.loads(graph)["nodes"]]
    assert names == ["conv", "relu", "flatten", "gemm"]
    assert (folder / "r.md").read_text().startswith(f"### qdq {name}: ")
    assert "qdq_json" in json.loads((folder / "r.json").read_text())
    assert (folder / "r.txt").read_text().strip()


def test_the_page_of_a_run_has_its_measurements(folder: Path) -> None:
    command = "quantize m.onnx --data d -o new.onnx --validate --target trt:sm86 --report r.html"
    code, _, errors = run(*command.split())
    assert code == 0, errors
    page = (folder / "r.html").read_text()
    for part in ("Signal-to-noise", "Engines side by side", "predicted", "The network", "Ranges"):
        assert part in page
    assert "weighted-inputs" in page
    assert "compiled</span>" not in page


def test_findings_are_on_the_page_of_a_check(folder: Path) -> None:
    model = onnx.load(folder / "q.onnx")
    (q,) = [node for node in model.graph.node if node.op_type == "QuantizeLinear"][:1]
    for initializer in model.graph.initializer:
        if initializer.name == q.input[1]:
            initializer.raw_data = b"\0\0\0\0"
    save(model, folder / "bad.onnx")
    code, _, _ = run("check", "bad.onnx", "--report", "r.html", "--report", "r.md")
    page = (folder / "r.html").read_text()
    assert code == 1
    assert "Do not ship this yet" in page
    assert 'class="finding error"' in page
    assert "❌ **Do not ship this yet**" in (folder / "r.md").read_text()


def test_several_models_share_a_page_without_a_network(folder: Path) -> None:
    (folder / "broken.onnx").write_bytes(b"no model")
    code, _, _ = run("check", "q.onnx", "broken.onnx", "--report", "r.html")
    page = (folder / "r.html").read_text()
    assert code == 2
    assert "<h1>2 models</h1>" in page
    assert 'id="network"' not in page
    assert "broken.onnx" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_a_report_that_exists_is_refused_without_force(folder: Path, command: str) -> None:
    (folder / "r.html").write_text("old")
    message = refused(folder, *COMMANDS[command].split(), "--report", "r.md", "--report", "r.html")
    assert message == "qdq: r.html: the file exists. Pass --force to replace it.\n"
    assert (folder / "r.html").read_text() == "old"
    assert run(*COMMANDS[command].split(), "--report", "r.html", "--force")[0] in (0, 1)
    assert (folder / "r.html").read_text() != "old"


@pytest.mark.parametrize("command", COMMANDS)
def test_two_reports_are_two_files(folder: Path, command: str) -> None:
    message = refused(folder, *COMMANDS[command].split(), "--report", "r.md", "--report", "./r.md")
    assert message == "qdq: r.md: two reports are the same file. Pass another file for one.\n"


def test_every_model_of_several_gets_its_reports(folder: Path) -> None:
    (folder / "n.onnx").symlink_to(folder / "m.onnx")
    reports = ("--report", "{stem}.html", "--report", "{stem}.md")
    code, _, errors = run(
        "quantize", "m.onnx", "n.onnx", "--out-dir", "out", "--data", "d", *reports
    )
    assert code == 0, errors
    assert {path.name for path in folder.glob("?.*")} >= {"m.html", "m.md", "n.html", "n.md"}


def test_a_report_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(page: object) -> str:
        raise UsageError("r.html: no. Pass another.")

    monkeypatch.setattr("qdq.reports.page_html.render_html", fail)
    before = contents(folder)
    code, _, errors = run(*COMMANDS["quantize"].split(), "--report", "r.md", "--report", "r.html")
    assert (code, errors) == (2, "qdq: r.html: no. Pass another.\n")
    assert contents(folder) == before


def test_a_baseline_accepts_findings_instead_of_reporting_them(folder: Path) -> None:
    message = refused(folder, "check", "q.onnx", "--write-baseline", "b.json", "--report", "r.md")
    assert message.startswith("qdq: --report reports findings and --write-baseline accepts them.")


# --- --open ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def netron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that a stand-in for Netron writes its arguments to."""
    shown = tmp_path / "shown.json"
    command = tmp_path / "bin" / "netron"
    command.parent.mkdir()
    command.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump(sys.argv[1:], open({str(shown)!r} + '.new', 'w'))\n"
        f"os.replace({str(shown)!r} + '.new', {str(shown)!r})\n"
    )
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    return shown


def wait_for(path: Path) -> list[str]:
    for _ in range(600):
        if path.exists():
            arguments: list[str] = json.loads(path.read_text())
            return arguments
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


@pytest.mark.parametrize(
    ("command", "model"), [("quantize", "new.onnx"), ("validate", "q.onnx"), ("check", "q.onnx")]
)
def test_open_hands_the_model_to_netron(
    folder: Path, netron: Path, command: str, model: str
) -> None:
    code, _, errors = run(*COMMANDS[command].split(), "--open")
    assert code == 0, errors
    assert wait_for(netron) == ["--browse", str((folder / model).resolve())]


@pytest.mark.parametrize("command", ["quantize", "validate", "check"])
def test_without_netron_open_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(viewer.shutil, "which", lambda name: None)
    monkeypatch.setattr(viewer.importlib.util, "find_spec", lambda name: None)
    message = refused(folder, *COMMANDS[command].split(), "--open")
    assert message == "qdq: --open: Netron is not installed. Install it with pip install netron.\n"


def test_netron_as_a_module_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netron.py").write_text("import sys\ndef main(): print(sys.argv[1:])\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(viewer.shutil, "which", lambda name: None)
    command = [*viewer.require_viewer(), "--browse", "m.onnx"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "['--browse', 'm.onnx']\n"


def test_open_shows_one_model(folder: Path, netron: Path) -> None:
    message = refused(folder, "check", "q.onnx", "m.onnx", "--open")
    assert message == "qdq: --open shows one model. Pass one.\n"
    message = refused(folder, "quantize", "m.onnx", "--out-dir", "out", "--open")
    assert message == "qdq: --open shows one model. Pass one, with -o.\n"
    assert not netron.exists()
