"""Models in FP16 and FP32 with Casts, for checks of the float part."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from tests.support.graphs import noise

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'

#: ONNX's codes of the two types.
CODES = {"float": 1, "float16": 10}
DTYPES = {"float": np.float32, "float16": np.float16}


def parse(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    """Return the model of a graph in ONNX's text form, with stored tensors."""
    model = onnx.parser.parse_model(HEADER + text)
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def product(float_type: str) -> onnx.ModelProto:
    """Return one Gemm in a float type."""
    text = f"g ({float_type}[8,16] x) => ({float_type}[8,4] y) {{ [fc] y = Gemm (x, w) }}"
    return parse(text, w=noise(16, 4).astype(DTYPES[float_type]))


def between(operator: str, float_type: str = "float16", *, cast: bool = False) -> onnx.ModelProto:
    """Return an operator between two Convs in a float type; `cast` computes it in float32."""
    attributes = "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>" if operator == "MaxPool" else ""
    tensors = ("wide", "result") if cast else ("a", "b")
    casts = ("wide = Cast <to = 1> (a)", "b = Cast <to = 10> (result)") if cast else ("", "")
    text = f"""
    g ({float_type}[1,8,6,6] x) => ({float_type}[1,8,6,6] y) {{
      [first] a = Conv (x, w)
      {casts[0]}
      [middle] {tensors[1]} = {operator} {attributes} ({tensors[0]})
      {casts[1]}
      [last] y = Conv (b, w)
    }}"""
    return parse(text, w=noise(8, 8, 1, 1).astype(DTYPES[float_type]))


def cast_back(float_type: str) -> onnx.ModelProto:
    """Return a tensor of a float type that is cast to the other one and back."""
    codes = dict(CODES)
    back = codes.pop(float_type)
    (there,) = codes.values()
    text = f"""
    g ({float_type}[2,8] x) => ({float_type}[2,8] y) {{
      [there] other = Cast <to = {there}> (x)
      [back] again = Cast <to = {back}> (other)
      [end] y = Relu (again)
    }}"""
    return parse(text)


def paired_product(scale_code: int) -> onnx.ModelProto:
    """Return a MatMul in float16 whose pairs have scales in float32 (1) or float16 (10)."""
    dtype = np.float32 if scale_code == CODES["float"] else np.float16
    lines: list[str] = []
    for name, axis in (("x", ""), ("w", "<axis = 1>")):
        before = f"{name}_in = Cast <to = {scale_code}> ({name})"
        after = f"{name}_out = Cast <to = 10> ({name}_dq)"
        if scale_code == CODES["float16"]:
            before, after = f"{name}_in = Identity ({name})", f"{name}_out = Identity ({name}_dq)"
        lines += [
            before,
            f"{name}_q = QuantizeLinear {axis} ({name}_in, {name}_s, {name}_z)",
            f"[{name}_pair] {name}_dq = DequantizeLinear {axis} ({name}_q, {name}_s, {name}_z)",
            after,
        ]
    body = "\n".join(lines)
    text = f"""
    g (float16[8,16] x) => (float16[8,4] y) {{
      {body}
      [product] y = MatMul (x_out, w_out)
    }}"""
    weight = noise(16, 4)
    return parse(
        text,
        w=weight.astype(np.float16),
        x_s=np.array(0.03, dtype),
        x_z=np.array(0, np.int8),
        w_s=(np.abs(weight).max(0) / 127).astype(dtype),
        w_z=np.zeros(4, np.int8),
    )
