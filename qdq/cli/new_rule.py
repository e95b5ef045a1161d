"""`qdq new-rule`: a rule and its cases as a starting point."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from qdq.cli.messages import print_summary_line
from qdq.cli.options import PATH
from qdq.errors import UsageError
from qdq.files.output import check_output, write_atomic, written_together
from qdq.rules.json_schema import SCHEMA_FILE, SCHEMA_LINE, rule_schema
from qdq.rules.rule_files import SET_FILE, load_rules
from qdq.rules.shipped import DEFAULT_SET
from qdq.testing.case_files import cases_folder

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_RULE = """{schema_line}{schema_file}
rule: {name}
# The rule in one sentence, and its reason: what TensorRT does, or what you measured.
says: Leave in float these layers if they are weighted.
because: They are close to the output, and nothing after them corrects their rounding.
# Add where it is written ('see:') and what was measured ('evidence:').
#
# Which edges: every line must hold, and of a list any word. 'qdq facts' lists the words for
# 'into', 'from' and 'edge'; CamelCase words are ONNX operators; 'named' and 'tensor' take globs
# such as '/head/*'.
where:
  into: weighted
  named: [{stem}_conv, {stem}_relu]
# One of quantize (with 'using: int8-activation' or another format), leave-float, share-scale.
then: leave-float
# The rules that drop out where this one applies too; '*' stands for all.
beats: ['*']
"""
_CASES = """rule: {name}
# Every case is an ONNX graph as text. 'before' must come to exactly the edges under 'plan'; in an
# 'unchanged' graph, a near miss, the rule must decide nothing. 'qdq test' runs them.
classifier:
  says: The named convolution stays in float, the one before it does not.
  before: |
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[1,4,8,8] x) => (float[1,3,8,8] y)
    <float[4,4,1,1] v, float[3,4,1,1] w>
    {{ [body_conv] c = Conv (x, v)
      [{stem}_relu] r = Relu (c)
      [{stem}_conv] y = Conv (r, w) }}
  plan:
    - x -> body_conv[0]  int8-activation  weighted-inputs
    - v -> body_conv[1]  int8-weight-per-channel(axis=0)  weights-per-channel
other-operators:
  says: A named node that multiplies nothing is no business of this rule.
  unchanged: |
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[1,4,8,8] x) => (float[1,4,8,8] y)
    <float[4,4,1,1] v>
    {{ [body_conv] c = Conv (x, v)
      [{stem}_relu] y = Relu (c) }}
"""


@click.command("new-rule")
@click.argument("name")
@click.option(
    "--rules",
    "folder",
    type=PATH,
    default=Path("rules"),
    show_default=True,
    metavar="FOLDER",
    help="Folder of your rules, which is created if it is missing.",
)
def command(name: str, folder: Path) -> None:
    """Write the rule NAME and its cases into a folder, as a starting point that passes 'qdq test'.

    \b
    Example:
      qdq new-rule float-head --rules my-rules
      qdq test my-rules
    """
    cases = cases_folder(folder)
    _refuse_name(name, folder, cases)
    files = _render_files(name, folder, cases)
    _create_folder(cases)
    for path in files:
        check_output(path)
    with written_together():
        for path, content in files.items():
            write_atomic(path, content.encode())
    for path in files:
        print_summary_line(f"wrote {path}")
    print_summary_line("")
    print_summary_line(f"edit both files, then run: qdq test {folder}")


def _render_files(name: str, folder: Path, cases: Path) -> dict[Path, str]:
    """Return the files to write, by path, with the schema unless there is one."""
    has_shared_schema = (folder.parent / SCHEMA_FILE).exists()  # of several sets
    values = {
        "name": name,
        "stem": name.replace("-", "_"),
        "schema_line": SCHEMA_LINE,
        "schema_file": f"../{SCHEMA_FILE}" if has_shared_schema else SCHEMA_FILE,
    }
    file_name = f"{name}.yaml"
    files = {
        folder / file_name: _RULE.format(**values),
        cases / file_name: _CASES.format(**values),
    }
    schema_path = folder / SCHEMA_FILE
    if not has_shared_schema and not schema_path.exists():
        files[schema_path] = json.dumps(rule_schema(), indent=1) + "\n"
    return files


def _refuse_name(name: str, folder: Path, cases: Path) -> None:
    """Raise UsageError for a name that is invalid or in use."""
    if not _NAME.fullmatch(name) or name == Path(SET_FILE).stem:
        raise UsageError(
            f"rule name {name!r}: a name has only small letters, digits and hyphens, and is not "
            "'set'. Pass one such as float-head."
        )
    if load_rules([DEFAULT_SET]).rule(name):
        raise UsageError(
            f"rule name {name!r}: the set {DEFAULT_SET} has a rule of that name, "
            "which the new rule would replace. Pass another name."
        )
    for path in (folder / f"{name}.yaml", folder / f"{name}.yml", cases / f"{name}.yaml"):
        if path.exists():
            raise UsageError(f"{path}: the file exists. Pass another name, or edit the file.")


def _create_folder(folder: Path) -> None:
    """Create a folder and those above it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder}: the folder cannot be created: {error.strerror}. Pass another folder."
        ) from error
