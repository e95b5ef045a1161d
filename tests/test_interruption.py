"""Signals end the command with one line, its exit code, and nothing left: no file and no process."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.cli_runner import samples, save, tiny_model
from tests.support.paths import NETWORKS, ROOT

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)
ENDINGS = {
    signal.SIGINT: (130, "qdq: interrupted.\n"),
    signal.SIGTERM: (143, "qdq: interrupted by SIGTERM.\n"),
    signal.SIGHUP: (129, "qdq: interrupted by SIGHUP.\n"),
}

#: Hears SIGINT also where the tests run in the background of a shell, which ignores it.
HEARD = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"

#: Runs qdq, and sends the process a signal when it begins to import a module.
SIGNALLED_IMPORT = """
import os, sys
number, module, *arguments = sys.argv[1:]

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), int(number))

sys.argv[1:] = arguments
sys.meta_path.insert(0, Finder())
from qdq.__main__ import run
run()
"""

#: Runs qdq, and sends the process a signal when it begins to fill some temporary file.
SIGNALLED_WRITE = """
import os, sys, time
number, count, *arguments = sys.argv[1:]
opened = 0

def hear(event, values):
    global opened
    if event == "open" and "+" in (values[1] or "") and ".qdq-" in str(values[0]):
        opened += 1
        if opened == int(count):
            os.kill(os.getpid(), int(number))
            time.sleep(1)  # the main thread ends the process, whichever thread this is

sys.addaudithook(hear)
sys.argv[1:] = arguments
from qdq.__main__ import run
run()
"""


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script with the arguments and this checkout."""
    return subprocess.run(
        [sys.executable, "-c", f"{HEARD}\n{script}", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("click", "plan"),
        ("numpy", "plan"),
        ("onnxruntime", "sensitivity --data noise"),
        ("onnx", "plan"),
        ("qdq.cli.plan", "plan"),
    ],
)
@pytest.mark.parametrize("number", ENDINGS)
def test_a_signal_during_an_import_ends_with_one_line(
    tmp_path: Path, module: str, command: str, number: signal.Signals
) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")

    ended = run_python(SIGNALLED_IMPORT, int(number), module, *command.split(), model)

    assert (ended.returncode, ended.stderr) == ENDINGS[number]


def test_a_signal_inside_an_extension_module_is_no_import_error(tmp_path: Path) -> None:
    """An exception would become an ImportError in the module that is being imported."""
    model = save(tiny_model(), tmp_path / "m.onnx")

    ended = run_python(
        SIGNALLED_IMPORT, int(signal.SIGINT), "onnxruntime.capi.onnxruntime_pybind11_state",
        "quantize", model, "--data", "noise", "-o", tmp_path / "o",
    )  # fmt: skip

    assert (ended.returncode, ended.stderr) == ENDINGS[signal.SIGINT]


