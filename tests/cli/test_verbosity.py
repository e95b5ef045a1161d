"""`--verbose`, `--quiet` and `--log`, before and after a command; progress on files and terminals."""

from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path

import pytest

from qdq.cli import progress
from qdq.stage_log import LOGGER, timed_stage
from tests.support.cli_runner import contents, refused, run, samples, save, tiny_model
from tests.support.defects import DEFECTS, good

DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
ELAPSED = re.compile(r"\[ *\d+\.\d\d s\] (.*)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder: a float model with samples, a good quantized one, one with UINT8."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    save(tiny_model(), tmp_path / "tiny.onnx")
    samples(tmp_path / "d")
    save(good(), tmp_path / "good.onnx")
    uint8 = good()
    DEFECTS["uint8"][0](uint8)
    save(uint8, tmp_path / "uint8.onnx")
    return tmp_path


def read_messages(err: str) -> list[str]:
    """Return the messages of `--verbose`, each line of which has the elapsed time."""
    matches = [ELAPSED.fullmatch(line) for line in err.splitlines()]
    assert all(matches), err
    return [match[1] for match in matches if match]


@pytest.mark.parametrize("words", [("-v", "check", "good.onnx"), ("check", "good.onnx", "-v")])
def test_verbose_prints_versions_stages_and_the_exit_code(
    folder: Path, words: tuple[str, ...]
) -> None:
    code, out, err = run(*words)
    messages = read_messages(err)
    assert (code, out) == (0, "good.onnx: no findings\n")
    assert messages[0] == f"qdq {' '.join(words)}"
    assert messages[1].startswith("qdq ")
    assert "onnx" in messages[1]
    assert any(message.startswith("reading the model took") for message in messages)
    assert messages[-1].startswith("ends with exit code 0, ")
    assert "begins" not in err


def test_verbose_names_sessions_and_the_stages_of_quantize(folder: Path) -> None:
    words = ("tiny.onnx", "-o", "o.onnx", "--data", "d", "--target", "trt:sm80", "-v")
    messages = read_messages(run("quantize", *words)[2])
    stages = [message.split(" took ")[0] for message in messages if " took " in message]
    order = ["preparing", "planning", "calibrating", "rewriting", "writing"]
    assert [stage for stage in stages if stage in order] == order
    assert any(
        re.match(r"session of tiny.onnx, .*ONNX Runtime \d", message) for message in messages
    )


def test_nothing_is_left_behind_for_the_next_command(folder: Path) -> None:
    run("check", "good.onnx", "-v", "--log", "l.txt")
    assert run("check", "good.onnx") == (0, "good.onnx: no findings\n", "")
    assert [type(handler) for handler in LOGGER.handlers] == [logging.NullHandler]


@pytest.mark.parametrize("words", [("-q", "quantize"), ("quantize", "-q")])
def test_quiet_prints_nothing_about_what_was_written(folder: Path, words: tuple[str, ...]) -> None:
    (folder / "qdq.yaml").write_text("data: d\ntargets: ['trt:sm80']\n")
    code, out, err = run(*words, "tiny.onnx", "-o", "o.onnx")
    assert (code, out, err) == (0, "", "")
    assert Path("o.onnx").exists()
    for command in (
        ("plan", "tiny.onnx", "-o", "p.yaml"),
        ("calibrate", "tiny.onnx", "p.yaml", "-o", "s.json"),
        ("apply", "tiny.onnx", "p.yaml", "s.json", "-o", "a.onnx"),
        ("strip", "a.onnx", "-o", "f.onnx"),
        ("cast", "tiny.onnx", "-o", "h.onnx"),
        ("ranges", "export", "s.json", "--format", "yaml", "-o", "r.yaml"),
        ("new-rule", "mine", "--rules", "mine"),
    ):
        assert run(*command, "-q") == (0, "", ""), command


def test_quiet_prints_what_was_asked_for(folder: Path) -> None:
    for words in (("check", "uint8.onnx"), ("inspect", "good.onnx"), ("facts",)):
        assert run("-q", *words) == run(*words)
    answer = run("quantize", "tiny.onnx", "-o", "o.onnx", "--data", "d", "-q", "--format", "json")
    assert answer[1].startswith("{")


def test_quiet_prints_errors(folder: Path) -> None:
    assert "missing.onnx: no such file" in refused(folder, "check", "missing.onnx", "-q")


def test_verbose_and_quiet_exclude_each_other(folder: Path) -> None:
    message = "--verbose and --quiet exclude each other. Pass one of them.\n"
    assert run("-q", "check", "good.onnx", "-v")[2] == f"qdq: {message}"
    assert run("check", "good.onnx", "-v", "-q")[2].splitlines()[2] == f"qdq: {message}".rstrip()


def test_a_log_has_dates_and_is_appended_to(folder: Path) -> None:
    assert run("check", "good.onnx", "--log", "l.txt") == run("check", "good.onnx")
    assert run("--log", "l.txt", "check", "missing.onnx")[0] == 2
    lines = Path("l.txt").read_text().splitlines()
    assert all(re.match(f"{DATE} (DEBUG|INFO|ERROR) ", line) for line in lines)
    assert sum("ends with exit code" in line for line in lines) == 2
    assert any("ERROR qdq: missing.onnx: no such file exists. Fix the path." in x for x in lines)


def test_a_log_replaces_and_extends_no_other_file(folder: Path) -> None:
    Path("notes.txt").write_text("my notes")
    for path in ("good.onnx", "notes.txt"):
        for words in (("--log", path, "check", "good.onnx"), ("check", "good.onnx", "--log", path)):
            before = contents(folder)
            code, _, err = run(*words)
            assert code == 2
            assert "is no log of qdq" in err or "the output is the input" in err
            assert contents(folder) == before


def test_a_log_that_cannot_be_written_is_refused(folder: Path) -> None:
    message = refused(folder, "check", "good.onnx", "--log", "none/l.txt")
    assert message.startswith("qdq: none/l.txt: the log cannot be written: ")
    assert (
        "--log is passed twice" in run("--log", "l.txt", "check", "good.onnx", "--log", "m.txt")[2]
    )


def test_several_models_pass_the_choice_on(folder: Path) -> None:
    save(tiny_model(), folder / "small.onnx")
    words = ("tiny.onnx", "small.onnx", "--out-dir", "out", "--data", "d", "--target", "trt:sm80")
    code, out, err = run("quantize", *words, "-q", "--log", "l.txt")
    assert (code, out, err) == (0, "", "")
    log = Path("l.txt").read_text()
    assert log.count("calibrating took") == 2


def test_names_in_a_record_are_escaped(folder: Path) -> None:
    name = "odd\x1b[31m.onnx"
    save(good(), folder / name)
    assert "\x1b" not in run("check", name, "-v")[2]


def test_the_library_records_and_prints_nothing(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, "qdq")
    with timed_stage("counting"):
        pass
    assert caplog.messages[0] == "counting begins"
    assert re.fullmatch(r"counting took \d+\.\d\d s", caplog.messages[1])
    assert capsys.readouterr().err == ""


# --- progress --------------------------------------------------------------------------------------------------------


class File(io.StringIO):
    """Standard error of a process whose output goes to a file."""

    def fileno(self) -> int:
        """Return the number of a file."""
        return 2


def show(
    monkeypatch: pytest.MonkeyPatch,
    stream: io.StringIO,
    counts: dict[float, int],
    total: int | None,
) -> list[str]:
    """Return the lines that progress prints on a stream for counts at some seconds."""
    clock = iter([0.0, *counts])
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("calibrating", total) as advance:
        for count in counts.values():
            advance(count)
    return [line.split(", ")[0] for line in stream.getvalue().splitlines()]


def test_a_long_run_prints_a_line_every_30_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {10.0: 1, 29.0: 2, 30.0: 3, 59.0: 4, 61.0: 5}
    lines = ["calibrating: 3 of 1000 samples", "calibrating: 5 of 1000 samples"]
    assert show(monkeypatch, File(), counts, 1000) == lines


def test_a_tenth_of_the_work_is_a_line_but_not_twice_in_5_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = {1.0: 10, 4.9: 30, 5.0: 40, 9.0: 90, 10.0: 100}
    lines = ["calibrating: 40 of 100 samples", "calibrating: 100 of 100 samples"]
    assert show(monkeypatch, File(), counts, 100) == lines


def test_a_count_without_a_total_is_shown_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(monkeypatch, File(), {31.0: 7}, None) == ["calibrating: 7 samples"]


def test_the_line_has_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = File()
    show(monkeypatch, stream, {30.0: 25}, 100)
    assert "25 of 100 samples, 1 min 30 s left" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_text_in_memory_gets_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(monkeypatch, io.StringIO(), {40.0: 50}, 100) == []


def test_quiet_shows_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "is_quiet", lambda: True)
    assert show(monkeypatch, File(), {40.0: 50}, 100) == []
