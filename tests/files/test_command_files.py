"""No output of a command replaces a file that it reads, or another of its outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import qdq
from qdq.errors import UsageError
from qdq.files.command_files import CommandFiles, command_files, note_input
from qdq.files.output import check_output, write_atomic
from tests.support.cli_runner import SHAPE, refused, run, samples, tiny_model
from tests.support.paths import ROOT

IS_INPUT = "the output is the input, and inputs are never changed. Pass another file."
RULE = """rule: mine
says: Leave it in float.
because: A test.
where: {named: conv}
then: leave-float
beats: '*'
"""


def save_external(folder: Path, name: str = "m.onnx", location: str = "w.json") -> Path:
    """Write the tiny model with its weights in another file, and return its path."""
    path = folder / name
    onnx.save(tiny_model(), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model and everything that the commands make of it."""
    folder = tmp_path_factory.mktemp("made")
    model, data = save_external(folder), samples(folder / "d")
    (folder / "mine.yaml").write_text(RULE)
    calibrate = ("calibrate", model, folder / "p.yaml", "--data", data)
    for argv in (
        ("plan", model, "-o", folder / "p.yaml"),
        (*calibrate, "-o", folder / "s.json", "--save-ranges", folder / "all.ranges"),
        ("apply", model, folder / "p.yaml", folder / "s.json", "-o", folder / "i.onnx"),
        ("ranges", "export", folder / "s.json", "--format", "tensorrt-cache", "-o", folder / "c"),
        ("check", folder / "i.onnx", "--write-baseline", folder / "b.json"),
    ):
        code, _, errors = run(*argv)
        assert code == 0, errors
    return folder


QUANTIZE = "quantize m.onnx --data d"
#: Commands with the option of an output at the end.
WRITING = (
    f"{QUANTIZE} -o",
    f"{QUANTIZE} -o new.onnx --save-ranges",
    f"{QUANTIZE} -o new.onnx --report",
    "plan m.onnx -o",
    "plan m.onnx --format json -o",
    "calibrate m.onnx p.yaml --data d -o",
    "calibrate m.onnx p.yaml --data d --shard 1/2 -o",
    "calibrate m.onnx p.yaml --data d -o new.json --save-ranges",
    "apply m.onnx p.yaml s.json -o",
    "strip i.onnx -o",
    "cast m.onnx -o",
    "strip i.onnx -o new.onnx --ranges",
    "ranges export i.onnx --format yaml -o",
    "validate m.onnx i.onnx --data d --report",
    "sensitivity m.onnx --data d --report",
    "check m.onnx --report",
    "diff m.onnx i.onnx --report",
)


