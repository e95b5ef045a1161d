"""The harness of rule cases about float32: cast graphs are compared with what they were."""

from __future__ import annotations

from qdq.rules.rule import RuleSet
from qdq.testing.case_files import Case
from qdq.testing.float_cases import run_cast

#: A convolution between pairs whose bias is 150,000 times the product of its two scales.
PAIRED = """
<ir_version: 9, opset_import: ["": 19]>
g (float[1,1,1,1] x) => (float[1,1,1,1] y)
<float[1,1,1,1] w = {0.05}, float[1] bias = {1.5}, float s = {0.02}, float t = {0.0005},
 float u = {0.05}, int8 z = {0}>
{
  xq = QuantizeLinear (x, s, z)
  xd = DequantizeLinear (xq, s, z)
  wq = QuantizeLinear (w, t, z)
  wd = DequantizeLinear (wq, t, z)
  a = Conv (xd, wd, bias)
  aq = QuantizeLinear (a, u, z)
  ad = DequantizeLinear (aq, u, z)
  y = Relu (ad)
}
"""


def test_a_graph_with_pairs_keeps_its_outputs_in_fp16() -> None:
    # ONNX Runtime's integer kernels would divide the bias by the product in FP16.
    case = Case("rule", "case", "It has pairs.", PAIRED)
    assert run_cast(case, RuleSet(("none",), ())) == []
