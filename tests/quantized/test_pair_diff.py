"""`qdq diff`: what changed between two models' pairs, whoever wrote them and however their nodes are named."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import qdq
from qdq.quantized.pair_diff import PairChange, PairDiff, diff
from tests.support.cli_runner import refused
from tests.support.cli_runner import run as cli
from tests.support.graphs import (
    CALIBRATION,
    Array,
    build,
    models,
    noise,
    random_feed,
    renamed,
    shuffled,
    value,
)
from tests.support.graphs import node as make_node
from tests.support.pair_models import CONSTANTS, Model, branches, pair, small
from tests.support.paths import NETWORKS


def lines(changes: PairDiff) -> list[tuple[str, str]]:
    return [(change.kind, str(change.edge)) for change in changes.pairs]


def only(old: Model, new: Model) -> PairChange:
    (change,) = diff(old, new).pairs
    return change


# --- kinds of changes ------------------------------------------------------------------------------------------------


def test_a_pair_that_only_one_model_has_was_added_or_removed() -> None:
    change = only(small(), small(x="x_dq"))
    assert (change.kind, str(change.edge), change.old, change.new, change.ratio) == (
        "added",
        "x -> first[0]",
        "",
        "int8, scale 0.5",
        None,
    )
    change = only(small(x="x_dq"), small())
    assert (change.kind, str(change.edge), change.old, change.new, change.ratio) == (
        "removed",
        "x -> first[0]",
        "int8, scale 0.5",
        "",
        None,
    )


def test_another_scale_is_told_with_the_ratio() -> None:
    change = only(small(x="x_dq"), small(x="x_dq", pairs={"x": ("t", "z")}))
    assert (change.kind, change.old, change.new, change.ratio) == (
        "rescaled",
        "int8, scale 0.5",
        "int8, scale 0.125",
        0.25,
    )


@pytest.mark.parametrize(
    ("tolerance", "kinds"), [(0.0, ["rescaled"]), (0.74, ["rescaled"]), (0.75, []), (10.0, [])]
)
def test_scales_within_the_tolerance_are_the_same(tolerance: float, kinds: list[str]) -> None:
    old, new = small(x="x_dq"), small(x="x_dq", pairs={"x": ("t", "z")})
    changes = diff(old, new, tolerance=tolerance)
    assert [change.kind for change in changes.pairs] == kinds
    assert changes.tolerance == tolerance
    assert bool(changes) == bool(kinds)


def test_one_channel_beyond_the_tolerance_is_a_change() -> None:
    old, new = small(weight=("ws", "wz")), small(weight=("wt", "wz"))
    assert diff(old, new, tolerance=2.9).pairs
    assert not diff(old, new, tolerance=3.0).pairs


def test_a_tolerance_hides_no_added_pair() -> None:
    assert diff(small(), small(x="x_dq"), tolerance=100.0).pairs


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_a_tolerance_is_a_number_from_0(tolerance: float) -> None:
    with pytest.raises(qdq.QdqError, match="tolerance"):
        diff(small(), small(), tolerance=tolerance)


def test_the_command_exits_by_the_tolerance_and_states_it(tmp_path: Path) -> None:
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    onnx.save(small(x="x_dq"), old)
    onnx.save(small(x="x_dq", pairs={"x": ("t", "z")}), new)
    assert cli("diff", old, new)[0] == 1
    code, out, _ = cli("diff", old, new, "--tolerance", "0.75")
    assert code == 0
    assert "the same pairs, scales within 75 % counted as the same" in out
    answer = json.loads(cli("diff", old, new, "--tolerance", "0.5", "--format", "json")[1])
    assert (answer["tolerance"], len(answer["pairs"])) == (0.5, 1)
    assert "--tolerance" in refused(tmp_path, "diff", old, new, "--tolerance", "-1")


def test_of_channels_the_ratio_farthest_from_one_is_told() -> None:
    change = only(small(weight=("ws", "wz")), small(weight=("wt", "wz")))
    assert (change.kind, str(change.edge), change.ratio) == ("rescaled", "w -> first[1]", 4.0)
    assert change.new == "int8, 4 scales 0.25 to 2 along axis 0"


@pytest.mark.parametrize(
    ("old", "new", "formats"),
    [
        (
            small(x="x_dq"),
            small(x="x_dq", pairs={"x": ("t", "u")}),
            ("int8, scale 0.5", "uint8, scale 0.125, zero point 3"),
        ),
        (
            small(x="x_dq"),
            small(x="x_dq", pairs={"x": ("s", "")}),
            ("int8, scale 0.5", "uint8, scale 0.5, no zero point"),
        ),
        (
            small(weight=("s", "z")),
            small(weight=("ws", "wz")),
            ("int8, scale 0.5", "int8, 4 scales 0.25 to 1 along axis 0"),
        ),
    ],
    ids=["type", "zero-point", "axis"],
)
def test_another_type_zero_point_or_axis_is_another_format(
    old: Model, new: Model, formats: tuple[str, str]
) -> None:
    change = only(old, new)
    assert (change.kind, change.old, change.new) == ("format", *formats)


def test_a_pair_moves_past_an_operator_that_commutes_with_it() -> None:
    change = only(small(c="c_dq"), small(p="p_dq"))
    assert (change.kind, str(change.moved_from), str(change.edge), change.ratio) == (
        "moved",
        "c -> pool[0]",
        "p -> second[0]",
        1.0,
    )


def test_a_pair_moves_to_another_reader_of_its_tensor() -> None:
    onto_side = small()
    onto_side.graph.node.extend(pair("x"))
    side = next(n for n in onto_side.graph.node if n.name == "side")
    onto_side.graph.node.remove(side)
    onto_side.graph.node.append(helper.make_node("Sigmoid", ["x_dq"], ["side"], name="side"))
    change = only(small(x="x_dq"), onto_side)
    assert (change.kind, str(change.moved_from), str(change.edge)) == (
        "moved",
        "x -> first[0]",
        "x -> side[0]",
    )


def test_a_pair_does_not_move_past_a_convolution() -> None:
    assert lines(diff(small(x="x_dq"), small(c="c_dq"))) == [
        ("added", "c -> pool[0]"),
        ("removed", "x -> first[0]"),
    ]


def test_of_several_that_were_removed_the_one_of_the_same_scale_moved() -> None:
    both = small(c="c_dq", p="p_dq", pairs={"p": ("t", "z")})
    moved = build(
        [
            make_node("Conv", ["x", "w"], "c", name="first"), make_node("MaxPool", ["c"], "p", name="pool", kernel_shape=[2, 2]),
            make_node("Conv", ["p", "v"], "y", name="second"), make_node("Sigmoid", ["x"], "side", name="side"),
            *pair("p", "t"), make_node("Relu", ["p_dq"], "more", name="more"),
        ],
        {"x": [1, 3, 4, 4]}, ["y", "side", "more"], CONSTANTS,
    )  # fmt: skip
    changes = diff(both, moved)
    assert lines(changes) == [("moved", "p -> more[0]"), ("removed", "c -> pool[0]")]
    assert str(changes.pairs[0].moved_from) == "p -> second[0]"


def test_a_computed_scale_is_called_that() -> None:
    computed = small(x="x_dq", pairs={"x": ("side_s", "z")})
    computed.graph.input.append(value("side_s", []))
    assert only(small(x="x_dq"), computed).new == "int8, computed scale"
    assert not diff(computed, computed).pairs


def test_rules_written_on_a_pair_are_told() -> None:
    model = small()
    changes = diff(model, qdq.quantize(model, [random_feed(model)]).model)
    assert {str(c.edge): c.rules for c in changes.pairs}["w -> first[1]"] == "weights-per-channel"


# --- what else differs -----------------------------------------------------------------------------------------------


def test_nodes_weights_and_metadata_are_told_besides() -> None:
    old, new = small(x="x_dq"), small(x="x_dq")
    new.graph.node.append(make_node("Relu", ["y"], "more", name="more"))
    new.graph.output.append(value("more", [1, 2, 3, 3]))
    (weight,) = (t for t in new.graph.initializer if t.name == "v")
    values = numpy_helper.to_array(weight).copy()
    values[1, 2] += 0.75
    weight.CopyFrom(numpy_helper.from_array(values, "v"))
    new.metadata_props.add(key="qdq.method", value="max")
    new.metadata_props.add(key="author", value="me")
    changes = diff(old, new)
    assert not changes
    assert (changes.nodes_added, changes.nodes_removed) == (("more (Relu)",), ())
    assert [(str(w.edge), w.largest_change) for w in changes.weights] == [
        ("v -> second[1]", pytest.approx(0.75))
    ]
    assert changes.metadata == (("qdq.method", "", "max"),)
    back = diff(new, old)
    assert (back.nodes_removed, back.metadata) == (("more (Relu)",), (("qdq.method", "max", ""),))


def test_a_weight_of_another_shape_differs() -> None:
    new = small()
    (weight,) = (t for t in new.graph.initializer if t.name == "v")
    weight.CopyFrom(numpy_helper.from_array(noise(3, 4, 1, 1), "v"))
    assert [w.largest_change for w in diff(small(), new).weights] == [None]


def test_integers_in_place_of_a_weight_differ_by_their_rounding() -> None:
    integers = np.array([[[[1]], [[2]], [[3]]]] * 4, np.int8)
    nodes = [
        make_node("DequantizeLinear", ["wi", "s", "z"], "wf"),
        make_node("Conv", ["x", "wf"], "c", name="first"),
        make_node("MaxPool", ["c"], "p", name="pool", kernel_shape=[2, 2]),
        make_node("Conv", ["p", "v"], "y", name="second"),
        make_node("Sigmoid", ["x"], "side", name="side"),
    ]
    stored = build(nodes, {"x": [1, 3, 4, 4]}, ["y", "side"], {**CONSTANTS, "wi": integers})
    float_model = small()
    (weight,) = (t for t in float_model.graph.initializer if t.name == "w")
    weight.CopyFrom(numpy_helper.from_array(integers.astype(np.float32) * 0.5 + 0.125, "w"))
    changes = diff(float_model, stored)
    assert lines(changes) == [("added", "wf -> first[1]")]
    assert [w.largest_change for w in changes.weights] == [0.125]
    assert (changes.nodes_added, changes.nodes_removed) == ((), ())


# --- matching nodes --------------------------------------------------------------------------------------------------


def numbered(model: Model, start: int) -> Model:
    """Return a copy whose nodes have no names, and whose tensors are numbers from `start` on, in the order of nodes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = {i.name for i in (*model.graph.input, *model.graph.initializer, *model.graph.output)} | {
        ""
    }
    names = {name: name for name in kept}
    for item in copy.graph.node:
        item.name = ""
        names.update({o: str(start + len(names)) for o in item.output if o not in names})
        item.input[:] = [names[i] for i in item.input]
        item.output[:] = [names[o] for o in item.output]
    del copy.graph.value_info[:]
    return copy


