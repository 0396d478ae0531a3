"""What this suite once found different, told of the gateway alone: it is tested where no Triton can be had, too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.conformance.clients import FLAVOURS, Client, client_of, got
from tests.conformance.conftest import Server

_SCORES = np.array([[0.1, 0.7, 0.2, 0.0]], np.float32)

each_flavour = pytest.mark.parametrize("flavour", FLAVOURS)


async def _infer(client: Client, **options: Any) -> Any:
    return await got(client.client.infer("animals", [client.tensor("x", _SCORES, "FP32")], **options))


@each_flavour
@pytest.mark.parametrize("asked", ["", "1"])
async def test_a_reply_says_which_version_answered(gateway: Server, flavour: str, asked: str) -> None:
    async with client_of(flavour, gateway.http, gateway.grpc) as client:
        response = (await _infer(client, model_version=asked)).get_response()

    assert (response["model_version"] if isinstance(response, dict) else response.model_version) == "1"


@each_flavour
async def test_the_classes_of_a_served_model_have_its_labels(gateway: Server, flavour: str) -> None:
    async with client_of(flavour, gateway.http, gateway.grpc) as client:
        result = await _infer(client, outputs=[client.output("probabilities", classes=2)])

    assert result.as_numpy("probabilities").tolist() == [[b"0.700000:1:dog", b"0.200000:2:fox"]]


@each_flavour
@pytest.mark.parametrize(("model", "version"), [("nowhere", ""), ("animals", "7")])
async def test_what_does_not_exist_is_not_ready(gateway: Server, flavour: str, model: str, version: str) -> None:
    async with client_of(flavour, gateway.http, gateway.grpc) as client:
        assert await got(client.client.is_model_ready(model, version)) is False


@each_flavour
async def test_parameters_that_the_protocol_keeps_for_itself_are_refused(gateway: Server, flavour: str) -> None:
    async with client_of(flavour, gateway.http, gateway.grpc) as client:
        tensor = client.tensor("x", _SCORES, "FP32")

        with pytest.raises(InferenceServerException, match="triton_"):
            await got(client.client.infer("animals", [tensor], parameters={"triton_something": True}))