@pytest.mark.parametrize("command", WRITING)
def test_external_data_stays_under_every_name(
    made: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(made)
    links = {"link.json": Path.symlink_to, "hard.json": Path.hardlink_to}
    for name, link in links.items():
        link(made / name, made / "w.json")
    try:
        for name in ("w.json", "d/../w.json", *links):
            message = refused(made, *command.split(), name, "--force")
            assert message == f"qdq: {Path(name)}: {IS_INPUT}\n"
    finally:
        for name in links:
            (made / name).unlink()


@pytest.mark.parametrize(
    "command",
    [
        "plan m.onnx --rules tensorrt --rules mine.yaml -o mine.yaml",
        "plan m.onnx --rules rules -o rules/mine.yaml",
        f"{QUANTIZE} --rules tensorrt --rules mine.yaml -o mine.yaml",
        f"{QUANTIZE} -o new.onnx --rules rules --report rules/mine.json",
        "plan m.onnx --diff p.yaml -o p.yaml",
        "quantize m.onnx --ranges c -o c",
        "quantize m.onnx --ranges all.ranges -o new.onnx --report all.json",
        "calibrate m.onnx p.yaml --ranges all.ranges -o all.ranges",
        "ranges merge all.ranges -o all.ranges",
        "ranges export c --format yaml -o c",
        "ranges export s.json --format yaml -o s.json",
        "validate m.onnx i.onnx --data d --report i.json",
        "validate m.onnx i.onnx --target trt:sm80 --layers e.json --report e.json",
        "quantize m.onnx --images pictures --preprocess how.yaml -o how.yaml",
        "quantize m.onnx --images pictures --preprocess how.yaml -o pictures/0.png",
        "quantize m.onnx --data load.py -o load.py",
        "calibrate m.onnx p.yaml --data x.npy -o x.npy",
        "strip i.onnx -o new.onnx --ranges i.onnx",
    ],
)
def test_every_other_kind_of_input_stays(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(made)
    (made / "rules").mkdir(exist_ok=True)
    (made / "rules" / "mine.yaml").write_text(RULE)
    (made / "pictures").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(made / "pictures" / "0.png")
    (made / "how.yaml").write_text("size: [8, 8]\n")
    (made / "load.py").write_text("def load_data():\n    yield {}\n")
    np.save(made / "x.npy", np.zeros((1, *SHAPE), np.float32))
    (made / "e.json").write_text("{}")
    hard_links = {
        "rules/mine.json": "rules/mine.yaml",
        "all.json": "all.ranges",
        "i.json": "i.onnx",
    }
    for name, source in hard_links.items():
        (made / name).unlink(missing_ok=True)
        (made / name).hardlink_to(made / source)

    assert refused(made, *command.split(), "--force").endswith(f": {IS_INPUT}\n")


def test_the_project_file_stays(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qdq.yaml").write_text("targets: rtx:sm86\n")

    message = refused(tmp_path, "plan", made / "m.onnx", "-o", "qdq.yaml", "--force")

    assert message == f"qdq: qdq.yaml: {IS_INPUT}\n"


def test_a_baseline_may_be_written_again_over_itself(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ("check", made / "i.onnx", "--baseline", "b.json", "--write-baseline", "b.json")

    assert [run(*argv)[0] for _ in range(2)] == [0, 0]


def test_a_copy_of_external_data_replaces_no_input(made: Path, tmp_path: Path) -> None:
    """The output's own external data file would be the ranges that the command reads."""
    (tmp_path / "w.json").write_bytes((made / "c").read_bytes())

    message = refused(
        tmp_path,
        *("quantize", made / "m.onnx", "-o", tmp_path / "q.onnx", "--force"),
        *("--ranges", tmp_path / "w.json"),
    )

    assert message == f"qdq: {tmp_path / 'w.json'}: {IS_INPUT}\n"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("-o o.md --report o.md", "-o and --report"),
        ("-o o.md --report l.md", "-o and --report"),
        ("-o o.onnx --report w.json", "--report and the external data w.json"),
        ("-o w.json", "the model and the external data w.json"),
        ("-o o.onnx --save-ranges o.onnx.checkpoint", "--save-ranges and the checkpoint"),
        ("-o o.onnx --report r.json --save-ranges r.json", "--report and --save-ranges"),
    ],
)
def test_two_outputs_are_not_the_same_file(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, names: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l.md").symlink_to("o.md")
    quantize = ("quantize", made / "m.onnx", "--data", made / "d", "--force")

    message = refused(tmp_path, *quantize, *options.split())

    assert message.endswith("are the same file. Pass another file for one of them.\n")
    assert all(name in message for name in names.split(" and "))


def test_pages_that_are_links_to_each_other_are_not_written(tmp_path: Path) -> None:
    (tmp_path / "rules.md").write_text("old")
    (tmp_path / "facts.md").symlink_to("rules.md")

    message = refused(tmp_path, "rules", "docs", "-o", tmp_path, "--force")

    assert "facts.md are the same file" in message


def test_a_checkpoint_replaces_no_input(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "q.onnx.checkpoint"
    data.mkdir()
    (tmp_path / "x.npz").write_bytes((made / "d" / "0.npz").read_bytes())
    data.rmdir()
    data.hardlink_to(tmp_path / "x.npz")

    message = refused(
        tmp_path,
        *("quantize", made / "m.onnx", "--data", tmp_path / "x.npz"),
        *("-o", tmp_path / "q.onnx", "--force"),
    )

    assert message == f"qdq: {data}: {IS_INPUT}\n"


def test_the_library_does_not_save_over_the_external_data_of_its_source(tmp_path: Path) -> None:
    model = save_external(tmp_path)
    result = qdq.quantize(model, samples(tmp_path / "d"))
    (tmp_path / "link").symlink_to("w.json")
    before = (tmp_path / "w.json").read_bytes()

    for name in ("w.json", "link"):
        with pytest.raises(UsageError, match="the output is the input"):
            qdq.save(result.model, result.source, tmp_path / name, force=True)
    assert (tmp_path / "w.json").read_bytes() == before


def test_a_copy_of_the_library_does_not_replace_the_data_that_it_copies(tmp_path: Path) -> None:
    """The second external file is a link to the first one where it is saved."""
    (tmp_path / "new").mkdir()
    model = tiny_model()
    for position, tensor in enumerate(model.graph.initializer):
        onnx.external_data_helper.set_external_data(tensor, f"w{position % 2}.bin")
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "new" / "w1.bin").symlink_to(tmp_path / "w0.bin")
    source = qdq.load(tmp_path / "m.onnx")
    before = (tmp_path / "w0.bin").read_bytes()

    with pytest.raises(UsageError, match=r"w1\.bin: the output is the input"):
        qdq.save(source.model, source, tmp_path / "new" / "m.onnx", force=True)
    assert (tmp_path / "w0.bin").read_bytes() == before


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_new_command_needs_no_list_of_its_inputs(
    tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    source, path = tmp_path / "source", tmp_path / "path"
    source.write_text("source")
    link(path, source)

    with command_files():
        note_input(source)
        with pytest.raises(UsageError, match="path: the output is the input"):
            write_atomic(path, b"other")
    with command_files():
        check_output(path, force=True)
        with pytest.raises(UsageError, match="path: the output is the input"):
            note_input(source)
    assert source.read_text() == "source"


def test_a_file_is_written_once_by_a_command(tmp_path: Path) -> None:
    with command_files():
        write_atomic(tmp_path / "file", b"1")
        with pytest.raises(UsageError, match="file: two outputs are the same file"):
            write_atomic(tmp_path / "file", b"2")
    write_atomic(tmp_path / "file", b"3")
    assert (tmp_path / "file").read_bytes() == b"3"


def test_an_input_that_is_gone_protects_no_file_that_has_its_inode(tmp_path: Path) -> None:
    files = CommandFiles()
    (tmp_path / "old").write_text("old")
    files.add_input(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")

    files.add_output(tmp_path / "new")


#: Runs commands and prints the files that Python opens for reading but no reader recorded.
RECORDER = """
import json, os, sys
from pathlib import Path
from qdq.files.command_files import CommandFiles

folder, commands = sys.argv[1], json.loads(sys.argv[2])
recorded, opened, add_input = set(), set(), CommandFiles.add_input

def record(self, path):
    recorded.add(os.path.realpath(path))
    add_input(self, path)

def hear(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        is_read = not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if is_read and path.startswith(folder) and os.path.isfile(path):
            opened.add(path)

CommandFiles.add_input = record
from qdq.cli import main
sys.addaudithook(hear)
for command in commands:
    recorded.clear()
    opened.clear()
    code = main(command)
    print(json.dumps([command, code, len(opened), sorted(opened - recorded)]), file=sys.stderr)
"""


def test_every_file_that_a_command_opens_is_recorded_as_its_input(
    made: Path, tmp_path: Path
) -> None:
    folder = tmp_path
    for path in made.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    samples(folder / "d")
    np.save(folder / "x.npy", np.zeros((2, *SHAPE), np.float32))
    (folder / "load.py").write_text(
        "import numpy\ndef load_data():\n    yield {'x': numpy.zeros((1, 4, 8, 8), 'float32')}\n"
    )
    (folder / "qdq.yaml").write_text("targets: rtx:sm86\n")
    (folder / "rules").mkdir()
    (folder / "rules" / "mine.yaml").write_text(RULE)
    commands = [
        *(f"{command} OUT --force".split() for command in WRITING),
        f"{QUANTIZE} --rules tensorrt --rules rules -o OUT".split(),
        *(f"quantize m.onnx --data {data} -o OUT".split() for data in ("x.npy", "load.py")),
        *(f"quantize m.onnx --ranges {name} -o OUT".split() for name in ("c", "all.ranges")),
        ["plan", "m.onnx", "--diff", "p.yaml"],
        ["explain", "m.onnx", "conv"],
        ["diff", "m.onnx", "i.onnx"],
        ["check", "i.onnx", "--baseline", "b.json"],
        ["ranges", "merge", "all.ranges", "-o", "OUT"],
        ["rules", "list", "rules"],
        ["test", "rules", "--no-engines"],
    ]
    for position, command in enumerate(commands):
        suffix = ".html" if "--report" in command else ".out"
        commands[position] = [word.replace("OUT", f"{position}{suffix}") for word in command]

    answer = subprocess.run(
        [sys.executable, "-c", RECORDER, str(folder), json.dumps(commands)],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )

    lines = [json.loads(line) for line in answer.stderr.splitlines() if line.startswith("[")]
    assert [line[3] for line in lines] == [[]] * len(commands), lines
    assert all(code in (0, 1) and count for _, code, count, _ in lines), answer.stderr
