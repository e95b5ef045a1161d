"""What a file is after it was replaced: links, permissions, owners, and files written together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx
import pytest

import qdq
from qdq.errors import UsageError
from qdq.files.output import check_output, copy_atomic, write_atomic, written_together
from tests.support.cli_runner import contents, refused, run, samples, save, tiny_model
from tests.support.paths import PEERS


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a model that `check --fix` changes."""
    return Path(shutil.copy(PEERS / "torch_eager.onnx", tmp_path / "m.onnx"))


@pytest.mark.parametrize("target", ["m.onnx", "chain"])
def test_a_fix_through_a_link_changes_the_file_behind_it(broken: Path, target: str) -> None:
    folder = broken.parent / "other"
    folder.mkdir()
    (broken.parent / "chain").symlink_to("m.onnx")
    link = folder / "link.onnx"
    link.symlink_to(Path("..") / target)
    before = broken.read_bytes()

    assert run("check", "--fix", link)[0] == 1
    assert link.is_symlink()
    assert broken.read_bytes() != before
    assert os.listdir(folder) == ["link.onnx"]
    assert sorted(os.listdir(broken.parent)) == ["chain", "m.onnx", "other"]


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o664])
def test_a_fix_keeps_the_permissions(broken: Path, bits: int) -> None:
    broken.chmod(bits)
    before = broken.read_bytes()

    run("check", "--fix", broken)

    assert broken.read_bytes() != before
    assert mode(broken) == bits


def test_a_fix_refuses_a_file_with_another_name(broken: Path) -> None:
    """It would be cut from the other name, and the two would differ."""
    (broken.parent / "other.onnx").hardlink_to(broken)
    before = contents(broken.parent)

    code, _, errors = run("check", "--fix", broken)

    assert code == 2
    assert errors == (
        f"qdq: {broken}: the file has other names (hard links), which would keep the old content."
        " Replace it by a copy of its own first.\n"
    )
    assert contents(broken.parent) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every file")
def test_a_fix_refuses_a_file_that_is_read_only(broken: Path) -> None:
    broken.chmod(0o444)

    assert run("check", "--fix", broken)[0] == 2


def test_an_output_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    model, path = save(tiny_model(), tmp_path / "m.onnx"), tmp_path / "o.yaml"
    path.touch()
    path.chmod(0o600)

    assert run("plan", model, "-o", path, "--force")[0] == 0
    assert (mode(path), path.stat().st_size > 0) == (0o600, True)


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_of_the_umask(
    tmp_path: Path, umask: int, expected: int
) -> None:
    old_umask = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", b"x")
    finally:
        os.umask(old_umask)

    assert mode(tmp_path / "file") == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_keeps_its_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, 1234, 2345)

    write_atomic(path, b"x")

    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


@pytest.mark.parametrize("exists", [True, False], ids=["", "broken"])
def test_an_output_that_is_a_link_is_written_behind_it(tmp_path: Path, exists: bool) -> None:
    model, target = save(tiny_model(), tmp_path / "m.onnx"), tmp_path / "disk" / "p.yaml"
    target.parent.mkdir()
    if exists:
        target.touch()
    link = tmp_path / "p.yaml"
    link.symlink_to("disk/p.yaml")

    assert run("plan", model, "-o", link, "--force")[0] == 0
    assert link.is_symlink()
    assert target.read_text().startswith("qdq_plan:")


def test_a_link_to_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone/file")

    with pytest.raises(UsageError, match=r"the folder .*gone does not exist"):
        check_output(tmp_path / "link", force=True)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    (tmp_path / "link").symlink_to("link")

    message = refused(tmp_path, "plan", model, "-o", tmp_path / "link", "--force")

    assert message == f"qdq: {tmp_path / 'link'}: the link leads to itself. Remove it.\n"


def test_another_name_of_an_output_keeps_the_old_content(tmp_path: Path) -> None:
    """As with every file that is replaced whole: the old content may be a copy that is kept."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "backup").hardlink_to(tmp_path / "file")

    write_atomic(tmp_path / "file", b"new")

    assert (tmp_path / "backup").read_text() == "old"


def test_files_written_together_appear_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("old")

    def write(source: Path) -> None:
        with written_together():
            write_atomic(tmp_path / "1", b"new")
            copy_atomic(source, tmp_path / "2")

    with pytest.raises(UsageError):
        write(tmp_path / "gone")
    assert contents(tmp_path) == {"1": b"old"}

    write(tmp_path / "1")
    assert contents(tmp_path) == {"1": b"new", "2": b"old"}


def test_a_model_is_written_with_all_of_its_external_data_or_not_at_all(tmp_path: Path) -> None:
    """The second of its files cannot be copied, since a folder is in its place."""
    model, out = tiny_model(), tmp_path / "out"
    for position, tensor in enumerate(model.graph.initializer):
        onnx.external_data_helper.set_external_data(tensor, f"w{position % 2}.bin")
    onnx.save(model, tmp_path / "m.onnx")
    (out / "w1.bin").mkdir(parents=True)
    source = qdq.load(tmp_path / "m.onnx")

    with pytest.raises(UsageError, match=r"w1\.bin"):
        qdq.save(source.model, source, out / "m.onnx", force=True)
    assert contents(out) == {"w1.bin": None}


def test_a_failed_report_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = save(tiny_model(), tmp_path / "m.onnx"), tmp_path / "out"
    out.mkdir()

    def fail(*_: object, **options: object) -> str:
        raise UsageError("no space left")

    monkeypatch.setattr("qdq.reports.page_markdown.render_markdown", fail)
    quantize = ("quantize", model, "--data", samples(tmp_path / "d"), "-o", out / "q.onnx")

    assert run(*quantize, "--report", out / "r.md")[0] == 2
    assert os.listdir(out) == []
