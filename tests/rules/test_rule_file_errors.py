"""Mistakes in rule files, rule sets and case files: each named with file, line and the nearest known word."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.cli_runner import refused, run, save, tiny_model
from tests.support.rule_mistakes import MISTAKES, rule

QUANTIZE = "then: quantize\nusing: int8-activation\n"


def folder_of(parent: Path, **files: str | bytes) -> Path:
    """Write rule files by name into a folder `rules` and return it."""
    folder = parent / "rules"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.yaml").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    return folder


def plan(
    parent: Path, *more: object, model: onnx.ModelProto | None = None, **files: str | bytes
) -> str:
    """Return the refusal of `qdq plan` for a tiny model under rule files that are alone."""
    path = save(model or tiny_model(), parent / "model.onnx")
    return refused(parent, "plan", path, "--rules", folder_of(parent, **files), *more)


@pytest.mark.parametrize(
    "command",
    [
        ["plan", "MODEL", "--rules", "NAME"],
        ["quantize", "MODEL", "-o", "OUT", "--data", "noise", "--rules", "NAME"],
        ["explain", "MODEL", "conv", "--rules", "NAME"],
        ["check", "MODEL", "--rules", "NAME"],
        ["rules", "NAME"],
    ],
    ids=lambda command: command[0],
)
def test_an_unknown_rule_set_is_answered_with_the_nearest(
    tmp_path: Path, command: list[str]
) -> None:
    arguments_by_word = {
        "MODEL": save(tiny_model(), tmp_path / "model.onnx"),
        "OUT": tmp_path / "out.onnx",
        "NAME": "tensort",
    }

    message = refused(tmp_path, *(arguments_by_word.get(word, word) for word in command))

    assert message.startswith(
        "qdq: unknown rule set 'tensort': no such folder or file exists, and the shipped sets are "
    )
    assert ". Did you mean 'tensorrt'" in message


def test_a_file_of_another_suffix_is_no_rule_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(rule())

    assert f"unknown rule set '{path}': a rule file ends in .yaml or .yml" in refused(
        tmp_path, "rules", path
    )


@pytest.mark.parametrize("command", ["rules", "test"])
def test_an_empty_folder_holds_no_rules(tmp_path: Path, command: str) -> None:
    folder = folder_of(tmp_path)

    message = refused(tmp_path, command, folder)

    assert message.startswith(f"qdq: {folder}: ")
    assert "holds no rule files (*.yaml)" in message


@pytest.mark.parametrize(
    ("content", "line", "problem"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_a_mistake_in_a_rule_file_is_named_with_its_line(
    tmp_path: Path, content: str | bytes, line: int, problem: str
) -> None:
    message = plan(tmp_path, mine=content)

    assert message.startswith(f"qdq: {tmp_path / 'rules' / 'mine.yaml'}:{line}: ")
    assert problem in message


def test_the_nearest_rule_is_named_where_beats_misspells_it(tmp_path: Path) -> None:
    message = refused(
        tmp_path,
        "rules",
        "tensorrt",
        folder_of(tmp_path, mine=rule(more="beats: [weighted-inptus]\n")),
    )

    assert (
        "mine.yaml:5: 'beats' names an unknown rule 'weighted-inptus'. Did you mean 'weighted-inputs'"
        in message
    )


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00", b"rule: \x07\n", b"[" * 5000],
    ids=["no-UTF-8", "control-character", "nested-too-deeply"],
)
def test_a_rule_file_that_is_no_text_is_named(tmp_path: Path, content: bytes) -> None:
    assert f"qdq: {tmp_path / 'rules' / 'mine.yaml'}: " in plan(tmp_path, mine=content)


def test_a_folder_or_a_dead_link_in_place_of_a_rule_file_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "mine.yaml").mkdir()
    (folder / "yours.yaml").symlink_to("nowhere")

    assert f"qdq: {folder / 'mine.yaml'}: the file cannot be read" in refused(
        tmp_path, "rules", folder
    )
    (folder / "mine.yaml").rmdir()
    assert f"qdq: {folder / 'yours.yaml'}: the file cannot be read" in refused(
        tmp_path, "rules", folder
    )


def test_a_rule_cannot_be_written_in_two_files(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, mine=rule())
    (folder / "mine.yml").write_text(rule())

    assert (
        f"qdq: {folder / 'mine.yml'}: mine.yaml would be rule 'mine' too. Remove one of the files."
        in refused(tmp_path, "rules", folder)
    )


def test_a_rule_cannot_stand_in_two_files_of_a_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, mine=rule("a") + "---\n" + rule("b"), b=rule("b"))

    assert (
        f"qdq: {folder / 'mine.yaml'}:6: rule 'b' is also defined at {folder / 'b.yaml'}:1. Remove one."
        in refused(tmp_path, "rules", folder)
    )


@pytest.mark.parametrize(
    "beats",
    [{"a": "[b]", "b": "[c]", "c": "[a]"}, {"a": "['*']", "b": "[a]"}],
    ids=["by-name", "by-star"],
)
def test_a_circle_in_beats_is_refused_with_every_rule_of_it(
    tmp_path: Path, beats: dict[str, str]
) -> None:
    message = plan(
        tmp_path, **{name: rule(name, more=f"beats: {beaten}\n") for name, beaten in beats.items()}
    )

    assert (
        f"qdq: {tmp_path / 'rules' / 'a.yaml'}:5: rules beat each other in a circle: a beats b"
        in message
    )
    assert message.endswith(" beats a. Remove one of these lines.\n")


def test_two_rules_that_disagree_are_refused_with_the_line_to_add(tmp_path: Path) -> None:
    message = plan(tmp_path, a=rule("a"), b=rule("b", then=QUANTIZE))

    folder = tmp_path / "rules"
    assert message == (
        "qdq: edge x -> conv[0]: rule a decides leave-float, rule b decides quantize int8-activation. "
        f"Add 'beats: [b]' to {folder / 'a.yaml'}, or 'beats: [a]' to {folder / 'b.yaml'}.\n"
    )


def test_two_rules_that_disagree_are_content_with_the_line_that_was_printed(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "model.onnx")
    folder = folder_of(tmp_path, a=rule("a", more="beats: [b]\n"), b=rule("b", then=QUANTIZE))

    code, out, _ = run("plan", model, "--rules", folder)

    assert code == 0
    assert "x -> conv[0]  a" in out


def test_two_rules_that_beat_all_others_must_agree(tmp_path: Path) -> None:
    star = "beats: ['*']\n"
    model = save(tiny_model(), tmp_path / "model.onnx")

    assert (
        run(
            "plan",
            model,
            "--rules",
            folder_of(tmp_path, a=rule("a", more=star), b=rule("b", more=star)),
        )[0]
        == 0
    )
    assert "Add 'beats: [b]' to" in plan(
        tmp_path, a=rule("a", more=star), b=rule("b", then=QUANTIZE, more=star)
    )


def test_two_leave_float_globs_may_name_the_same_node_and_outdo_any_file(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "model.onnx")
    folder = folder_of(
        tmp_path,
        mine=rule(
            "mine", where="{into: Conv, edge: first-input}", then=QUANTIZE, more="beats: ['*']\n"
        ),
    )

    code, out, _ = run(
        "plan",
        model,
        "--rules",
        folder,
        "--leave-float",
        "conv",
        "--leave-float",
        "c*",
        "--leave-float",
        "conv",
    )

    assert code == 0
    assert "x -> conv[0]  --leave-float c*" in out


def test_a_weight_format_on_a_computed_tensor_is_refused_where_it_is_written(
    tmp_path: Path,
) -> None:
    message = plan(
        tmp_path,
        mine=rule(where="{into: Relu}", then="then: quantize\nusing: int8-weight-per-tensor\n"),
    )

    assert (
        f"qdq: {tmp_path / 'rules' / 'mine.yaml'}:5: the rule uses int8-weight-per-tensor on edge c -> relu[0], but 'c' is computed"
        in message
    )


def test_a_rule_that_quantizes_integers_is_refused_where_it_is_written(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, ["n"]))
    model.graph.output.append(helper.make_tensor_value_info("j", TensorProto.INT64, ["n"]))
    model.graph.node.append(helper.make_node("Abs", ["i"], ["j"], name="abs"))

    message = plan(tmp_path, model=model, mine=rule(where="{into: Abs}", then=QUANTIZE))

    assert (
        f"qdq: {tmp_path / 'rules' / 'mine.yaml'}:3: the rule quantizes edge i -> abs[0], but 'i' holds no floats. Narrow the rule's 'where'."
        in message
    )


def test_a_rule_that_quantizes_nothing_is_refused_by_quantize_only(tmp_path: Path) -> None:
    model, folder = save(tiny_model(), tmp_path / "model.onnx"), folder_of(tmp_path, mine=rule())

    message = refused(
        tmp_path,
        "quantize",
        model,
        "-o",
        tmp_path / "out.onnx",
        "--data",
        "noise",
        "--rules",
        folder,
    )

    assert (
        f"qdq: {model}: the rules rules quantize nothing in it for trt:sm80 (mine: Some words). Run 'qdq explain' for the reason."
        in message
    )
    assert run("plan", model, "--rules", folder)[0] == 0


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("{named: cnov}", "no node is named 'cnov'. Did you mean 'conv'?"),
        ("{named: [conv, '/layer1/*']}", "no node is named '/layer1/*'."),
        (
            "{tensor: gemm.wieght}",
            "no tensor is named 'gemm.wieght'. Did you mean 'gemm.weight' or 'gemm.bias'?",
        ),
    ],
)
def test_a_glob_in_a_rule_file_that_matches_nothing_is_refused_unless_allowed(
    tmp_path: Path, where: str, problem: str
) -> None:
    message = plan(tmp_path, mine=rule(where=where))

    assert (
        message
        == f"qdq: model.onnx: {tmp_path / 'rules' / 'mine.yaml'}:3: {problem} Correct it, or pass --allow-unmatched.\n"
    )
    assert (
        run("plan", tmp_path / "model.onnx", "--rules", tmp_path / "rules", "--allow-unmatched")[0]
        == 0
    )


@pytest.mark.parametrize(
    ("glob", "problem"),
    [("gmem", "'gmem'. Did you mean 'gemm'?"), ("/layer1/*", "'/layer1/*'."), ("", "''.")],
)
@pytest.mark.parametrize("command", ["plan", "explain", "quantize"])
def test_a_leave_float_glob_that_matches_nothing_is_refused_unless_allowed(
    tmp_path: Path, command: str, glob: str, problem: str
) -> None:
    model, out = save(tiny_model(), tmp_path / "model.onnx"), tmp_path / "out.onnx"
    argv = {
        "plan": ["plan", model],
        "explain": ["explain", model, "conv"],
        "quantize": ["quantize", model, "-o", out, "--data", "noise"],
    }[command]

    message = refused(tmp_path, *argv, "--leave-float", glob)

    assert (
        message
        == f"qdq: model.onnx: --leave-float: no node is named {problem} Correct it, or pass --allow-unmatched.\n"
    )
    assert run(*argv, "--leave-float", glob, "--allow-unmatched")[0] == 0


def cases(parent: Path, content: str | bytes) -> str:
    """Return the refusal of `qdq test` for a rule with a case file."""
    folder = folder_of(parent, mine=rule())
    (folder / "cases").mkdir()
    (folder / "cases" / "mine.yaml").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    return refused(parent, "test", folder, "--no-engines")


CASE = "rule: mine\na case:\n  says: x\n  before: y\n  plan: []\n"


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("rule: yours\n", 1, "a case file begins with 'rule: mine'"),
        ("- rule: mine\n", 1, "a case file begins with 'rule: mine'"),
        ("rule: [\n", 2, "not valid YAML"),
        ("rule: mine\na case: 3\n", 2, "case 'a case' must be a mapping"),
        (
            "rule: mine\na case: {says: x}\n",
            2,
            "case 'a case' needs 'says', and either 'before' with 'plan' or 'fp32', or 'unchanged'",
        ),
        (
            "rule: mine\na case: {says: x, before: y}\n",
            2,
            "case 'a case' needs 'says', and either 'before' with 'plan' or 'fp32', or 'unchanged'",
        ),
        (f"{CASE}  paln: []\n", 6, "unknown key 'paln'. Did you mean 'plan'?"),
        (
            "rule: mine\na case: {says: x, unchanged: 5}\n",
            2,
            "case 'a case': Expected `str`, got `int`",
        ),
        (
            "rule: mine\na case: {says: x, before: y, plan: 7}\n",
            2,
            "case 'a case': Expected `array | null`, got `int`",
        ),
        (
            "rule: mine\na case: {says: x, before: y, plan: [7]}\n",
            2,
            "case 'a case': Expected `str`, got `int`",
        ),
        (f"{CASE}  targets: [rtx]\n", 2, "case 'a case': unknown target 'rtx'"),
        (f"{CASE}  targets: rtx:sm86\n", 2, "case 'a case': Expected `array`, got `str`"),
        (f"{CASE}  engine: 3\n", 2, "case 'a case': Expected `object | null`, got `int`"),
        (f"{CASE}  engine: {{}}\n", 2, "case 'a case': Object missing required field `target`"),
        (
            f"{CASE}  engine: {{target: rtx:sm86, int8: 5}}\n",
            2,
            "case 'a case': Expected `array`, got `int`",
        ),
    ],
)
def test_a_mistake_in_a_case_file_is_named_with_its_line(
    tmp_path: Path, content: str, line: int, problem: str
) -> None:
    message = cases(tmp_path, content)

    assert message.startswith(f"qdq: {tmp_path / 'rules' / 'cases' / 'mine.yaml'}:{line}: ")
    assert problem in message


def test_a_case_file_of_several_rules_names_the_nearest(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, team=rule("first") + "---\n" + rule("second"))
    (folder / "cases").mkdir()
    (folder / "cases" / "team.yaml").write_text("rule: first\n---\nrule: secnd\n")

    problem = "team.yaml:3: a case file begins with 'rule: first or second'. Did you mean 'second'?"
    assert problem in refused(tmp_path, "test", folder, "--no-engines")


@pytest.mark.parametrize("after", ["junk", "<ir_version: 8>"])
def test_a_graph_in_a_case_that_is_no_onnx_text_fails_the_case(tmp_path: Path, after: str) -> None:
    folder = folder_of(tmp_path, mine=rule())
    (folder / "cases").mkdir()
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }'
    )
    (folder / "cases" / "mine.yaml").write_text(
        f"rule: mine\na: {{says: x, before: junk, plan: []}}\nb: {{says: x, before: '{text}', plan: [], after: '{after}'}}\n"
    )

    code, out, err = run("test", folder, "--no-engines")

    assert (code, err) == (1, "")
    assert out.count("not ONNX text: [ParseError at position") == 2


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_test_refuses_what_is_no_folder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rules"
    if kind == "file":
        path.write_text(rule())

    assert (
        f"qdq: {path}: there is no such folder or rule file. Pass a folder of rule files, or a file that ends in .yaml or .yml."
        in refused(tmp_path, "test", path)
    )


NARROW = "rule: mine\nsays: What the test wants.\nwhere: {into: narrow-convolution}\ngiven: GIVEN\nthen: leave-float\nbeats: ['*']\n"


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        (
            "{channel-below: 3}",
            "4: unknown key 'channel-below'. Did you mean 'channels-below'? The known keys are channels-below, multiple-of.",
        ),
        (
            "{channels-below: 0, multiple-of: 8}",
            "4: 'channels-below' is 0. Write a number above 0.",
        ),
        (
            "{channels-below: true, multiple-of: 8}",
            "4: 'channels-below' is True. Write a number above 0.",
        ),
        (
            "{channels-below: '16', multiple-of: 8}",
            "4: 'channels-below' is '16'. Write a number above 0.",
        ),
        (
            "{channels-below: 16}",
            "3: the facts in 'where' require multiple-of. Add 'given: {multiple-of: NUMBER}'.",
        ),
        ("16", "4: 'given' must name numbers, such as {channels-below: 16}."),
    ],
)
def test_numbers_that_a_rules_facts_cannot_take_are_refused(
    tmp_path: Path, numbers: str, problem: str
) -> None:
    model, folder = save(tiny_model(), tmp_path / "model.onnx"), tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.yaml").write_text(NARROW.replace("GIVEN", numbers))
    assert (
        refused(tmp_path, "plan", model, "--rules", folder)
        == f"qdq: {folder / 'mine.yaml'}:{problem}\n"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "set: mine\nsays: x\ntakes: {tensort: [a]}\n",
            "3: unknown key 'tensort'. Did you mean 'tensorrt'",
        ),
        (
            "set: mine\nsays: x\ntakes: {tensorrt: [weighted-input]}\n",
            "3: set tensorrt has no rule 'weighted-input'. Did you mean 'weighted-inputs'",
        ),
        (
            "set: other\nsays: x\ntakes: {tensorrt: '*'}\n",
            "1: 'set' must be 'mine', the folder's name, and 'takes' must map sets to rules.",
        ),
        ("set: mine\nsays: x\n", "1: the key 'takes' is missing"),
        ("- mine\n", "1: a set file is a mapping that begins with 'set: NAME'"),
    ],
)
def test_a_set_file_with_a_mistake_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    model, folder = save(tiny_model(), tmp_path / "model.onnx"), tmp_path / "mine"
    folder.mkdir()
    (folder / "set.yaml").write_text(text)
    assert refused(tmp_path, "plan", model, "--rules", folder).startswith(
        f"qdq: {folder / 'set.yaml'}:{problem}"
    )
