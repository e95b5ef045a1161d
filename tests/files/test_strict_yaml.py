"""YAML that is short to write and endless to read: refused with file and line, at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdq.errors import RuleError
from qdq.files.strict_yaml import read_yaml
from tests.support.cli_runner import refused, run, save, tiny_model

#: Nine lists of nine aliases each: 9**9 times the same word.
BOMB = (
    '[&a ["lol"],'
    + ",".join(
        f"&{'abcdefghij'[i + 1]} [{','.join(['*' + 'abcdefghij'[i]] * 9)}]" for i in range(9)
    )
    + "]"
)

REFUSED = {
    "lists of aliases": (BOMB, "the aliases repeat more than 100000 characters"),
    "a long text": (f"[&a '{'y' * 2000}'{', *a' * 100}]", "the aliases repeat more than"),
    "a mapping": (f"{{x: {BOMB}}}", "the aliases repeat more than"),
    "a list in itself": ("&a [*a]", "the value contains itself"),
    "a mapping in itself": ("&a {x: {y: *a}}", "the value contains itself"),
    "nesting": ("[" * 5000 + "]" * 5000, "nested too deeply"),
    "decimal digits": ("1" * 10_000, "YAML cannot read"),
    "hexadecimal digits": ("-0x" + "f" * 10_000, "the number is too large"),
    "base 60": (":".join(["1"] * 1000), "the number is too large"),
    "half a character": (r'"\ud800"', "half of a character|invalid Unicode character"),
    "too large a file": ("# " + "x" * 4_000_000, "more than 4000000 characters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_no_message_could_print_is_refused(tmp_path: Path, name: str) -> None:
    content, fact = REFUSED[name]
    path = tmp_path / "x.yaml"
    path.write_text(f"key: {content}\n")
    with pytest.raises(RuleError, match=fact) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}:")


def test_small_aliases_are_values_like_others(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &names [x, y]\nb: *names\nc: [*names, *names]\n")
    assert read_yaml(path) == {"a": ["x", "y"], "b": ["x", "y"], "c": [["x", "y"], ["x", "y"]]}


FILES = {
    "rules": (f"rule: x\nsays: {BOMB}\nwhere: {{into: Conv}}\nthen: leave-float\n", "--rules"),
    "preset": (f"fit: stretch\nscale: {BOMB}\n", "--preprocess"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_command_refuses_a_bomb_in_one_short_line(tmp_path: Path, name: str) -> None:
    content, option = FILES[name]
    model = save(tiny_model(), tmp_path / "model.onnx")
    path = tmp_path / "x.yaml"
    path.write_text(content)
    arguments = ["quantize", model, "-o", tmp_path / "out.onnx", option, path]
    if name == "preset":
        arguments += ["--images", tmp_path]
    else:
        arguments += ["--data", "noise"]
    assert len(refused(tmp_path, *arguments)) < 1000


def test_a_bomb_in_a_project_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tiny_model(), tmp_path / "model.onnx")
    (tmp_path / "qdq.yaml").write_text(f"samples: {BOMB}\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = run("plan", "model.onnx")
    assert code == 2
    assert "the aliases repeat more than" in err