@pytest.mark.parametrize("number", ENDINGS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_signal_while_files_are_written_leaves_what_was_there(
    tmp_path: Path, number: signal.Signals, count: int
) -> None:
    model, out = save(tiny_model(), tmp_path / "m.onnx"), tmp_path / "out"
    out.mkdir()
    (out / "q.onnx").write_text("old")
    arguments = ("quantize", model, "--data", samples(tmp_path / "d"), "--force")

    ended = run_python(
        SIGNALLED_WRITE, int(number), count, *arguments,
        "-o", out / "q.onnx", "--report", out / "r.md",
    )  # fmt: skip

    assert (ended.returncode, ended.stderr) == ENDINGS[number]
    assert os.listdir(out) == ["q.onnx"]
    assert (out / "q.onnx").read_text() == "old"


def test_a_checkpoint_is_named(tmp_path: Path) -> None:
    """It is the first file that is written; the signal comes with the second, also a checkpoint."""
    model, path = save(tiny_model(), tmp_path / "m.onnx"), tmp_path / "q.onnx"
    arguments = ("quantize", model, "--data", samples(tmp_path / "d", 8), "-o", path)

    ended = run_python(
        SIGNALLED_WRITE, int(signal.SIGTERM), 2, *arguments, "--checkpoint-every", "0"
    )

    advice = f"Pass --resume to continue from {path}.checkpoint."
    assert (ended.returncode, ended.stderr) == (143, f"qdq: interrupted by SIGTERM. {advice}\n")
    assert sorted(os.listdir(tmp_path)) == ["d", "m.onnx", "q.onnx.checkpoint"]


def test_a_signal_that_the_caller_ignores_ends_nothing(tmp_path: Path) -> None:
    """As `nohup` ignores SIGHUP."""
    model = save(tiny_model(), tmp_path / "m.onnx")
    ignoring = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{SIGNALLED_IMPORT}"

    ended = run_python(ignoring, int(signal.SIGHUP), "onnx", "plan", model)

    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_signal_while_processes_start_ends_when_they_have(tmp_path: Path) -> None:
    script = """
import os, signal
from qdq.interruption import DelayedEnd, end_on_signals
end_on_signals()
with DelayedEnd():
    os.kill(os.getpid(), signal.SIGTERM)
    print("started", flush=True)
print("not reached", flush=True)
"""
    ended = run_python(script)

    assert (ended.returncode, ended.stdout) == (143, "started\n")


def test_files_are_placed_together_before_a_signal_ends_the_process(tmp_path: Path) -> None:
    script = """
import os, pathlib, signal, sys
from qdq.files.output import write_atomic, written_together
from qdq.interruption import end_on_signals
folder, replace = pathlib.Path(sys.argv[1]), pathlib.Path.replace

def interrupted(self, target):
    replace(self, target)
    os.kill(os.getpid(), signal.SIGTERM)

pathlib.Path.replace = interrupted
end_on_signals()
with written_together():
    write_atomic(folder / "1", b"1")
    write_atomic(folder / "2", b"2")
"""
    ended = run_python(script, tmp_path)

    assert ended.returncode == 143
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


@pytest.fixture
def process_folder(tmp_path: Path) -> Iterator[Path]:
    """Give a folder for the temporary files of a process."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    yield folder
    # ONNX Runtime writes .ses
    assert [name for name in os.listdir(folder) if name != ".ses"] in ([], ["left by SIGKILL"])


#: The command line on a machine where processes pay for any work.
RUN_WITH_PROCESSES = """
from qdq.__main__ import run
from qdq.observers import distributed

distributed._START_SECONDS = 0.0
distributed._CORES_OF_A_PROCESS = 1
run()
"""


def end_with_children(folder: Path, number: signal.Signals, *arguments: object) -> str:
    """Run qdq until it has child processes, end it, and return what it wrote to standard error.

    Asserts that its children end.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_WITH_PROCESSES, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    children: list[psutil.Process] = []
    while not children and process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.01)
    time.sleep(0.5)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, errors = process.communicate()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert children
    assert alive == []
    return errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("validate", "MODEL", "MODEL", "--target", "rtx:sm86"), marks=needs_compiler),
        ("quantize", "MODEL", "--data", "noise", "-o", "OUT", "--workers", "2"),
    ],
    ids=["compiler", "dask"],
)
def test_no_child_process_is_left(
    tmp_path: Path, process_folder: Path, number: signal.Signals, arguments: tuple[str, ...]
) -> None:
    known = {"MODEL": NETWORKS / "digits_plain.onnx", "OUT": tmp_path / "out.onnx"}

    errors = end_with_children(process_folder, number, *(known.get(a, a) for a in arguments))

    assert errors == ("" if number == signal.SIGKILL else ENDINGS[number][1])
    if number == signal.SIGKILL:
        for folder in process_folder.glob("qdq-work-*"):
            folder.rename(process_folder / "left by SIGKILL")
    assert not (tmp_path / "out.onnx").exists()
