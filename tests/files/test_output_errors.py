"""Outputs that cannot or must not be written: refused before any work, and no remains of a failed write."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qdq.errors import UsageError
from qdq.files.output import copy_atomic, write_atomic
from tests.support.cli_runner import contents, refused, run, samples, save, tiny_model


def write_inputs(folder: Path) -> dict[str, Path]:
    """Write a model, samples, a plan and scales, and return their paths."""
    paths = {
        "MODEL": save(tiny_model(), folder / "model.onnx"),
        "DATA": samples(folder / "samples"),
        "PLAN": folder / "plan.yaml",
        "SCALES": folder / "scales.json",
    }
    assert run("plan", paths["MODEL"], "-o", paths["PLAN"])[0] == 0
    assert (
        run(
            "calibrate",
            paths["MODEL"],
            paths["PLAN"],
            "-o",
            paths["SCALES"],
            "--data",
            paths["DATA"],
        )[0]
        == 0
    )
    return paths


WRITING = {
    "quantize": ["quantize", "MODEL", "--data", "DATA", "-o"],
    "plan": ["plan", "MODEL", "-o"],
    "calibrate": ["calibrate", "MODEL", "PLAN", "--data", "DATA", "-o"],
    "apply": ["apply", "MODEL", "PLAN", "SCALES", "-o"],
    "strip": ["strip", "MODEL", "-o"],
    "report": ["quantize", "MODEL", "--data", "DATA", "-o", "OUT", "--report"],
    "saved ranges": ["calibrate", "MODEL", "PLAN", "--data", "DATA", "-o", "OUT", "--save-ranges"],
    "shard": ["calibrate", "MODEL", "PLAN", "--data", "DATA", "--shard", "1/2", "-o"],
    "exported ranges": ["ranges", "export", "SCALES", "--format", "yaml", "-o"],
    "validate": ["validate", "MODEL", "MODEL", "--data", "DATA", "--report"],
}


def writing(folder: Path, command: str) -> list[object]:
    """Return the arguments of a command that writes, up to the path of its output."""
    known = {**write_inputs(folder), "OUT": folder / "out.onnx"}
    return [known.get(word, word) for word in WRITING[command]]


@pytest.fixture(params=WRITING)
def command(request: pytest.FixtureRequest) -> str:
    """Return the name of each command that writes a file."""
    return str(request.param)


def test_a_folder_that_does_not_exist_is_not_made(tmp_path: Path, command: str) -> None:
    path = tmp_path / "gone" / "out.md"

    message = refused(tmp_path, *writing(tmp_path, command), path)

    assert message == f"qdq: {path}: the folder {path.parent} does not exist. Create it first.\n"


def test_a_folder_is_no_output(tmp_path: Path, command: str) -> None:
    argv, path = writing(tmp_path, command), tmp_path / "folder.md"
    path.mkdir()

    assert refused(tmp_path, *argv, path) == f"qdq: {path}: the output is a folder. Pass a file.\n"
    assert (
        refused(tmp_path, *argv, path, "--force")
        == f"qdq: {path}: the output is a folder. Pass a file.\n"
    )


def test_a_path_under_a_file_is_no_output(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("x")
    path = tmp_path / "file" / "out.md"

    assert (
        refused(tmp_path, *writing(tmp_path, command), path)
        == f"qdq: {path}: {path.parent} is a file, not a folder. Pass a folder.\n"
    )


def test_a_name_too_long_for_the_system_is_no_output(tmp_path: Path, command: str) -> None:
    path = tmp_path / f"{'x' * 300}.md"

    assert (
        refused(tmp_path, *writing(tmp_path, command), path)
        == f"qdq: {path}: the file cannot be written: File name too long. Pass another name.\n"
    )


def test_the_longest_name_that_the_system_takes_is_an_output(tmp_path: Path, command: str) -> None:
    path = tmp_path / f"{'x' * 250}.md"

    assert run(*writing(tmp_path, command), path)[0] == 0
    assert path.is_file()


def test_an_existing_output_stays_without_force_and_goes_with_it(
    tmp_path: Path, command: str
) -> None:
    argv, path = writing(tmp_path, command), tmp_path / "old.md"
    path.write_text("old")

    assert (
        refused(tmp_path, *argv, path)
        == f"qdq: {path}: the file exists. Pass --force to replace it.\n"
    )
    assert run(*argv, path, "--force")[0] == 0
    assert path.read_bytes() != b"old"


def test_a_link_that_leads_nowhere_counts_as_existing(tmp_path: Path, command: str) -> None:
    path = tmp_path / "link.md"
    path.symlink_to("nowhere")

    assert (
        refused(tmp_path, *writing(tmp_path, command), path)
        == f"qdq: {path}: the file exists. Pass --force to replace it.\n"
    )


def test_what_is_no_regular_file_is_not_replaced_even_with_force(
    tmp_path: Path, command: str
) -> None:
    path = tmp_path / "pipe.md"
    os.mkfifo(path)

    assert (
        refused(tmp_path, *writing(tmp_path, command), path, "--force")
        == f"qdq: {path}: the output is not a regular file. Pass another one.\n"
    )
    assert path.is_fifo()


def hard_link(path: Path, source: Path) -> None:
    path.hardlink_to(source)


def symbolic_link(path: Path, source: Path) -> None:
    path.symlink_to(source)


@pytest.mark.parametrize("written", ["model.onnx", "samples/../model.onnx", "./model.onnx"])
@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize(
    "command", ["quantize", "plan", "calibrate", "apply", "strip"], indirect=True
)
def test_the_input_is_no_output_however_it_is_spelled(
    tmp_path: Path, command: str, written: str, force: list[str]
) -> None:
    path = f"{tmp_path}/{written}"

    message = refused(tmp_path, *writing(tmp_path, command), path, *force)

    assert (
        message
        == f"qdq: {Path(path)}: the output is the input, and inputs are never changed. Pass another file.\n"
    )


@pytest.mark.parametrize("link", [hard_link, symbolic_link])
@pytest.mark.parametrize(
    "command", ["quantize", "plan", "calibrate", "apply", "strip"], indirect=True
)
def test_the_input_is_no_output_through_a_link(
    tmp_path: Path, command: str, link: Callable[[Path, Path], None]
) -> None:
    argv = writing(tmp_path, command)
    path = tmp_path / "link"
    link(path, tmp_path / "model.onnx")

    assert "the output is the input" in refused(tmp_path, *argv, path, "--force")


@pytest.mark.parametrize(
    ("command", "other"),
    [
        ("quantize", "samples/1.npz"),
        ("calibrate", "samples/1.npz"),
        ("calibrate", "plan.yaml"),
        ("apply", "plan.yaml"),
        ("apply", "scales.json"),
    ],
    indirect=["command"],
)
def test_nothing_else_that_is_read_can_be_the_output(
    tmp_path: Path, command: str, other: str
) -> None:
    message = refused(tmp_path, *writing(tmp_path, command), tmp_path / other, "--force")

    assert (
        message
        == f"qdq: {tmp_path / other}: the output is the input, and inputs are never changed. Pass another file.\n"
    )


@pytest.mark.parametrize("data", ["data.npz", "loader.py", "loader.py:batches"])
def test_a_single_file_of_data_or_a_script_cannot_be_the_output(tmp_path: Path, data: str) -> None:
    model, path = save(tiny_model(), tmp_path / "model.onnx"), tmp_path / data.partition(":")[0]
    path.write_bytes((samples(tmp_path / "samples") / "0.npz").read_bytes())

    message = refused(tmp_path, "quantize", model, "-o", path, "--data", tmp_path / data, "--force")

    assert "the output is the input" in message


def test_model_and_report_cannot_be_one_file(tmp_path: Path) -> None:
    model, path = save(tiny_model(), tmp_path / "model.onnx"), tmp_path / "out.md"

    message = refused(
        tmp_path,
        "quantize",
        model,
        "-o",
        path,
        "--data",
        "noise",
        "--report",
        f"{tmp_path}/../{tmp_path.name}/out.md",
    )

    assert (
        "out.md: -o and --report are the same file. Pass another file for one of them." in message
    )


@pytest.mark.parametrize("name", ["report.pdf", "report", "report.JSON", ".md"])
@pytest.mark.parametrize("command", ["report", "validate"], indirect=True)
def test_a_report_needs_a_suffix_that_names_its_format(
    tmp_path: Path, command: str, name: str
) -> None:
    path = tmp_path / name

    assert (
        refused(tmp_path, *writing(tmp_path, command), path)
        == f"qdq: {path}: the suffix chooses the format, and {path.suffix!r} names none. Pass a file that ends in .html, .md, .json, .txt.\n"
    )


@pytest.mark.parametrize(
    "write", [write_atomic, lambda path, content: copy_atomic(content, path)], ids=["write", "copy"]
)
def test_a_write_that_fails_at_its_end_leaves_the_old_content_and_no_temporary_file(
    tmp_path: Path, write: Callable[[Path, object], None]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    (tmp_path / "new").write_text("new")
    before = contents(tmp_path)

    with pytest.raises(UsageError, match="out: the file could not be written: Is a directory"):
        write(tmp_path / "out", tmp_path / "new" if write is not write_atomic else b"new")

    assert contents(tmp_path) == before


def test_a_copy_that_cannot_be_placed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    before = contents(tmp_path)

    with pytest.raises(UsageError, match="could not be written"):
        copy_atomic(tmp_path / "file", tmp_path / "file" / "inner" / "copy")
    with pytest.raises(UsageError, match="could not be written: No such file or directory"):
        copy_atomic(tmp_path / "gone", tmp_path / "copy")
    with pytest.raises(UsageError, match="could not be written: No such file or directory"):
        write_atomic(tmp_path / "gone" / "file", b"x")

    assert contents(tmp_path) == before


def only_small_files() -> None:
    """Make writes in this process fail above 2000 bytes of a file, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


@pytest.mark.parametrize("old", [None, b"old"], ids=["new", "replaced"])
def test_a_disk_that_is_full_leaves_the_old_file_or_none_in_a_process_of_its_own(
    tmp_path: Path, old: bytes | None
) -> None:
    model, path = save(tiny_model(), tmp_path / "model.onnx"), tmp_path / "out.onnx"
    if old:
        path.write_bytes(old)
    before = contents(tmp_path)
    argv = [
        sys.executable,
        "-m",
        "qdq",
        "quantize",
        str(model),
        "-o",
        str(path),
        "--data",
        "noise",
        "--report",
        str(tmp_path / "report.md"),
        "--force",
    ]

    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, preexec_fn=only_small_files
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"qdq: {path}: the file could not be written: File too large. Pass another path.\n"
    )
    assert contents(tmp_path) == before


def test_permissions_of_a_written_file_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "out", b"x")
    finally:
        os.umask(before)

    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640
