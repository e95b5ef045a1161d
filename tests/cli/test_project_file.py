"""The project file: its location, its errors, and the defaults that it gives to options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qdq.cli.project_file import find_project
from tests.support.cli_runner import refused, run, samples, save, tiny_model
from tests.support.pictures import album, picture_model

KEEP = "rule: keep\nsays: Leave the classifier in float.\nwhere: {into: Gemm}\nthen: leave-float\nbeats: ['*']\n"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with a model, data and rules, and change to a folder below it."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "keep.yaml").write_text(KEEP)
    save(tiny_model(), tmp_path / "model.onnx")
    samples(tmp_path / "samples")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


FILES = {
    "qdq.yaml": "rules: [tensorrt, rules]\ntargets: 'rtx:sm86'\ndata: samples\nmethod: max\nthresholds: {snr_db: 200}\n",
    "pyproject.toml": '[project]\nname = "x"\n[tool.qdq]\nrules = ["tensorrt", "rules"]\ntargets = "rtx:sm86"\ndata = "samples"\nmethod = "max"\n'
    "[tool.qdq.thresholds]\nsnr_db = 200\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_command_takes_what_is_not_given_from_the_project_file(
    repository: Path, name: str
) -> None:
    (repository / name).write_text(FILES[name])
    model, out = repository / "model.onnx", repository / "out.onnx"

    code, text, err = run("quantize", model, "-o", out)
    assert (code, err) == (0, f"project file ../{name}: rules, targets, data, method, thresholds\n")
    assert "for rtx:sm86, rules tensorrt, rules" in text
    assert "max over 2 samples of samples" in text

    assert json.loads(run("plan", model, "--format", "json")[1])["targets"] == [
        {"backend": "rtx", "sm": 86}
    ]
    assert "leave in float: keep" in run("explain", model, "gemm")[1]
    assert run("check", out) == (
        0,
        f"{out}: no findings\n",
        f"project file ../{name}: rules, targets\n",
    )
    assert (
        run("calibrate", model, plan_of(repository), "-o", repository / "scales.json")[2]
        == f"project file ../{name}: data, method\n"
    )


def plan_of(repository: Path) -> Path:
    """Write a plan and return it."""
    assert run("plan", repository / "model.onnx", "-o", repository / "plan.yaml")[0] == 0
    return repository / "plan.yaml"


def test_pictures_and_their_preprocessing_stand_in_the_project_file(repository: Path) -> None:
    save(picture_model("n", 3, 16, 16), repository / "model.onnx")
    album(repository / "album", (20, 20), (20, 30), (30, 20))
    (repository / "how.yaml").write_text("like: yolo\n")
    (repository / "qdq.yaml").write_text(
        "images: album\npreprocess: how.yaml\nsamples: 2\nseed: 3\n"
    )
    model, out = repository / "model.onnx", repository / "out.onnx"

    code, text, err = run("quantize", model, "-o", out)
    assert (code, err) == (0, "project file ../qdq.yaml: images, preprocess, samples, seed\n")
    assert "auto over 2 samples of album as how.yaml, 2 of 3 by seed 3" in text
    assert (
        "1 samples of noise"
        in run("quantize", model, "-o", out, "--force", "--data", "noise", "--samples", "1")[1]
    )

    (repository / "qdq.yaml").write_text("data: samples\n")
    assert (
        "auto over 3 samples of album as yolo"
        in run(
            "quantize",
            model,
            "-o",
            out,
            "--force",
            "--images",
            repository / "album",
            "--preprocess",
            "yolo",
        )[1]
    )


def test_thresholds_judge_validate_and_quantize(repository: Path) -> None:
    (repository / "qdq.yaml").write_text(
        "data: samples\nthresholds: {snr_db: 200, cosine: 0.5, top1_agreement: 0}\n"
    )
    model, out = repository / "model.onnx", repository / "out.onnx"

    assert run("quantize", model, "-o", out)[0] == 0
    code, text, _ = run("validate", model, out)
    assert (code, "at least 200 is required" in text) == (1, True), text
    assert run("validate", model, out, "--min-snr", "1")[0] == 0
    assert run("quantize", model, "-o", out, "--force", "--validate")[0] == 1
    assert run("quantize", model, "-o", out, "--force", "--validate", "--min-snr", "1")[0] == 0
    assert run("quantize", model, "-o", out, "--force", "--min-snr", "1")[0] == 0
    assert (
        refused(repository, "quantize", model, "-o", out, "--force", "--min-cosine", "1")
        == "qdq: --min-cosine applies to a validation. Pass --validate too.\n"
    )


def test_an_option_that_is_given_wins_and_no_project_ignores_the_file(repository: Path) -> None:
    (repository / "qdq.yaml").write_text(FILES["qdq.yaml"])
    model = repository / "model.onnx"

    plan = json.loads(
        run("plan", model, "--rules", "tensorrt", "--target", "trt:sm80", "--format", "json")[1]
    )
    assert (plan["rule_sets"], plan["targets"]) == (["tensorrt"], [{"backend": "trt", "sm": 80}])

    code, text, err = run("--no-project", "plan", model, "--format", "json")
    assert (code, err, json.loads(text)["rule_sets"]) == (0, "", ["tensorrt"])


def test_globs_of_the_project_reach_check(repository: Path) -> None:
    model, out = repository / "model.onnx", repository / "out.onnx"
    assert run("quantize", model, "-o", out, "--data", "noise", "--leave-float", "gemm")[0] == 0
    (repository / "qdq.yaml").write_text("leave_float: [conv]\n")

    code, text, _ = run("check", out)

    assert code == 1
    assert "warning unwanted-pair: " in text
    assert "    x -> conv[0]: " in text
    assert "warning missing-pair: " in text
    assert "    f -> gemm[0]: " in text


def test_the_nearest_file_counts_and_the_search_ends_at_the_repository(repository: Path) -> None:
    (repository / "qdq.yaml").write_text("method: max\n")
    (repository / "work" / "qdq.yaml").write_text("method: mse\n")
    project = find_project(repository / "work")
    assert project is not None
    assert project.options == {"method": "mse"}

    inner = repository / "work" / "inner"
    (inner / ".git").mkdir(parents=True)
    assert find_project(inner) is None


def test_a_pyproject_of_others_is_no_project_file(repository: Path) -> None:
    for content in (
        b"[tool.ruff]\nline-length = 3\n",
        b"tool = 3\n",
        b"no TOML [",
        b"\xff\xfe",
        b"a = " + b"[" * 5000,
    ):
        (repository / "pyproject.toml").write_bytes(content)
        assert find_project(repository / "work") is None


def test_help_and_other_commands_do_not_read_the_project_file(repository: Path) -> None:
    (repository / "qdq.yaml").write_text("rulse: x\n")

    assert run("plan", "--help")[0] == 0
    assert run("facts")[0] == 0
    assert "unknown key 'rulse'. Did you mean 'rules'?" in refused(
        repository, "plan", repository / "model.onnx"
    )


MISTAKES = {
    "text": ("hello\n", 1, "a project file is a mapping. Write some of rules, targets, data"),
    "empty": ("", 1, "a project file is a mapping"),
    "misspelt": (
        "method: max\ntraget: x\n",
        2,
        "unknown key 'traget'. Did you mean 'targets'? Known keys are rules, ",
    ),
    "twice": ("method: max\nmethod: mse\n", 2, "the key 'method' is given twice"),
    "no-set": ("rules: tensort\n", 1, "'rules': unknown rule set"),
    "rules-number": ("rules: 3\n", 1, "'rules': the value is 3. Write a text or a list of texts."),
    "no-target": ("targets: [rtx:sm86, rtx]\n", 1, "'targets': unknown target 'rtx'"),
    "data-and-images": (
        "data: x\nimages: y\n",
        2,
        "'data' and 'images' exclude each other. Keep one of them.",
    ),
    "images-number": ("images: 3\n", 1, "'images': the value is 3. Write a text."),
    "preprocess": ("preprocess: [a]\n", 1, "'preprocess': the value is ['a']. Write a text."),
    "samples-zero": (
        "samples: 0\n",
        1,
        "'samples': the value is 0. Write a whole number of samples, at least 1.",
    ),
    "seed": ("seed: -1\n", 1, "'seed': the value is -1. Write a whole number, at least 0."),
    "data-list": ("data: [a, b]\n", 1, "'data': the value is ['a', 'b']. Write a text."),
    "no-method": ("\nmethod: median\n", 2, "'method': unknown method 'median'"),
    "batch-zero": (
        "batch: 0\n",
        1,
        "'batch': the value is 0. Write a whole number of samples, at least 1.",
    ),
    "batch-truth": ("batch: true\n", 1, "'batch': the value is True. Write a whole number"),
    "globs-nothing": ("leave_float:\n", 1, "'leave_float': the value is None. Write a text"),
    "truth": ("allow_unmatched: 3\n", 1, "'allow_unmatched': the value is 3. Write true or false."),
    "thresholds": (
        "thresholds: 3\n",
        1,
        "'thresholds' is 3. Write some of snr_db, cosine, top1_agreement, metric, max_drop.",
    ),
    "no-threshold": (
        "thresholds:\n  snr: 20\n",
        2,
        "unknown key 'snr' of 'thresholds'. Did you mean 'snr_db'?",
    ),
    "threshold-text": (
        "thresholds:\n  snr_db: '20'\n",
        2,
        "'snr_db': the value is '20'. Write a number.",
    ),
    "two-documents": ("method: max\n---\nmethod: mse\n", 3, "a second document begins"),
}


@pytest.mark.parametrize(("content", "line", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_qdq_yaml_is_named_with_its_line(
    repository: Path, content: str, line: int, expected: str
) -> None:
    path = repository / "qdq.yaml"
    path.write_text(content)

    message = refused(repository, "plan", repository / "model.onnx")

    assert message.startswith(f"qdq: {path}:{line}: "), message
    assert expected in message


TOML_MISTAKES = {
    "table": (
        "[project]\nmethod = 'x'\n\n[tool.qdq]\ndata = 'samples'\nmethod = 'median'\n",
        6,
        "'method': unknown method",
    ),
    "dotted": ("[tool]\nqdq.batch = 0\n", 2, "'batch': the value is 0"),
    "inner-table": (
        "[tool.qdq]\ndata = 'noise'\n[tool.qdq.thresholds]\nsnr = 20\n",
        4,
        "unknown key 'snr' of 'thresholds'",
    ),
    "inline-table": (
        "[tool.qdq]\nthresholds = {cosine = '1'}\n",
        2,
        "'cosine': the value is '1'. Write a number.",
    ),
    "no-table": ("[tool]\nqdq = 3\n", 2, "unknown key 'qdq'"),
}


@pytest.mark.parametrize(("content", "line", "expected"), TOML_MISTAKES.values(), ids=TOML_MISTAKES)
def test_a_mistake_in_pyproject_is_named_with_its_line(
    repository: Path, content: str, line: int, expected: str
) -> None:
    path = repository / "pyproject.toml"
    path.write_text(content)

    message = refused(repository, "plan", repository / "model.onnx")

    assert message.startswith(f"qdq: {path}:{line}: "), message
    assert expected in message


def test_a_pyproject_with_a_table_for_qdq_that_is_no_toml_is_named(repository: Path) -> None:
    (repository / "pyproject.toml").write_text("[tool.qdq]\nmethod = \n")

    assert f"qdq: {repository / 'pyproject.toml'}: the file is not valid TOML: " in refused(
        repository, "plan", repository / "model.onnx"
    )


def test_two_project_files_side_by_side_are_refused(repository: Path) -> None:
    for name, content in FILES.items():
        (repository / name).write_text(content)

    message = f"qdq: {repository / 'qdq.yaml'}: pyproject.toml beside it has a [tool.qdq] too. Keep one of them.\n"
    assert refused(repository, "plan", repository / "model.onnx") == message


def test_the_guard_and_budgets_stand_in_the_project_file(repository: Path) -> None:
    model, out = repository / "model.onnx", repository / "out.onnx"
    quantize = ("quantize", model, "-o", out, "--force", "--format", "json")

    goals = []
    for content in (
        "data: samples\nguard: 2%\n",
        "data: samples\nkeep_float: 30%\n",
        "data: samples\nfloat_first: 1\n",
        "data: samples\nguard: off\n",
    ):
        (repository / "qdq.yaml").write_text(content)
        code, text, err = run(*quantize)
        assert code == 0, err
        goals.append(json.loads(text).get("partial", {}).get("goal"))

    assert goals == ["guard 0.02", "keep-float 0.3", "first 1", None]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("guard: 3\n", "'guard': the value is 3. Write a text."),
        ("guard: all\n", "'guard': the value: 'all' is no share. Pass a percentage such as 5% or"),
        ("keep_float: off\n", "'keep_float': the value is False. Write a text."),
        ("float_first: 0\n", "'float_first': the value is 0. Write a whole number of layers, at"),
    ],
)
def test_shares_that_are_none_are_named(repository: Path, content: str, expected: str) -> None:
    (repository / "qdq.yaml").write_text(content)

    message = refused(repository, "plan", repository / "model.onnx")

    assert f"qdq.yaml:1: {expected}" in message


def test_the_float_options_come_from_the_project_file(repository: Path) -> None:
    (repository / "qdq.yaml").write_text("float: fp16\nio: fp16\nscales: fp32\nkeep_fp32: gemm\n")
    model, out = repository / "model.onnx", repository / "out.onnx"

    code, text, err = run("quantize", model, "-o", out, "--data", repository / "samples")
    assert (code, err) == (0, "project file ../qdq.yaml: float, io, scales\n")
    assert "FP16" in text

    err = run("cast", model, "-o", out, "--force")[2]
    assert err == "project file ../qdq.yaml: io, scales, keep_fp32\n"
    code, text, err = run("explain", model, "gemm")
    assert err == "project file ../qdq.yaml: float\n"
    assert "compute in FP16" in text
    assert "--keep-fp32 gemm" in run("explain", out, "gemm")[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("float: fp8", "'float': float: 'fp8' is no float type"),
        ("scales: fp16", "'scales': scales: 'fp16' is unknown. Pass float or fp32."),
        ("io: int8", "'io': io: 'int8' is unknown. Pass keep or fp16."),
        ("keep_fp32:", "'keep_fp32': the value is None. Write a text"),
    ],
)
def test_wrong_float_options_are_refused(repository: Path, line: str, message: str) -> None:
    (repository / "qdq.yaml").write_text(f"{line}\n")
    _, _, err = run("explain", repository / "model.onnx", "gemm")
    assert message in err
