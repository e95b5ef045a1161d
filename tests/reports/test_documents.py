"""What is generated from rules and facts is fresh; the schema and the scaffold agree with the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
import yaml

from qdq.checking.catalogue import PROBLEMS, SEVERITIES
from qdq.graph.index import Node
from qdq.reports.reference_pages import facts_page, findings_page, rules_page
from qdq.rules.facts import EDGE_FACTS, NODE_FACTS, Scene
from qdq.rules.json_schema import SCHEMA_LINE, operators, rule_schema
from qdq.rules.rule_files import load_rules
from qdq.rules.shipped import shipped_sets
from tests.support.cli_runner import refused, run
from tests.support.paths import ROOT
from tests.support.rule_mistakes import MISTAKES, rule

RULES = [
    path
    for path in sorted((ROOT / "rules").glob("*/*.yaml"))
    if path.parent.name != "kernels" and path.name != "set.yaml"
]


def refuses(content: str) -> list[str]:
    """Return what the schema finds wrong with the documents of a rule file."""
    validator = jsonschema.Draft7Validator(rule_schema())
    return [
        error.message
        for document in yaml.safe_load_all(content)
        for error in validator.iter_errors(document)
    ]


def without_operators(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without what depends on the version of onnx."""
    return {key: value for key, value in schema.items() if key not in ("$comment", "definitions")}


def test_the_generated_documents_are_fresh() -> None:
    """`make docs` writes them again."""
    assert (ROOT / "docs" / "rules.md").read_text() == rules_page()
    assert (ROOT / "docs" / "facts.md").read_text() == facts_page()
    assert (ROOT / "docs" / "findings.md").read_text() == findings_page()


def test_the_schema_is_fresh() -> None:
    """`make docs` writes it again."""
    committed, generated = json.loads((ROOT / "rules" / "schema.json").read_text()), rule_schema()

    assert without_operators(committed) == without_operators(generated)
    if committed["$comment"] == generated["$comment"]:
        assert committed == generated


def test_the_documents_have_every_rule_and_fact() -> None:
    pages = (ROOT / "docs" / "rules.md").read_text() + (ROOT / "docs" / "facts.md").read_text()

    for name in shipped_sets():
        for shipped_rule in load_rules([name]).rules:
            assert f"\n### {shipped_rule.name}\n" in pages
    for word in (*NODE_FACTS, *EDGE_FACTS):
        assert f"**`{word}`**" in pages


def test_every_code_of_check_has_its_section() -> None:
    page = (ROOT / "docs" / "findings.md").read_text()
    assert [line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")] == [
        problem.page.partition("#")[2]
        for severity in SEVERITIES
        for problem in PROBLEMS.values()
        if problem.severity == severity
    ]


@pytest.mark.parametrize("path", RULES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_rule_names_the_schema_and_keeps_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]

    assert (
        path.parent / first.removeprefix(SCHEMA_LINE)
    ).resolve() == ROOT / "rules" / "schema.json"
    assert refuses(path.read_text()) == []


def test_the_schema_itself_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(rule_schema())


@pytest.mark.parametrize(
    "where",
    [
        "{into: Conv}",
        "{into: [com.microsoft.Gelu, weighted]}",
        "{from: weighted, edge: [first-input]}",
        "{named: '*'}",
        "{target: {backend: rtx, sm_at_most: 75}}",
    ],
)
def test_the_schema_takes_what_the_loader_takes(tmp_path: Path, where: str) -> None:
    content = rule(where=where, more="beats: ['*']\nbecause: x\nsee: y\nevidence: z\n")
    (tmp_path / "mine.yaml").write_text(content)

    assert run("rules", tmp_path / "mine.yaml")[0] == 0
    assert refuses(content) == []


#: Mistakes that a schema cannot see: they lie in the YAML itself, between files, or in words that must agree.
BEYOND_A_SCHEMA = {
    "open-bracket", "tab", "unquoted-sign", "unknown-alias", "python-object", "no-such-date", "no-number", "no-truth", "key-on", "key-yes",
    "key-number", "key-list", "repeated-key", "repeated-inner-key", "other-name", "second-document-repeats-a-name", "beats-unknown", "beats-itself", "empty",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [m[:2] for m in MISTAKES if m[0] not in BEYOND_A_SCHEMA],
    ids=lambda value: value if "\n" not in value else "",
)
def test_the_schema_refuses_what_the_loader_refuses(name: str, content: str) -> None:
    assert refuses(content) != []


def test_the_schema_completes_operators_and_facts_with_their_meaning() -> None:
    text = json.dumps(rule_schema())

    assert {"Conv", "Gemm", "HardSwish"} <= set(operators())
    for word, fact in {**NODE_FACTS, **EDGE_FACTS}.items():
        assert (
            json.dumps({"const": word, "description": " ".join((fact.__doc__ or "").split())})
            in text
        )
    assert onnx.__version__ in text


def test_rules_schema_prints_the_schema() -> None:
    assert json.loads(run("rules", "schema")[1]) == rule_schema()


def test_rules_lists_where_no_command_is_named() -> None:
    assert run("rules") == run("rules", "list") == run("rules", "tensorrt")
    assert json.loads(run("rules", "--format", "json", "tensorrt")[1])["names"] == ["tensorrt"]
    assert "Usage: qdq rules" in run("rules", "--help")[1]


