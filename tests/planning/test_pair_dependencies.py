"""Pairs that depend on other pairs: residual branches, average pools, and layers that rules or users keep in float."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import qdq
from qdq.planning.decisions import INCOMPLETE
from qdq.rules.rule_files import load_rules
from tests.support.graphs import build, node, noise, paired_edges

WEIGHTS = {
    "w": noise(4, 4, 3, 3, seed=1),
    "v": noise(4, 4, 3, 3, seed=2),
    "u": noise(4, 4, 1, 1, seed=3),
    "k": noise(1, 4, 1, 1, seed=4),
    "g": noise(4, 3, seed=5),
}
PADS = {"pads": [1, 1, 1, 1]}
SHAPE = [1, 4, 6, 6]


def model(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """Return a model of nodes over one input and the weights they read."""
    read = {i for n in nodes for i in n.input}
    return build(
        nodes,
        {"x": SHAPE},
        outputs,
        {name: weight for name, weight in WEIGHTS.items() if name in read},
    )


def conv(read: str, gives: str, weight: str = "w") -> onnx.NodeProto:
    """Return a Conv that keeps the shape."""
    return node("Conv", [read, weight], gives, name=gives, **(PADS if weight in "wv" else {}))


def slots(plan: qdq.Plan, name: str) -> set[int]:
    """Return the input slots of a node that get a pair."""
    return {p.edge.slot for p in plan.placements if p.edge.node == name}


def add(left: str, right: str) -> onnx.NodeProto:
    """Return the Add under test."""
    return node("Add", [left, right], "y", name="add")


STEM = (node("Relu", ["x"], "s", name="stem"),)
FUSED = (conv("s", "a"), node("Relu", ["a"], "b"), conv("b", "c", "v"))
BRANCHES: dict[str, tuple[tuple[onnx.NodeProto, ...], set[int]]] = {
    "the skip is the residual": ((*STEM, *FUSED, add("c", "s")), {1}),
    "whichever slot it is in": ((*STEM, *FUSED, add("s", "c")), {0}),
    "the shorter of two convolved branches is the residual": (
        (*STEM, *FUSED, conv("s", "p", "u"), add("c", "p")),
        {1},
    ),
    "the shorter of two convolved branches on the left": (
        (*STEM, *FUSED, conv("s", "p", "u"), add("p", "c")),
        {0},
    ),
    "of two of equal length the first": (
        (*STEM, conv("s", "a"), conv("s", "p", "u"), add("a", "p")),
        {0},
    ),
    "through a folded normalisation": (
        (*STEM, *FUSED, node("Mul", ["c", "k"], "n"), node("Add", ["n", "k"], "m"), add("m", "s")),
        {1},
    ),
    "a convolution behind an activation is not fused": (
        (*STEM, *FUSED, node("Sigmoid", ["c"], "t"), add("t", "s")),
        set(),
    ),
    "a convolution that others read is not fused": (
        (*STEM, *FUSED, node("Relu", ["c"], "z"), add("c", "s")),
        set(),
    ),
    "without a convolution there is no residual": (
        (*STEM, node("Sigmoid", ["x"], "t"), add("t", "s")),
        set(),
    ),
    "a constant is no branch": ((*STEM, conv("s", "c"), add("c", "k")), set()),
    "one tensor twice is no branch": ((*STEM, conv("s", "c"), add("c", "c")), set()),
    "a broadcast is no residual": (
        (*STEM, conv("s", "c"), node("GlobalAveragePool", ["s"], "p", name="pool"), add("c", "p")),
        set(),
    ),
}


@pytest.mark.parametrize("case", sorted(BRANCHES))
def test_a_residual_add_gets_one_pair_and_on_the_right_branch(case: str) -> None:
    nodes, expected = BRANCHES[case]
    outputs = ("y", "z") if any("z" in n.output for n in nodes) else ("y",)
    assert slots(qdq.plan(model(*nodes, outputs=outputs)), "add") == expected


@pytest.mark.parametrize("globs", [("c",), ("[ac]",)])
def test_a_residual_pair_goes_where_its_convolution_stays_in_float(globs: tuple[str, ...]) -> None:
    whole = model(*STEM, *FUSED, add("c", "s"))
    plan = qdq.plan(whole, leave_float=globs)
    assert slots(plan, "add") == set()
    (left_item,) = (
        item for item in plan.left_float if item.edge.node == "add" and item.edge.slot == 1
    )
    assert left_item.because == INCOMPLETE
    assert left_item.reason.startswith(
        "A pair here requires one in INT8 on b -> c[0], which stays in float "
    )
    assert slots(qdq.plan(whole, leave_float=["a"]), "add") == {1}


def pooled(*readers: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """Return a global average pool and its readers."""
    return model(
        conv("x", "c"),
        node("Relu", ["c"], "r"),
        node("GlobalAveragePool", ["r"], "p", name="pool"),
        *readers,
        outputs=outputs,
    )


FLAT = node("Flatten", ["p"], "f", name="flat")
HEAD = node("Gemm", ["f", "g"], "y", name="head")


def test_an_average_pool_gets_a_pair_only_if_all_that_reads_it_is_quantized() -> None:
    assert slots(qdq.plan(pooled(FLAT, HEAD)), "pool") == {0}
    assert slots(qdq.plan(pooled(conv("p", "y", "u"))), "pool") == {0}
    assert (
        slots(qdq.plan(pooled(FLAT, HEAD, node("Relu", ["f"], "z"), outputs=("y", "z"))), "pool")
        == set()
    )
    assert slots(qdq.plan(pooled(FLAT, HEAD, outputs=("y", "f"))), "pool") == set()
    shape = (node("Shape", ["p"], "d"), node("Cast", ["d"], "z", to=onnx.TensorProto.FLOAT))
    assert slots(qdq.plan(pooled(FLAT, HEAD, *shape, outputs=("y", "z"))), "pool") == {0}
    assert slots(qdq.plan(pooled(node("Flatten", ["p"], "y", name="flat"))), "pool") == set()


def test_no_rule_asks_for_a_pair_on_a_pool_that_something_else_reads() -> None:
    plan = qdq.plan(pooled(FLAT, HEAD, node("Relu", ["f"], "z"), outputs=("y", "z")))
    assert not [item for item in plan.left_float if item.edge.node == "pool"]


def test_the_pair_of_a_pool_goes_where_its_reader_stays_in_float() -> None:
    plan = qdq.plan(pooled(FLAT, HEAD), leave_float=["head"])
    assert slots(plan, "pool") == set()
    assert [item.because for item in plan.left_float if item.edge.node == "pool"] == [INCOMPLETE]


def with_rule(folder: Path, text: str) -> qdq.Plan:
    """Return the plan of two convolutions under the default rules and one more."""
    (folder / "mine.yaml").write_text(f"rule: mine\nsays: What the test wants.\n{text}")
    return qdq.plan(two(), rules=load_rules(["tensorrt", str(folder)]))


def two() -> onnx.ModelProto:
    """Return Conv a, Relu, Conv y."""
    return model(conv("x", "a"), node("Relu", ["a"], "r"), conv("r", "y", "v"))


@pytest.mark.parametrize(("tensor", "other"), [("w", "x"), ("x", "w")])
def test_a_layer_whose_one_operand_a_rule_keeps_in_float_gets_no_pair_at_all(
    tmp_path: Path, tensor: str, other: str
) -> None:
    plan = with_rule(
        tmp_path,
        f"where: {{tensor: {tensor}}}\nthen: leave-float\nbeats: [weighted-inputs, weights-per-channel]\n",
    )
    assert slots(plan, "a") == set()
    assert slots(plan, "y") == {0, 1}
    because = {item.edge.tensor: item.because for item in plan.left_float if item.edge.node == "a"}
    assert because == {tensor: "mine", other: INCOMPLETE}


def test_a_rule_of_the_user_may_quantize_more(tmp_path: Path) -> None:
    plan = with_rule(
        tmp_path,
        "where: {into: Relu}\nthen: quantize\nusing: int8-activation\nbeats: [no-weighted-outputs]\n",
    )
    assert {(p.edge.tensor, p.because) for p in plan.placements} >= {("a", ("mine",))}
    after = qdq.apply(two(), plan, qdq.calibrate(two(), plan, "noise"))
    assert paired_edges(two(), after) == {("a", 0), ("a", 1), ("r", 0), ("y", 0), ("y", 1)}
    rules = load_rules(["tensorrt", str(tmp_path)])
    assert qdq.check(after, rules=rules) == ()
    assert [(f.code, f.where) for f in qdq.check(after)] == [("pair-in-fusion", "a -> r_node[0]")]


def test_targets_that_differ_keep_in_float_what_either_lacks() -> None:
    up = build(
        [node("ConvTranspose", ["x", "w"], "y", name="up")],
        {"x": SHAPE},
        ["y"],
        {"w": WEIGHTS["w"]},
    )
    default, rtx = qdq.parse_target("trt:sm80"), qdq.parse_target("rtx:sm86")
    assert slots(qdq.plan(up, targets=[default]), "up") == {0, 1}
    for targets in ([rtx], [default, rtx], [rtx, default]):
        plan = qdq.plan(up, targets=targets)
        assert slots(plan, "up") == set()
        assert {item.because for item in plan.left_float} == {"no-missing-kernels"}


def test_pairs_are_shared_by_the_readers_of_a_tensor() -> None:
    whole = model(
        node("Relu", ["x"], "s"),
        conv("s", "a"),
        conv("s", "b", "v"),
        conv("s", "c", "w"),
        outputs=("a", "b", "c"),
    )
    result = qdq.quantize(whole, "noise")
    assert len(result.plan.placements) == 6
    assert [n.op_type for n in result.model.graph.node].count("QuantizeLinear") == 3
    assert [s.tensor for s in result.scales.by_pair].count("s") == 1
