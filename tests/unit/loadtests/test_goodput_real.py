"""Goodput on real servers: what is sent, what is counted, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from batching.simulation.arrivals import mean_rate_per_s
from gateway.settings import load_settings
from loadtests.generator.load import Plan
from loadtests.generator.report import Report
from loadtests.goodput_real.comparison import SIDES, kept_at_highest, summed_up
from loadtests.goodput_real.extremes import recovered
from loadtests.goodput_real.network import doubling
from loadtests.goodput_real.plot import draw
from loadtests.goodput_real.servers import Setting, config
from loadtests.goodput_real.workloads import TRACES, Allowance, stand_in
from loadtests.ratios import paired_ratio

ALLOWANCE = Allowance(gateway_s=0.003, triton_s=0.005)


@pytest.mark.parametrize("trace", TRACES)
def test_a_trace_is_the_same_for_every_side_and_another_in_every_round(trace: str) -> None:
    point = stand_in().point(trace, 3.0, 0.5, 4.0, ALLOWANCE)

    assert point.moments(1) == point.moments(1)
    assert point.moments(1) != point.moments(2)


def test_the_load_is_a_part_of_the_capacity() -> None:
    workload = stand_in()
    point = workload.point("poisson", 3.0, 0.5, 400.0, ALLOWANCE)

    trace = TRACES["poisson"](point.rate_per_s, 50_000, point.within_s, 1)

    assert workload.capacity_per_s == pytest.approx(32 / 0.114)
    assert mean_rate_per_s(trace) == pytest.approx(0.5 * workload.capacity_per_s, rel=0.02)


def test_both_get_the_longer_way_and_the_gateway_is_told_what_its_own_leaves() -> None:
    workload = stand_in()

    point = workload.point("poisson", 3.0, 0.5, 4.0, ALLOWANCE)

    assert point.within_s == pytest.approx(3.0 * workload.alone_s + 0.005)
    assert point.timeout_s == pytest.approx(3.0 * workload.alone_s + 0.002)


def test_the_gateway_takes_the_configuration_and_no_option_of_batching_is_set(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(stand_in().gateway())

    batching = load_settings(file).models["dbl"].batching

    assert (batching.max_batch, batching.max_delay_s, batching.warm_up) == (None, None, (1, 8, 32))


def test_triton_is_configured_as_the_setting_says() -> None:
    written = config(stand_in(), Setting(delay_s=0.013, preferred=8))

    assert 'name: "dbl-13000-8"' in written
    assert "preferred_batch_size: [ 8 ]" in written
    assert "max_queue_delay_microseconds: 13000" in written
    assert "allow_timeout_override: true" in written
    assert 'key: "base_s" value: { string_value: "0.05" }' in written


def encoder(table: NDArray[np.float32]) -> onnx.ModelProto:
    """The simplest one: each id's row of *table*, where the mask is 1, and its type on top."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["token_type_ids"], ["type"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["mask", "mask"], ["kept"]),
        helper.make_node("Add", ["kept", "type"], ["factor"]),
        helper.make_node("Unsqueeze", ["factor", "last"], ["factors"]),
        helper.make_node("Mul", ["rows", "factors"], ["last_hidden_state"]),
    ]
    sides = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", 2])
    constants = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([-1]), "last")]
    graph = helper.make_graph(nodes, "encoder", sides, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def classifier(weights: NDArray[np.float32]) -> onnx.ModelProto:
    """The simplest one of pictures, (2, 4, 4): times *weights*, (32, 3). Its input has the load generator's name."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "weights"], ["scores"]),
    ]
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 4, 4])
    given = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "classifier", [taken], [given], [numpy_helper.from_array(weights, "weights")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


TOKENS = {name: np.ones((1, 32), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
PICTURE = {"x": np.ones((1, 2, 4, 4), np.float32)}


def answered(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": x})
    return y  # type: ignore[no-any-return]


def test_a_network_between_x_and_y_doubles_whatever_x_is() -> None:
    x = (np.random.default_rng(0).integers(-(2**17), 2**17, (5, 16)) / 8).astype(np.float32)

    y = answered(doubling(encoder(np.ones((20_000, 2), np.float32)), TOKENS), x)

    assert y.tolist() == (2 * x).tolist()


def test_a_network_whose_answer_is_broken_shows_in_y() -> None:
    """It is not left out of the way, or its time would not count."""
    x = np.ones((3, 16), np.float32)

    y = answered(doubling(encoder(np.full((20_000, 2), np.nan, np.float32)), TOKENS), x)

    assert np.isnan(y).all()


@pytest.mark.parametrize(("weight", "is_right"), [(0.5, True), (np.nan, False)])
def test_a_network_that_takes_pictures_is_between_x_and_y_as_well(weight: float, is_right: bool) -> None:
    x = np.random.default_rng(0).normal(0, 1e4, (5, 16)).astype(np.float32)

    y = answered(doubling(classifier(np.full((32, 3), weight, np.float32)), PICTURE), x)

    assert np.array_equal(y, 2 * x) == is_right


def report(in_time: float, late: float = 0.0, refused: float = 0.0) -> Report:
    return Report(
        plan=Plan("http://127.0.0.1:1", moments=(0.0,)),
        offered_rate=100.0,
        achieved_rate=100.0,
        sent=100,
        completed=100,
        errors={},
        wrong=0,
        in_time=in_time,
        late=late,
        refused=refused,
        in_time_by_slice=(in_time,),
        refusal_ms=None,
        latency_ms=None,
        lateness_p99_ms=0.1,
        saturated=False,
        note="",
        generator_cpu_s=0.1,
        server_cpu_s=0.1,
        server_cpu_us=1000.0,
        started_s=0.0,
    )


def test_what_rounds_have_in_common_is_not_in_the_interval_of_their_ratio() -> None:
    found = paired_ratio([0.2, 0.4, 0.9], [0.1, 0.2, 0.45])

    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)


def test_late_replies_and_refusals_are_told_apart() -> None:
    runs = {
        "gateway": [report(0.9, refused=0.1), report(0.8, refused=0.2)],
        "triton": [report(0.6, late=0.4), report(0.4, late=0.6)],
        "triton with timeout": [report(0.0, refused=1.0), report(0.4, late=0.1, refused=0.5)],
    }

    found = summed_up(runs)

    assert found["late"] == {"gateway": [0.0, 0.0], "triton": [0.4, 0.6], "triton with timeout": [0.0, 0.1]}
    assert found["refused"] == {"gateway": [0.1, 0.2], "triton": [0.0, 0.0], "triton with timeout": [1.0, 0.5]}
    assert found["gateway_over"]["triton"]["median"] == 1.7
    assert found["gateway_over"]["triton with timeout"] is None  # it has a round without any


def rows(trace: str) -> list[dict[str, object]]:
    shares = ((0.5, 1.0, 1.0), (1.0, 0.9, 0.1), (2.0, 0.4, 0.0))
    return [
        {
            "trace": trace,
            "objective": 3.0,
            "load": load,
            "shares": dict(zip(SIDES, ([gateway], [triton], [gateway]), strict=True)),
        }
        for load, gateway, triton in shares
    ]


def test_what_is_kept_beyond_the_capacity_is_told_against_the_peak_of_each_side() -> None:
    (found,) = kept_at_highest(rows("bursts"))

    assert (found["trace"], found["objective"], found["load"]) == ("bursts", 3.0, 2.0)
    assert found["over_peak"] == {"gateway": 0.889, "triton": 0.0, "triton with timeout": 0.889}


@pytest.mark.parametrize(
    ("shares", "first"),
    [
        ((0.9, 0.9, 0.9, 0.9, 0.9, 0.9), 0),
        ((0.1, 0.3, 0.8, 0.9, 0.8, 0.9), 2),
        ((0.1, 0.9, 0.2, 0.8, 0.9, 0.8), 3),  # one good one may be luck
        ((0.1, 0.1, 0.1, 0.1, 0.9, 0.2), 5),  # it never settles
    ],
)
def test_a_shift_is_over_when_two_slices_in_a_row_are_as_good_as_the_later_ones(
    shares: tuple[float, ...], first: int
) -> None:
    assert recovered(shares)[0] == first


def test_the_plot_is_drawn_where_models_have_different_points(tmp_path: Path) -> None:
    parts = [
        {"kind": "real", "model": "a", "rows": [*rows("bursts"), *rows("poisson")]},
        {"kind": "stand-in", "model": "b", "rows": [{**row, "objective": 2.0} for row in rows("bursts")]},
    ]

    draw(parts, tmp_path / "plot.png")

    assert (tmp_path / "plot.png").stat().st_size > 10_000