def test_an_export_that_numbers_its_tensors_anew_has_the_same_pairs() -> None:
    model = small(x="x_dq", p="p_dq", weight=("ws", "wz"))
    changes = diff(numbered(model, 100), numbered(model, 101))  # "101" is another tensor in each
    assert not changes.pairs
    assert (changes.nodes_added, changes.nodes_removed, changes.weights) == ((), (), ())


def test_pairs_keep_their_nodes_where_one_was_put_in_and_all_numbers_moved() -> None:
    old, new = small(x="x_dq", p="p_dq"), small(x="x_dq", p="p_dq")
    at = next(i for i, n in enumerate(new.graph.node) if n.name == "pool")
    order = list(new.graph.node)
    order[at].input[0] = "r"
    order.insert(at, make_node("Relu", ["c"], "r", name="relu"))
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in order]
    del new.graph.node[:]
    new.graph.node.extend(kept)
    changes = diff(numbered(old, 0), numbered(new, 0))
    assert not changes.pairs
    assert (len(changes.nodes_added), changes.nodes_removed) == (1, ())


def test_weighted_nodes_and_what_follows_them_are_known_where_another_export_spells_the_rest_otherwise() -> (
    None
):
    def network(prefix: str, pool: str, fold: float, quantized: bool) -> Model:
        conv, act, deep = (f"{prefix}{name}" for name in ("conv", "act", "deep"))
        weights = {
            f"{conv}.w": noise(8, 8, 3, 3),
            f"{deep}.w": noise(8, 8, 3, 3, seed=1) * np.float32(fold),
        }
        nodes = [
            make_node(pool, ["x"], f"{prefix}0", name=f"{prefix}start"),
            make_node("Conv", [f"{prefix}0", f"{conv}.w"], conv, name=conv, pads=[1] * 4),
        ]
        nodes += [make_node("Relu", [conv], act, name=act), *(pair(act) if quantized else [])]
        nodes += [
            make_node(
                "Conv",
                [f"{act}_dq" if quantized else act, f"{deep}.w"],
                deep,
                name=deep,
                pads=[1] * 4,
            )
        ]
        return build(
            [*nodes, make_node(pool, [deep], "y", name=f"{prefix}end")],
            {"x": [1, 8, 9, 9]},
            ["y"],
            {**CONSTANTS, **weights},
        )

    changes = diff(
        network("a", "GlobalMaxPool", 1.0, False), network("b", "GlobalAveragePool", 1.5, True)
    )
    assert lines(changes) == [("added", "bact -> bdeep[0]")]
    assert changes.nodes_removed == ("astart (GlobalMaxPool)", "aend (GlobalMaxPool)")
    assert [str(w.edge) for w in changes.weights] == ["bdeep.w -> bdeep[1]"]


