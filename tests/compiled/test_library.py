from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qdq.compiled import library
from qdq.compiled.compilation import compile_library, find_compiler
from tests.support.cli_runner import run
from tests.support.compiled_path import compiled_library, needs_compiler

_WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wdouble-promotion", "-Werror")

#: Measures tensors and searches scales with the library named on the command line.
_SANITIZED = """
import sys
from pathlib import Path
import numpy as np
from qdq.compiled.library import load_library
from qdq.compiled.level_search import search_levels
from qdq.compiled.scale_search import search_scales
from qdq.compiled.tensor_totals import TensorTotals, arrange_channels
library = load_library(Path(sys.argv[1]))
assert library is not None
special = [0, 1e-45, -1e-40, 1, 3.4e38, np.inf, np.nan]
for has_avx2 in {library.has_avx2, False}:
    library.has_avx2 = has_avx2
    for shape in [(1,), (3, 2), (2, 3, 257), (1, 1031, 17), (1, 1, (1 << 20) + 1)]:
        for axis in range(len(shape)):
            values = np.resize(np.array(special, np.float32), shape)
            grades = np.arange(shape[axis], dtype=np.int32) % 3
            for usable in (values, np.nan_to_num(values, posinf=1)):
                totals = TensorTotals(library, 3, grades, True)
                arranged, layout = arrange_channels(usable, axis)
                totals.add_moments_to(*np.zeros((2, 10, shape[axis]), np.int64))
                for scale in (1e-9, 1, 1e3):
                    with np.errstate(over="ignore"):
                        scaled = arranged * np.float32(scale)
                    totals.add(scaled, layout, True, True)
                limbs = np.zeros((10, 3), np.int64)
                vectors = np.array([[1e-45, -3.4e38, -0.0]], np.float32)
                library.add_exactly(limbs.ctypes.data, vectors.ctypes.data, 1, 3)
    for histogram in (np.zeros(0), np.arange(4000) + 0.5):
        moments = np.ones((3, histogram.size + 1))
        edges = np.arange(4096, 255, -1)
        search_levels(library, histogram, moments, np.arange(128.0), edges)
    for width in (1, 9, 1025, (1 << 20) + 1):
        rows = np.resize(np.array([1e-45, -1, 3e38, 2], np.float32), (2, width))
        moments = (rows[:1] * 0, rows[:1] * 0 + 1, np.zeros(2, np.int64))
        candidates = np.array([[0.9], [1.1]], np.float32)
        for levels in (127, 448):
            search_scales(library, rows, moments, candidates, levels, levels == 448)
            search_scales(library, rows, None, candidates, levels, levels == 448)
print("done")
"""


@pytest.fixture(autouse=True)
def _forget_library() -> Iterator[None]:
    """Let each test find the library anew."""
    library.find_library.cache_clear()
    yield
    library.find_library.cache_clear()


@needs_compiler
def test_the_source_compiles_without_warnings(tmp_path: Path) -> None:
    assert compile_library(library.SOURCE, tmp_path / "libqdq.so", _WARNINGS) == ""


@needs_compiler
def test_no_access_is_out_of_bounds_and_no_behaviour_undefined(tmp_path: Path) -> None:
    options = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
    path = tmp_path / "libqdq.so"
    compiler = find_compiler()
    assert compiler is not None
    problem = compile_library(library.SOURCE, path, options)
    runtime = subprocess.run(
        [*compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if problem or not Path(runtime).is_absolute():
        pytest.skip(f"needs the sanitizers of GCC: {compiler[0]} has none")
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}

    done = subprocess.run(
        [sys.executable, "-c", _SANITIZED, str(path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd=library.SOURCE.parents[2],
    )

    assert (done.stdout, done.stderr) == ("done\n", "")


@needs_compiler
def test_the_version_names_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load_library", lambda _: compiled_library())
    monkeypatch.delenv(library.SWITCH, raising=False)
    words = "AVX2" if compiled_library().has_avx2 else "portable"

    _, output, _ = run("--version")

    assert output.splitlines()[1].startswith("calculations: compiled (")
    assert words in output


def test_the_switch_turns_the_compiled_part_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.SWITCH, "0")

    assert library.find_library() is None
    assert run("--version")[1].splitlines()[1] == "calculations: numpy (QDQ_COMPILED=0)"


def test_no_library_means_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.SWITCH, raising=False)
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "libqdq.so")

    assert library.find_library() is None
    assert "numpy (no compiled part" in run("--version")[1]


def test_a_damaged_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "libqdq.so"
    path.write_bytes(b"no library")
    monkeypatch.delenv(library.SWITCH, raising=False)
    monkeypatch.setattr(library, "LIBRARY", path)

    assert library.find_library() is None
    assert "install qdq again" in run("--version")[1]


@needs_compiler
def test_a_library_of_another_source_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "compiled.c"
    source.write_text(library.SOURCE.read_text() + "\n/* changed */\n")
    path = tmp_path / "libqdq.so"

    assert compile_library(source, path) == ""
    assert library.load_library(path) is None


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_there_is_a_reason(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    path = tmp_path / "libqdq.so"

    problem = compile_library(library.SOURCE, path)

    expected = "false failed" if shutil.which(compiler) else "there is no C compiler"
    assert problem.startswith((expected, f"{shutil.which(compiler)} failed"))
    assert list(tmp_path.iterdir()) == []
