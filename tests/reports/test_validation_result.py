"""The lines about engines that the result of `validate` begins with."""

from __future__ import annotations

import msgspec
import pytest

from qdq.reports.validation_result import describe_engine
from qdq.validation.engine_report import EngineReport, LayerVerdict


def make_layer(precision: str, node: str = "n") -> LayerVerdict:
    """Return the verdict on a layer that runs in a type; "" for one that no layer names."""
    return LayerVerdict(
        node=node,
        op="Conv",
        int8=precision == "INT8",
        promised=precision == "INT8",
        rule="",
        engine="",
        fp8=precision == "FP8",
        int4=precision == "INT4",
        expected_type="INT8",
        precision=precision,
    )


def make_engine(*precisions: str) -> EngineReport:
    """Return the report on an engine with a layer of each type."""
    return EngineReport(
        target="rtx:sm86",
        kind="compiled",
        compiler="",
        failure="",
        float_failure="",
        kernels=3,
        float_kernels=2,
        bytes=1e6,
        float_bytes=2e6,
        layers=tuple(map(make_layer, precisions)),
        standalone_qdq=(),
        broken_promises=(),
    )


@pytest.mark.parametrize(
    ("precisions", "text"),
    [
        (("INT8", "INT8"), "2 of 2 weighted layers in INT8"),
        (("FP16", "INT8", "FP32", "FP32"), "1 of 4 weighted layers in INT8, 1 in FP16, 2 in FP32"),
        (("FP32", "FP8", "INT8"), "1 of 3 weighted layers in FP8, 1 in INT8, 1 in FP32"),
        (("INT4", "float"), "1 of 2 weighted layers in INT4, 1 in float"),
        (("FP32",), "no weighted layer of 1 in INT8, 1 in FP32"),
        (("INT8", ""), "1 of 2 weighted layers in INT8, 1 that no layer of the engine names"),
        ((), "no weighted layer"),
    ],
)
def test_weighted_layers_are_counted_by_type(precisions: tuple[str, ...], text: str) -> None:
    cost = "1 MB moved in 3 kernels, float 2 MB in 2 (50% fewer bytes)"
    assert describe_engine(make_engine(*precisions)) == f"{text}; {cost}"


def test_the_cost_is_that_of_the_engines_that_were_built() -> None:
    engine = make_engine("INT8")
    layers = "1 of 1 weighted layer in INT8"
    larger = msgspec.structs.replace(engine, bytes=3e6, kernels=1)
    cost = "3 MB moved in 1 kernel, float 2 MB in 2 (50% more bytes)"
    assert describe_engine(larger) == f"{layers}; {cost}"
    alone = msgspec.structs.replace(engine, float_failure="refused")
    cost = "1 MB moved in 3 kernels, float does not build"
    assert describe_engine(alone) == f"{layers}; {cost}"
    read = msgspec.structs.replace(engine, kind="read")
    assert describe_engine(read) == f"{layers}; 3 kernels"
    measured = msgspec.structs.replace(engine, milliseconds=0.5, float_milliseconds=1.0)
    assert describe_engine(measured).endswith("; 0.500 ms, float 1.000 ms")
    refused = msgspec.structs.replace(engine, failure="no")
    assert describe_engine(refused) == "does not build"
