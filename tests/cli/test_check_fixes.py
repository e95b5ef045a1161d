"""`qdq check --diff`, `--fix -o`, `--statistics`, `--exit-zero` and `--codes`."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from qdq.checking.catalogue import PROBLEMS
from tests.support.cli_runner import contents, refused, run
from tests.support.defects import DEFECTS, good
from tests.support.lfs import POINTER

MODELS = {"good": "", "uint8": "uint8", "axis": "wrong weight axis"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with a good model and two of one defect each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    for name, defect in MODELS.items():
        model = good()
        if defect:
            DEFECTS[defect][0](model)
        onnx.save(model, tmp_path / f"{name}.onnx")
    return tmp_path


def save_external(name: str) -> None:
    """Write the model with UINT8, its weights in another file."""
    model = onnx.load("uint8.onnx")
    onnx.save(model, name, save_as_external_data=True, location=f"{name}.data", size_threshold=0)


def test_diff_shows_the_pairs_as_qdq_diff_does_and_writes_nothing(folder: Path) -> None:
    before = contents(folder)
    code, out, err = run("check", "--diff", "uint8.onnx")
    assert contents(folder) == before
    assert (code, err) == (1, "")
    title, *changes = out.splitlines()
    assert title == f"uint8.onnx: {len(changes)} change{'s'[: len(changes) > 1]} by --fix"

    assert run("check", "--fix", "uint8.onnx", "-o", "fixed.onnx")[0] == 0
    shown = run("diff", "uint8.onnx", "fixed.onnx")[1].splitlines()
    assert changes
    assert set(changes) <= set(shown)


def test_diff_of_clean_models_says_so_and_exits_0(folder: Path) -> None:
    assert run("check", "--diff", "good.onnx") == (0, "good.onnx: no change by --fix\n", "")
    code, out, _ = run("check", "--diff", "good.onnx", "uint8.onnx")
    assert code == 1
    assert out.splitlines()[-1] == "--fix would change 1 of 2 models"
    assert run("check", "--diff", "uint8.onnx", "--exit-zero")[0] == 0


def test_diff_in_json_lists_the_changes(folder: Path) -> None:
    code, out, _ = run("check", "--diff", "good.onnx", "uint8.onnx", "--format", "json")
    clean, changed = json.loads(out)["models"]
    assert code == 1
    assert (clean["would_fix"], clean["fixed"], clean["findings"]) == ([], [], [])
    assert changed["would_fix"]
    assert changed["fixed"] == []
    assert [finding["code"] for finding in changed["findings"]] == ["uint8"]


def test_a_fixed_model_is_written_elsewhere_and_the_model_stays(folder: Path) -> None:
    original = Path("uint8.onnx").read_bytes()
    code, out, _ = run("check", "--fix", "uint8.onnx", "-o", "fixed.onnx")
    assert code == 0
    assert "uint8.onnx: wrote fixed.onnx\nuint8.onnx: no findings\n" in out
    assert Path("uint8.onnx").read_bytes() == original
    assert run("check", "fixed.onnx") == (0, "fixed.onnx: no findings\n", "")

    run("check", "--fix", "uint8.onnx")
    assert Path("uint8.onnx").read_bytes() == Path("fixed.onnx").read_bytes()


def test_a_model_that_needs_no_fix_is_copied_byte_by_byte(folder: Path) -> None:
    code, out, _ = run("check", "--fix", "good.onnx", "-o", "copy.onnx", "--format", "json")
    (checked,) = json.loads(out)["models"]
    assert (code, checked["output"], checked["fixed"]) == (0, "copy.onnx", [])
    assert Path("copy.onnx").read_bytes() == Path("good.onnx").read_bytes()


def test_several_models_go_into_a_folder_with_their_external_data(folder: Path) -> None:
    save_external("large.onnx")
    models = ["good.onnx", "large.onnx", "axis.onnx"]
    for jobs in (1, 2):
        out_dir = f"fixed{jobs}"
        run("check", "--fix", *models, "--out-dir", out_dir, "--jobs", jobs)
        assert sorted(path.name for path in Path(out_dir).iterdir()) == [
            "axis.onnx",
            "good.onnx",
            "large.onnx",
            "large.onnx.data",
        ]
    assert run("check", "fixed1/large.onnx")[0] == 0
    assert Path("fixed1/large.onnx").read_bytes() == Path("fixed2/large.onnx").read_bytes()


def test_a_model_that_cannot_be_checked_stops_no_other_and_is_not_written(folder: Path) -> None:
    Path("pointer.onnx").write_bytes(POINTER)
    code, _, err = run("check", "--fix", "pointer.onnx", "uint8.onnx", "--out-dir", "out")
    assert code == 2
    assert "pointer.onnx" in err
    assert [path.name for path in Path("out").iterdir()] == ["uint8.onnx"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("uint8.onnx -o a.onnx", "-o and --out-dir are for fixed models. Pass --fix with them"),
        ("uint8.onnx --diff --fix -o a.onnx", "-o and --out-dir are for fixed models."),
        ("uint8.onnx axis.onnx --fix -o a.onnx", "there are 2 models. Pass --out-dir"),
        ("uint8.onnx --fix -o a.onnx --out-dir d", "-o and --out-dir exclude each other."),
        ("uint8.onnx --fix -o axis.onnx", "axis.onnx: the file exists. Pass --force"),
        ("uint8.onnx --fix -o uint8.onnx --force", "the output is the input"),
        ("uint8.onnx --diff --statistics", "--diff and --statistics exclude each other."),
        ("uint8.onnx --diff --format sarif", "--diff has no sarif format."),
        ("uint8.onnx --statistics --format github", "--statistics has no github format."),
        ("uint8.onnx --diff --write-baseline b.json", "--diff prints changes and"),
        ("uint8.onnx --statistics --write-baseline b.json", "--statistics counts findings and"),
        ("--codes uint9", "--codes: there is no code 'uint9'. Did you mean 'uint8'?"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder: Path, words: str, message: str) -> None:
    assert message in refused(folder, "check", *words.split())


def test_an_existing_file_is_replaced_with_force(folder: Path) -> None:
    assert run("check", "--fix", "uint8.onnx", "-o", "axis.onnx", "--force")[0] == 0
    assert run("check", "axis.onnx")[0] == 0


def test_statistics_count_findings_by_code(folder: Path) -> None:
    code, out, _ = run("check", "uint8.onnx", "--statistics")
    summary, header, _, row = out.splitlines()
    assert (code, summary) == (1, "1 model: 1 error")
    assert header.split() == ["code", "severity", "findings", "models"]
    assert row.split() == ["uint8", "error", "1", "1"]
    assert run("check", "good.onnx", "--statistics") == (0, "1 model: no findings\n", "")

    code, out, _ = run("check", *(f"{m}.onnx" for m in MODELS), "--statistics", "--format", "json")
    assert json.loads(out) == {
        "qdq_json": 2,
        "codes": [
            {"code": "uint8", "severity": "error", "findings": 1, "models": 1},
            {"code": "wrong-axis", "severity": "warning", "findings": 1, "models": 1},
        ],
        "models": 3,
        "failures": 0,
    }


def test_exit_zero_hides_findings_and_no_failures(folder: Path) -> None:
    Path("pointer.onnx").write_bytes(POINTER)
    code, out, _ = run("check", "uint8.onnx", "--exit-zero")
    assert code == 0
    assert "error uint8" in out
    assert run("check", "uint8.onnx", "pointer.onnx", "--exit-zero")[0] == 2


def test_a_code_is_explained(folder: Path) -> None:
    code, out, _ = run("check", "--codes", "wrong-axis,uint8")
    assert code == 0
    uint8, axis = (block.splitlines() for block in out.split("\n\n"))
    assert uint8[0] == f"error uint8: {PROBLEMS['uint8'].title}"
    assert axis[0] == f"warning wrong-axis: {PROBLEMS['wrong-axis'].title}"
    assert f"  costs: {PROBLEMS['uint8'].cost}" in uint8
    assert f"  fix: {PROBLEMS['uint8'].fix}" in uint8
    (listed,) = json.loads(run("check", "--codes", "uint8", "--format", "json")[1])["codes"]
    assert listed["code"] == "uint8"


def test_a_severity_explains_all_of_its_codes(folder: Path) -> None:
    out = run("check", "--codes", "note")[1]
    notes = [code for code, problem in PROBLEMS.items() if problem.severity == "note"]
    assert [block.split(":")[0] for block in out.split("\n\n")] == [f"note {n}" for n in notes]
