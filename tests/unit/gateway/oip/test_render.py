"""How a decision reads to a client of the Open Inference Protocol."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import orjson
import pytest

from backends.contract import Datatype, Tensor, Tensors
from backends.errors import Conflict, InvalidInput, Unavailable
from gateway.answer import Answer, ItemAnswer, Status, new_answer_id
from gateway.oip.parameters import MAX_TIMEOUT_S, deadline_of, sort
from gateway.oip.render import is_rendered_quickly, is_told_quickly, is_written_quickly, render
from gateway.request import SequencePlace
from gateway.status import AwaitsPerson
from router.contract import OnDefer, Reason


def outputs(value: float) -> Tensors:
    return {"y": Tensor.of(np.array([[value]], np.float32)), "z": Tensor.of(np.array([[1]], np.int64))}


FINAL = ItemAnswer(Status.FINAL, "fast", "cat", outputs(1), 0.9, "model:fast", None)
UNSURE = ItemAnswer(Status.PROVISIONAL, "strong", "dog", outputs(2), 0.4, None, Reason.LOW_CONFIDENCE)
PENDING = ItemAnswer(Status.PENDING, None, None, None, None, None, Reason.STAGE_UNAVAILABLE)


def an_answer(*items: ItemAnswer, on_defer: OnDefer = OnDefer.PROVISIONAL) -> Answer:
    return Answer(new_answer_id(), "default", "pets", 1.0, items, on_defer=on_defer)


def test_one_item_reads_as_its_outputs_and_parameters() -> None:
    answer = an_answer(FINAL)

    rendered = render(answer)

    assert list(rendered.outputs) == ["y", "z"]
    assert rendered.outputs["y"].numpy() is FINAL.outputs["y"].numpy() if FINAL.outputs else False
    assert rendered.parameters == {
        "pointsman_status": "final",
        "pointsman_answer_id": answer.id,
        "pointsman_stage": "fast",
        "pointsman_label": "cat",
        "pointsman_confidence": 0.9,
        "pointsman_decided_by": "model:fast",
    }


def test_what_waits_for_people_tells_how_long_they_take() -> None:
    waiting = replace(an_answer(UNSURE), predicted_wait_s=5400.0)

    assert render(waiting).parameters["pointsman_predicted_wait_s"] == 5400.0
    assert "pointsman_predicted_wait_s" not in render(an_answer(UNSURE)).parameters
    with pytest.raises(AwaitsPerson, match="a person will decide it in about 90 min as answer"):
        render(replace(waiting, on_defer=OnDefer.ERROR))


def test_a_batch_reads_as_its_worst_status_and_least_confidence() -> None:
    rendered = render(an_answer(FINAL, UNSURE))

    assert rendered.outputs["y"].numpy().tolist() == [[1], [2]]
    assert rendered.parameters["pointsman_status"] == "provisional"
    assert rendered.parameters["pointsman_confidence"] == 0.4
    assert rendered.parameters["pointsman_reason"] == "low_confidence"
    assert "pointsman_stage" not in rendered.parameters
    rows = orjson.loads(str(rendered.parameters["pointsman_items"]))
    assert rows[1] == {
        "status": "provisional",
        "stage": "strong",
        "label": "dog",
        "confidence": 0.4,
        "decided_by": None,
        "reason": "low_confidence",
    }


def test_a_row_without_confidence_leaves_the_batch_without() -> None:
    assert "pointsman_confidence" not in render(an_answer(FINAL, replace(FINAL, confidence=None))).parameters


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.EXPIRED])
def test_what_was_given_up_reads_as_a_model_had_answered_it_and_says_so(status: Status) -> None:
    given_up = replace(UNSURE, status=status)

    rendered = render(an_answer(FINAL, given_up))

    assert rendered.outputs["y"].numpy().tolist() == [[1], [2]]
    assert rendered.parameters["pointsman_status"] == status
    for unanswered in (
        an_answer(FINAL, given_up, on_defer=OnDefer.ERROR),
        an_answer(replace(PENDING, status=status)),
        an_answer(replace(given_up, outputs=None), FINAL),
    ):
        with pytest.raises(Conflict, match=f"is {status}: no person decided it; ask anew, with a new key"):
            render(unanswered)


def test_what_is_open_still_outweighs_what_was_given_up() -> None:
    cancelled, expired = (replace(UNSURE, status=status) for status in (Status.CANCELLED, Status.EXPIRED))

    assert an_answer(FINAL, cancelled).status is Status.CANCELLED
    assert an_answer(cancelled, expired, FINAL).status is Status.EXPIRED
    assert an_answer(expired, UNSURE).status is Status.PROVISIONAL
    assert an_answer(expired, cancelled, FINAL).open_items == ()
    assert an_answer(expired, UNSURE).open_items == (1,)


def test_what_no_model_answered_is_an_error_that_names_the_answer() -> None:
    answer = an_answer(FINAL, PENDING)

    with pytest.raises(AwaitsPerson) as refused:
        render(answer)

    assert refused.value.answer_id == answer.id


def test_a_client_that_asked_for_errors_gets_no_provisional_answer() -> None:
    with pytest.raises(AwaitsPerson):
        render(an_answer(FINAL, UNSURE, on_defer=OnDefer.ERROR))
    assert render(an_answer(FINAL, on_defer=OnDefer.ERROR)).outputs


def test_an_uncertain_answer_that_nobody_will_confirm_names_no_answer_to_wait_for() -> None:
    with pytest.raises(Unavailable, match="has no person to ask") as refused:
        render(an_answer(replace(UNSURE, decided_by="model:strong"), on_defer=OnDefer.ERROR))

    assert not isinstance(refused.value, AwaitsPerson)


def test_what_a_person_decided_without_a_model_is_told_by_its_label() -> None:
    rendered = render(an_answer(PENDING).decided(0, "cat", "ann"))

    assert rendered.outputs == {}
    assert rendered.parameters["pointsman_label"] == "cat"
    assert rendered.parameters["pointsman_decided_by"] == "person:ann"


def test_the_outputs_that_were_asked_for_come_in_that_order() -> None:
    assert list(render(an_answer(FINAL), ["z", "y"]).outputs) == ["z", "y"]
    with pytest.raises(InvalidInput, match="output 'w' is unknown; known outputs: y, z"):
        render(an_answer(FINAL), ["w"])


def test_rows_of_several_shapes_do_not_fit_into_one_tensor() -> None:
    wide = replace(FINAL, outputs={"y": Tensor.of(np.zeros((1, 2), np.float32)), "z": outputs(1)["z"]})

    with pytest.raises(InvalidInput, match="one by one"):
        render(an_answer(FINAL, wide))


@pytest.mark.parametrize(
    ("tensor", "in_json", "copied"),
    [
        (Tensor.of(np.zeros((1, 100), np.float32)), True, True),
        (Tensor.of(np.zeros((1, 3, 224, 224), np.float32)), False, True),
        (Tensor.of(np.zeros((1, 2_000_000), np.float32)), False, False),
        (Tensor.ragged(Datatype.FP32, (np.zeros(100_000, np.float32),)), False, False),
        (Tensor(Datatype.BYTES, (1, 20_000), np.full((1, 20_000), b"word", object)), False, False),
    ],
)
def test_numbers_that_are_only_copied_need_no_thread(tensor: Tensor, in_json: bool, copied: bool) -> None:
    answer = an_answer(replace(FINAL, outputs={"y": tensor}))

    assert (is_told_quickly(answer), is_rendered_quickly(answer)) == (in_json, copied)
    assert is_written_quickly(answer, render(answer), copied=False) is in_json


def test_the_classes_of_an_output_are_texts_however_it_is_written() -> None:
    """Its numbers would only be copied; a text for each of them is made."""
    answer = an_answer(replace(FINAL, outputs={"y": Tensor.of(np.arange(100_000, dtype=np.float32)[np.newaxis])}))

    rendered = render(answer, ["y"], {"y": 100_000})

    assert is_written_quickly(answer, render(answer), copied=True)
    assert not is_written_quickly(answer, rendered, copied=True)
    assert is_written_quickly(answer, render(answer, ["y"], {"y": 5}), copied=False)


def test_ragged_rows_of_one_shape_are_joined() -> None:
    ragged = {"y": Tensor.ragged(Datatype.FP32, (np.zeros(3, np.float32),))}

    joined = render(an_answer(replace(FINAL, outputs=ragged), replace(FINAL, outputs=ragged))).outputs["y"]

    assert joined.shape == (2, 3)


def test_parameters_are_sorted_by_whom_they_concern() -> None:
    found = sort(
        {"lang": "de", "pointsman_on_defer": "error", "timeout": 250_000, "binary_data_output": True, "priority": 1}
    )

    assert found.own == {"lang": "de"}
    assert found.priority == 1
    assert found.on_defer is OnDefer.ERROR
    assert found.timeout_s == 0.25
    assert found.binary_output


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pointsman_on_defer": "maybe"}, "it can be 'provisional' or 'error'"),
        ({"pointsman_on_defer": 1}, "it can be 'provisional' or 'error'"),
        ({"pointsman_status": "final"}, "parameter 'pointsman_status' is unknown"),
        ({"timeout": -1}, "a whole number of microseconds"),
        ({"timeout": 1.5}, "a whole number of microseconds"),
        ({"timeout": True}, "a whole number of microseconds"),
        ({"binary_data_output": 1}, "it can be true or false"),
    ],
)
def test_a_reserved_parameter_needs_a_value_that_it_can_have(
    parameters: dict[str, bool | int | float | str], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        sort(parameters)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"sequence_id": 7, "sequence_start": True}, SequencePlace(7, starts=True, ends=False)),
        ({"sequence_id": "call 7", "sequence_end": True}, SequencePlace("call 7", starts=False, ends=True)),
        ({"sequence_id": 2**64 - 1}, SequencePlace(2**64 - 1, starts=False, ends=False)),
        ({"sequence_id": 0, "sequence_start": True, "sequence_end": False}, None),
        ({"sequence_id": ""}, None),
        ({"a": 1}, None),
    ],
)
def test_a_sequence_is_named_by_a_number_or_a_text(
    parameters: dict[str, int | str], expected: SequencePlace | None
) -> None:
    found = sort(parameters)

    assert found.sequence == expected
    assert found.own.keys() <= {"a"}


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"sequence_id": -1}, "sequence_id is -1; it is a whole number"),
        ({"sequence_id": 2**64}, "whole number below"),
        ({"sequence_id": 1.5}, "whole number"),
        ({"sequence_id": True}, "whole number"),
        ({"sequence_id": False}, "whole number"),
        ({"sequence_id": "x" * 129}, "at most 128 characters"),
        ({"sequence_id": 1, "sequence_start": 1}, "sequence_start is 1; it can be true or false"),
        ({"sequence_end": "yes"}, "sequence_end is 'yes'; it can be true or false"),
    ],
)
def test_a_sequence_that_is_named_otherwise_is_refused(parameters: dict[str, int | str], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        sort(parameters)


def test_the_earliest_deadline_counts_and_none_is_none() -> None:
    assert deadline_of(10.0, 2.0, None, 1.0) == 11.0
    assert deadline_of(10.0, 1e12) == 10.0 + MAX_TIMEOUT_S
    assert deadline_of(10.0, None) == float("inf")
