"""Blocked linear layers: the same numbers, and everything else that reads a layer still can."""

from typing import Any

import pytest
import torch
from serve_harness import served, written
from torch import nn
from transformers import AutoModelForCausalLM

from fettle_trainer.serve_linears import BlockedLinear, block_linears


@pytest.mark.parametrize("shape", [(1, 40), (3, 7, 40), (350, 40), (0, 40)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_blocked_layer_gives_the_plain_ones_numbers(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 24, bias=bias))
    inputs = torch.randn(shape)
    expected = model(inputs)
    assert block_linears(model) == 1
    with torch.inference_mode():
        torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(inputs.transpose(0, -1).contiguous().transpose(0, -1)), expected)


def test_a_served_decoder_has_them_and_keeps_its_logits_names_and_shapes() -> None:
    plain: Any = AutoModelForCausalLM.from_pretrained(written("llama"))
    model = served("llama", "decoder").model
    blocked = [name for name, module in model.named_modules() if isinstance(module, BlockedLinear)]
    assert len(blocked) == sum(type(module) is nn.Linear for module in plain.modules())
    shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(
            model(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=1e-4, atol=1e-4
        )


def test_other_types_and_kinds_of_layers_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16), nn.Embedding(4, 4), nn.Bilinear(2, 2, 2))
    assert block_linears(model) == 0
    assert type(model[0]) is nn.Linear
