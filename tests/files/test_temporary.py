"""Temporary files of processes that were killed are removed, those of running ones are not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx
import pytest

from qdq.files.output import atomic_file, remove_output, write_atomic
from qdq.files.temporary import remove_live, temporary_file, work_folder
from tests.support.cli_runner import run, samples, save, tiny_model
from tests.support.paths import ROOT

#: Leaves a temporary file, and a work folder, and dies as by SIGKILL; prints their names.
KILLED = """
import os, sys
from pathlib import Path
from qdq.files.temporary import temporary_file, work_folder
with temporary_file(Path(sys.argv[1])) as file, work_folder() as folder:
    (folder / "file").write_text("x")
    print(file.name, folder, flush=True)
    os.kill(os.getpid(), 9)
"""


def leave_behind(path: Path) -> tuple[Path, Path]:
    """Return the temporary file for `path`, and the work folder, of a process that was killed."""
    answer = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(path.parent)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    name, folder = answer.stdout.split()
    return path.with_name(name), Path(folder)


def test_the_next_file_of_the_same_name_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    rest, _ = leave_behind(tmp_path / "o.onnx")
    other, _ = leave_behind(tmp_path / "o.onnx-2")
    assert rest.exists()

    write_atomic(tmp_path / "o.onnx", b"x")

    assert not rest.exists()
    assert other.exists()


@pytest.mark.parametrize("name", ["o.onnx", "w.bin", "o.onnx.checkpoint"])
def test_quantizing_removes_it_for_all_that_is_written(tmp_path: Path, name: str) -> None:
    model, data = tiny_model(), {"location": "w.bin", "size_threshold": 0}
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, **data)
    out = tmp_path / "out"
    out.mkdir()
    _, folder = leave_behind(out / name)
    shutil.rmtree(folder)
    (out / f".qdq-{name}-abcd1234").write_text("of an earlier version")
    assert len(os.listdir(out)) == 2
    argv = ("quantize", tmp_path / "m.onnx", "-o", out / "o.onnx")

    assert run(*argv, "--data", samples(tmp_path / "d"))[0] == 0
    assert sorted(os.listdir(out)) == ["o.onnx", "w.bin"]


def test_a_temporary_file_of_a_running_process_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"slow")
        write_atomic(path.with_name("other"), b"x")
        remove_output(path)
        with temporary_file(path):
            assert temporary.read_bytes() == b"slow"
    assert path.read_bytes() == b"slow"


def test_a_temporary_file_of_another_machine_stays_for_a_day(tmp_path: Path) -> None:
    new, old = tmp_path / ".qdq-o-00000000-1-00000000", tmp_path / ".qdq-o-00000000-1-00000001"
    new.touch()
    old.touch()
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))

    write_atomic(tmp_path / "o", b"x")

    assert new.exists()
    assert not old.exists()


@pytest.mark.parametrize(
    "name", [".qdq-o", ".qdq-o-notes.txt", ".qdq-o-ABCD1234", "qdq-o-abcd1234"]
)
def test_other_names_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()

    write_atomic(tmp_path / "o", b"x")

    assert (tmp_path / name).exists()


def test_a_name_of_many_bytes_has_temporary_files(tmp_path: Path) -> None:
    path = tmp_path / ("\N{SNOWMAN}" * 80)

    write_atomic(path, b"x")

    assert path.read_bytes() == b"x"


def test_the_next_work_folder_removes_those_of_killed_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, rest = leave_behind(tmp_path / "file")
    assert (rest / "file").exists()
    other_digit = "1" if rest.name.endswith("0") else "0"
    link = tmp_path / f"{rest.name[:-1]}{other_digit}"
    kept = tmp_path / "kept"
    kept.mkdir()
    link.symlink_to(kept)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    with work_folder() as folder:
        assert folder.is_dir()
        assert not rest.exists()
        assert folder.stat().st_mode & 0o777 == 0o700

    assert not folder.exists()
    assert kept.exists()


def test_what_is_temporary_can_be_removed_at_once(tmp_path: Path) -> None:
    with temporary_file(tmp_path / "file") as file, work_folder() as folder:
        remove_live()

        assert not file.exists()
        assert not folder.exists()


def test_a_model_that_cannot_be_written_leaves_no_temporary_file(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    out = tmp_path / "out"
    out.mkdir()

    assert run("plan", model, "-o", out / "p.yaml", "--leave-float", "nothing")[0] == 2
    assert os.listdir(out) == []
