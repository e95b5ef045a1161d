"""Which edges a rule applies to where the file and the compiler name nodes and tensors differently."""

from __future__ import annotations

import onnx
import pytest

import qdq
from qdq.rules.rule import Rule, Where, make_rule_set
from qdq.testing.case_files import parse_case

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1,4,8,8] x) => (float[1,4,8,8] y)
<float[4,4,1,1] w>
{ [conv] c = Conv (x, w)
  [same] i = Identity (x)
  [join] y = Sum (c, i) }
"""


def floating_edges(model: onnx.ModelProto, where: Where) -> list[str]:
    """Return the edges that a rule which beats all others leaves in float."""
    rule = Rule(name="mine", says="Mine.", where=where, then="leave-float", beats=("*",))
    shipped = qdq.load_rules()
    plan = qdq.plan(model, rules=make_rule_set(("mine",), (*shipped.rules, rule)))
    return [str(item.edge) for item in plan.left_float if item.because == "mine"]


@pytest.mark.parametrize(
    ("where", "edges"),
    [
        (Where(tensor=("i",)), ["i -> join[1]"]),
        (Where(tensor=("x",)), ["x -> conv[0]", "i -> join[1]"]),
        (Where(into=("Sum",)), ["c -> join[0]", "i -> join[1]"]),
        (Where(into=("Add",)), ["c -> join[0]", "i -> join[1]"]),
        (Where(into=("Mul",)), []),
        (Where(into=("Identity",)), []),
        (Where(from_=("Identity",)), []),
        (Where(named=("same", "join")), ["c -> join[0]", "i -> join[1]"]),
    ],
)
def test_a_rule_names_operators_and_tensors_as_the_file_or_the_compiler_does(
    where: Where, edges: list[str]
) -> None:
    assert floating_edges(parse_case(MODEL), where) == edges
