"""Unknown commands, options and values: one line with the nearest known word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli_runner import refused, run, save, tiny_model

RTX = "rtx:sm75, rtx:sm80, rtx:sm86, rtx:sm89, rtx:sm120, rtx:sm121"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["quantise"],
            "no command 'quantise'. Did you mean 'quantize'? 'qdq --help' lists the commands.",
        ),
        (["calibrat", "x"], "no command 'calibrat'. Did you mean 'calibrate'"),
        (["frobnicate"], "no command 'frobnicate'. 'qdq --help' lists the commands."),
        ([], "Missing command. Run 'qdq --help' for help."),
        (["quantize"], "Missing argument 'MODELS...'. Run 'qdq quantize --help' for help."),
        (
            ["quantize", "MODEL"],
            "Missing option '-o' / '--output'. Run 'qdq quantize --help' for help.",
        ),
        (["quantize", "MODEL", "-o"], "Option '-o' requires an argument"),
        (["plan"], "Missing argument 'MODEL'. Run 'qdq plan --help' for help."),
        (["explain", "MODEL"], "Missing argument 'NAME'"),
        (["calibrate", "MODEL"], "Missing argument 'PLAN'"),
        (["apply", "MODEL", "PLAN"], "Missing argument 'SCALES'"),
        (["strip", "MODEL"], "Missing option '-o' / '--output'"),
        (["check"], "Missing argument 'MODELS...'"),
        (["validate", "MODEL"], "Missing argument 'QUANTIZED'"),
        (["test"], "Missing argument 'RULES'"),
        (["plan", "MODEL", "--formt", "json"], "'--format'"),
        (["plan", "MODEL", "--format", "xml"], "'xml' is not one of 'text', 'json'"),
        (["plan", "MODEL", "MODEL"], "unexpected extra argument"),
        (
            ["validate", "MODEL", "MODEL", "--data", "noise", "--min-snr", "high"],
            "--min-snr: 'high' is no ratio in dB. Pass a number such as 25dB",
        ),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_a_command_line_that_is_wrong_is_answered_in_one_line(
    tmp_path: Path, argv: list[str], expected: str
) -> None:
    model = save(tiny_model(), tmp_path / "model.onnx")

    assert expected in refused(tmp_path, *(model if word == "MODEL" else word for word in argv))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("rtx:sm90", f"TensorRT-RTX compiles for {RTX}"),
        ("rtx", f"TensorRT-RTX compiles for {RTX}"),
        ("foo", "write a backend and a compute capability, such as rtx:sm86 or trt:sm80"),
        ("trt:80", "write a backend and a compute capability"),
        ("trt:sm8.0", "write a backend and a compute capability"),
        ("rtx:sm86,rtx:sm89", "write a backend and a compute capability"),
        ("", "write a backend and a compute capability"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ["quantize", "MODEL", "-o", "OUT", "--data", "noise"],
        ["plan", "MODEL", "-o", "OUT"],
        ["explain", "MODEL", "conv"],
        ["check", "MODEL"],
        ["validate", "MODEL", "MODEL"],
    ],
    ids=lambda command: command[0],
)
def test_an_unknown_target_is_answered_with_those_there_are(
    tmp_path: Path, command: list[str], target: str, expected: str
) -> None:
    known = {"MODEL": save(tiny_model(), tmp_path / "model.onnx"), "OUT": tmp_path / "out.onnx"}

    message = refused(tmp_path, *(known.get(word, word) for word in command), "--target", target)

    assert (
        message
        == f"qdq: unknown target {target!r}: {message.partition(': ')[2].partition(': ')[2]}"
    )
    assert expected in message


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (
            "median",
            "unknown method 'median'. Pass auto, mse, entropy, percentile, percentile:99.9 or max",
        ),
        ("entropy:2", "unknown method 'entropy:2'"),
        ("", "unknown method ''"),
        ("max:3", "unknown method 'max:3'"),
        ("percentile:", "unknown method 'percentile:'"),
        ("percentile:nan", "unknown method 'percentile:nan'"),
        ("percentile:-1", "unknown method 'percentile:-1'"),
        ("percentile:0", "method 'percentile:0': 0 is no percentile. Pass a number above 0"),
        ("percentile:101", "method 'percentile:101': 101 is no percentile. Pass a number"),
        (
            "percentile:100.01",
            "method 'percentile:100.01': 100.01 is no percentile. Pass a number",
        ),
    ],
)
@pytest.mark.parametrize("command", ["quantize", "calibrate"])
def test_an_unknown_method_is_answered_with_those_there_are(
    tmp_path: Path, command: str, method: str, expected: str
) -> None:
    model, plan = save(tiny_model(), tmp_path / "model.onnx"), tmp_path / "plan.yaml"
    run("plan", model, "-o", plan)

    message = refused(
        tmp_path,
        command,
        model,
        *([plan] if command == "calibrate" else []),
        "-o",
        tmp_path / "out",
        "--data",
        "noise",
        "--method",
        method,
    )

    assert f"qdq: {expected}" in message


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("x", "--shapes 'x': the value is not a profile"),
        ("x=", "--shapes 'x=': the value is not a profile"),
        ("=1x4x8x8", "--shapes '=1x4x8x8': the value is not a profile"),
        ("x=1,4,8,8", "--shapes 'x=1,4,8,8': the value is not a profile"),
        ("x=1x4x8xq", "--shapes 'x=1x4x8xq': the value is not a profile"),
        ("x=1x4x8x²", "--shapes 'x=1x4x8x²': the value is not a profile"),
        ("x=0x4x8x8", "--shapes 'x=0x4x8x8': the value is not a profile"),
        ("x=-1x4x8x8", "--shapes 'x=-1x4x8x8': the value is not a profile"),
        ("image=1x4x8x8", "model.onnx: --shapes names no input 'image'; its inputs are x"),
        (
            "xx=1x4x8x8",
            "model.onnx: --shapes names no input 'xx'; its inputs are x. Did you mean 'x'?",
        ),
        ("y=1x5", "model.onnx: --shapes names no input 'y'; its inputs are x"),
        ("x=1x4x8", "model.onnx: --shapes x=1x4x8 does not fit the input, whose shape is ?x4x8x8"),
        (
            "x=1x3x8x8",
            "model.onnx: --shapes x=1x3x8x8 does not fit the input, whose shape is ?x4x8x8",
        ),
    ],
)
@pytest.mark.parametrize("command", ["quantize", "quantize --validate", "validate"])
def test_a_shape_that_is_misspelt_or_does_not_fit_is_refused_before_any_work(
    tmp_path: Path, command: str, shape: str, expected: str
) -> None:
    model = save(tiny_model(), tmp_path / "model.onnx")
    name, *options = command.split()
    more = (
        [model, "--target", "rtx:sm86"]
        if command == "validate"
        else ["-o", tmp_path / "out.onnx", *options]
    )

    assert refused(tmp_path, name, model, *more, "--data", "noise", "--shape", shape).startswith(
        f"qdq: {expected}"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cnov", "the model has no node or tensor 'cnov'. Did you mean 'conv'?"),
        ("", "the model has no node or tensor ''."),
        ("#17", "the model has no node or tensor '#17'."),
    ],
)
def test_explaining_what_is_not_there_is_answered_with_the_nearest(
    tmp_path: Path, name: str, expected: str
) -> None:
    assert (
        refused(tmp_path, "explain", save(tiny_model(), tmp_path / "model.onnx"), name)
        == f"qdq: model.onnx: {expected}\n"
    )


def test_as_a_process_bad_input_gives_exit_code_2_and_one_line_too(tmp_path: Path) -> None:
    path = tmp_path / "gone.onnx"

    done = subprocess.run(
        [sys.executable, "-m", "qdq", "plan", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        f"qdq: {path}: no such file exists. Fix the path.\n",
    )