def test_rules_show_prints_one_rule_in_full() -> None:
    code, text, _ = run("rules", "show", "residual-inputs")

    assert code == 0
    for fragment in (
        "where: into Add or Sum; edge residual-branch",
        "then: quantize int8-activation",
        "beaten by: ",
        "no-missing-kernels",
        "evidence: ",
        "bias-add: ",
    ):
        assert fragment in text
    shown = json.loads(run("rules", "show", "residual-inputs", "--format", "json")[1])
    assert shown["rule"]["name"] == "residual-inputs"
    assert "no-missing-kernels" in shown["beaten_by"]
    assert "bias-add" in dict(shown["cases"])


def test_rules_show_names_the_nearest(tmp_path: Path) -> None:
    message = refused(tmp_path, "rules", "show", "residual-input")

    assert message.startswith(
        "qdq: no rule 'residual-input' in tensorrt. Did you mean 'residual-inputs'"
    )


def test_rules_docs_writes_a_users_rules_too(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        rule(where="{named: '*head_*'}", more="beats: ['*']\nbecause: I saw it.\n")
    )
    (tmp_path / "out").mkdir()

    assert run("rules", "docs", tmp_path / "mine.yaml", "-o", tmp_path / "out")[0] == 0

    page = (tmp_path / "out" / "rules.md").read_text()
    assert (
        "### mine\n\nSome words.\n\nBecause: I saw it.\n\n- `where: named *head_*`\n- `then: leave-float`\n- `beats: all others`\n"
        in page
    )
    assert f"qdq: {tmp_path / 'out' / 'rules.md'}: the file exists. Pass --force" in refused(
        tmp_path, "rules", "docs", "-o", tmp_path / "out"
    )


def test_a_new_rule_passes_its_cases_and_its_schema(tmp_path: Path) -> None:
    folder = tmp_path / "mine"

    assert run("new-rule", "float-head", "--rules", folder)[0] == 0
    assert run("new-rule", "other", "--rules", folder)[0] == 0

    code, text, _ = run("test", folder)
    assert (code, text.splitlines()[-1]) == (0, "6 of 6 hold")
    content = (folder / "float-head.yaml").read_text()
    assert refuses(content) == []
    assert (
        json.loads((folder / content.splitlines()[0].removeprefix(SCHEMA_LINE)).read_text())
        == rule_schema()
    )


def test_a_new_rule_of_a_set_among_others_goes_where_theirs_are(tmp_path: Path) -> None:
    folder, cases = tmp_path / "sets" / "mine", tmp_path / "fixtures" / "rules" / "mine"
    for path in (folder, cases):
        path.mkdir(parents=True)
    (folder / "old.yaml").write_text(rule("old"))
    (cases / "old.yaml").write_text("rule: old\n")
    (folder.parent / "schema.json").write_text("{}")

    assert run("new-rule", "new", "--rules", folder)[0] == 0

    assert sorted(path.name for path in folder.iterdir()) == ["new.yaml", "old.yaml"]
    assert (cases / "new.yaml").exists()
    assert (folder / "new.yaml").read_text().startswith(f"{SCHEMA_LINE}../schema.json\n")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Float_Head", "rule name 'Float_Head': a name has only small letters, digits and hyphens"),
        ("../x", "rule name '../x': a name has only small letters"),
        ("set", "rule name 'set': a name has only small letters"),
        (
            "residual-inputs",
            "the set tensorrt has a rule of that name, which the new rule would replace",
        ),
        ("mine", "mine.yaml: the file exists. Pass another name, or edit the file."),
        ("cased", "cases/cased.yaml: the file exists. Pass another name"),
    ],
)
def test_a_new_rule_never_replaces_anything(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "cases").mkdir()
    (tmp_path / "mine.yaml").write_text(rule())
    (tmp_path / "cases" / "cased.yaml").write_text("rule: cased\n")

    assert expected in refused(tmp_path, "new-rule", name, "--rules", tmp_path)


def test_a_new_rule_needs_a_folder_that_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    assert f"qdq: {tmp_path / 'file' / 'cases'}: the folder cannot be created: " in refused(
        tmp_path, "new-rule", "mine", "--rules", tmp_path / "file"
    )


def test_facts_lists_words_formats_and_the_numbers_that_rules_must_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def taller(_: Scene, node: Node, *, than: float) -> bool:
        """Is taller than so much."""
        return node.position > than

    monkeypatch.setitem(NODE_FACTS, "taller", taller)

    listed = {
        fact["word"]: fact for fact in json.loads(run("facts", "--format", "json")[1])["facts"]
    }

    assert listed["taller"] == {
        "word": "taller",
        "context": "from, into",
        "description": "Is taller than so much.",
        "parameters": ["than"],
    }
    assert (listed["first-input"]["context"], listed["int8-activation"]["context"]) == (
        "edge",
        "using",
    )
    assert "- **`taller`**; asks for `than`: Is taller than so much." in facts_page()
    assert (
        rule_schema()["properties"]["given"]["properties"]["than"]["description"]
        == "Used by taller."
    )