def test_projections_that_look_alike_are_told_apart_by_name() -> None:
    def projections(*order: str, quantized: str) -> Model:
        nodes = pair("x") if quantized else []
        nodes += [
            make_node("MatMul", ["x_dq" if name == quantized else "x", f"w{name}"], name, name=name)
            for name in order
        ]
        return build(
            nodes,
            {"x": [1, 4]},
            ["q", "k"],
            {**CONSTANTS, "wq": noise(4, 4), "wk": noise(4, 4, seed=1)},
        )

    assert lines(
        diff(projections("q", "k", quantized=""), projections("k", "q", quantized="k"))
    ) == [("added", "x -> k[0]")]


def test_pairs_in_bodies_are_compared_however_the_node_around_them_is_named() -> None:
    assert lines(diff(branches(False), branches(True))) == [
        ("added", "r -> if.then_branch/product[0]")
    ]
    assert not diff(branches(True, name="if"), branches(True, name="other"))


# --- other tools' models ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime.quantization") is None,
    reason="this ONNX Runtime has no quantizer",
)
def test_a_model_by_onnx_runtime_is_compared_with_ours(tmp_path: Path) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = iter([{"image": np.load(CALIBRATION)["image"][:8]}])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.samples, None)

    network = NETWORKS / "digits_cnn.onnx"
    other_path = tmp_path / "theirs.onnx"
    quantize_static(
        str(network),
        str(other_path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=False,
        activation_type=QuantType.QUInt8,
    )
    result = qdq.quantize(network, CALIBRATION)
    changes = diff(result.model, other_path)
    kinds = {c.edge.node + f"[{c.edge.slot}]": c for c in changes.pairs}
    convolutions = [n.name for n in onnx.load(network).graph.node if n.op_type == "Conv"]
    assert convolutions
    for name in convolutions:
        assert kinds[f"{name}[0]"].kind == "format"
        assert kinds[f"{name}[0]"].new.startswith("uint8, ")
        assert kinds[f"{name}[2]"].kind == "added"
        assert kinds[f"{name}[2]"].new.startswith("int32, ")
    assert not [c for c in changes.pairs if c.kind == "moved"]


# --- properties ------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(models(), st.integers(0, 9))
def test_a_model_differs_from_its_float_one_by_its_plan_and_from_itself_renamed_or_shuffled_by_nothing(
    model: Model, seed: int
) -> None:
    result = qdq.quantize(model, [random_feed(model)], method="max")
    forth, back = diff(model, result.model), diff(result.model, model)
    assert {c.kind for c in forth.pairs} == {"added"}
    assert {c.edge for c in forth.pairs} == {p.edge for p in result.plan.placements}
    assert {c.kind for c in back.pairs} == {"removed"}
    assert {c.edge for c in back.pairs} == {p.edge for p in result.plan.placements}
    assert (forth.nodes_added, forth.nodes_removed, forth.weights) == ((), (), ())
    for same in (result.model, shuffled(result.model, seed), renamed(result.model, seed)[0]):
        changes = diff(result.model, same)
        assert (changes.pairs, changes.nodes_added, changes.nodes_removed, changes.weights) == (
            (),
            (),
            (),
            (),
        )


# --- the command -----------------------------------------------------------------------------------------------------


def written(folder: Path, name: str, model: Model) -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def test_the_command_says_what_changed_and_ends_with_1(tmp_path: Path) -> None:
    old = written(tmp_path, "old.onnx", small(x="x_dq", c="c_dq", weight=("ws", "wz")))
    new = written(tmp_path, "new.onnx", small(x="x_dq", p="p_dq", pairs={"x": ("t", "z")}))
    code, out, error = cli("diff", old, new)
    assert (code, error) == (1, "")
    assert out.splitlines()[1:] == [
        "  old.onnx -> new.onnx: 3 quantized edges, then 2: 1 removed, 1 moved, 1 rescaled",
        "  ~ x -> first[0]  int8, scale 0.5 -> int8, scale 0.125 (0.25 times)",
        "  > c -> pool[0] => p -> second[0]  int8, scale 0.5",
        "  - w -> first[1]  int8, 4 scales 0.25 to 1 along axis 0",
    ]


def test_the_command_ends_with_0_for_the_same_pairs(tmp_path: Path) -> None:
    old = written(tmp_path, "old.onnx", small(x="x_dq"))
    code, out, _ = cli("diff", old, old)
    assert code == 0
    assert "1 quantized edges, then 1: the same pairs" in out


def test_its_json_has_its_keys(tmp_path: Path) -> None:
    old, new = (
        written(tmp_path, "old.onnx", small()),
        written(tmp_path, "new.onnx", small(x="x_dq")),
    )
    code, out, _ = cli("diff", old, new, "--format", "json")
    content = json.loads(out)
    assert code == 1
    assert set(content) == {
        "qdq_json",
        "old",
        "new",
        "old_pairs",
        "new_pairs",
        "pairs",
        "nodes_added",
        "nodes_removed",
        "weights",
        "metadata",
        "tolerance",
    }
    assert set(content["pairs"][0]) == {
        "kind",
        "edge",
        "moved_from",
        "old",
        "new",
        "ratio",
        "rules",
    }


def test_a_model_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    old, text = written(tmp_path, "old.onnx", small()), tmp_path / "text.onnx"
    text.write_text("no model")
    for pairs in ((old, text), (text, old)):
        assert "text.onnx: the file is not an ONNX" in refused(tmp_path, "diff", *pairs)
    assert "absent.onnx: no such file" in refused(tmp_path, "diff", old, tmp_path / "absent.onnx")
