"""Prompt and prefix tuning: a frozen decoder reads trained virtual tokens before each row.

prompt   P embeddings, run through the layers as tokens are            (Lester et al. 2021)
prefix   the keys and values of P positions in every layer, themselves (Li and Liang 2021, without its
network)
Virtual tokens see nothing of the row behind them, so that their keys and values are computed once a
micro-batch and stand in a cache before the first token of each row. `prompt_embeddings` lies as in PEFT:
P x E, or P x (layers, key before value, H, D).

Legend: P virtual tokens, B rows, T tokens, E width, H key heads, D width of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .failure import TrainFailure
from .spec import Task
from .tasks import objective_of

NAME = "prompt_embeddings"
# They begin as tokens of the vocabulary; a tokenizer gives its most common pieces the first ids.
_COMMON = 5000

# Of each layer: keys and values, 1 x H x P x D.
States = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class VirtualSettings:
    method: Literal["prompt", "prefix"]
    count: int


class VirtualTokens(nn.Module):
    """`heads` and `layers` of the model that reads them."""

    def __init__(self, start: Tensor, *, layers: int, heads: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(start)
        self.layers, self.heads = layers, heads


def add_virtual_tokens(model: Any, settings: VirtualSettings, seed: int) -> None:
    """Freezes the model and makes its trunk read the virtual tokens first. They begin as common tokens, for a
    prefix as what the model makes of those. Raises TrainFailure for a model without such a cache."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trunk = model.base_model
    own = cast("Callable[..., Any]", trunk.forward)
    embed = cast("nn.Embedding", model.get_input_embeddings())
    most = min(_COMMON, embed.num_embeddings)
    chosen = torch.randint(most, (settings.count,), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        start_PE = embed(chosen.to(embed.weight.device))
        states = computed_states(own, start_PE)
    if not states:
        raise TrainFailure(
            "incompatible_method",
            f"A {model.config.model_type} model keeps no keys and values that virtual tokens could stand in.",
            "Use method 'lora'.",
        )
    start = start_PE if settings.method == "prompt" else _packed(states)
    # A copy: under no cast it would be the model's own embedding.
    tokens = VirtualTokens(start.float().clone(), layers=len(states), heads=int(states[0][0].shape[1]))
    model.virtual_tokens = tokens

    def forward(input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **named: Any) -> Any:
        if input_ids is None or named.get("position_ids") is not None:
            raise RuntimeError("virtual tokens stand before rows of token ids that lie by themselves")
        dtype = embed.weight.dtype
        if settings.method == "prompt":
            before = computed_states(own, tokens.embeddings.to(dtype))
        else:
            before = stored_states(tokens.embeddings.to(dtype), layers=tokens.layers, heads=tokens.heads)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = torch.cat([mask.new_ones(len(mask), settings.count), mask], dim=1)
        named.update(past_key_values=_cache(before, len(input_ids)), use_cache=True)
        return own(input_ids=input_ids, attention_mask=mask, **named)

    trunk.forward = forward


def computed_states(forward: Callable[..., Any], embeddings_PE: Tensor) -> States:
    """Keys and values of these embeddings, read by a trunk's forward; none without such a cache."""
    from transformers import DynamicCache

    cache = cast("Any", DynamicCache)()
    forward(inputs_embeds=embeddings_PE[None], past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def stored_states(embeddings: Tensor, *, layers: int, heads: int) -> States:
    """From P x (layers, 2, H, D)."""
    parts = embeddings.view(len(embeddings), layers, 2, heads, -1).permute(1, 2, 3, 0, 4)
    return [(part[0][None], part[1][None]) for part in parts]


def _packed(states: States) -> Tensor:
    """P x (layers, 2, H, D)."""
    stacked = torch.stack([torch.stack([key[0], value[0]]) for key, value in states])
    return stacked.permute(3, 0, 1, 2, 4).flatten(1)


def _cache(states: States, rows: int) -> Any:
    from transformers import DynamicCache

    cache = cast("Any", DynamicCache)()
    for layer, (key, value) in enumerate(states):
        cache.update(key.expand(rows, -1, -1, -1), value.expand(rows, -1, -1, -1), layer)
    return cache


def virtual_tensors(model: Any) -> dict[str, Tensor]:
    """What adapter_model.safetensors holds, in PEFT's name."""
    return {NAME: cast("VirtualTokens", model.virtual_tokens).embeddings.detach()}


def virtual_config(model: Any, settings: VirtualSettings, *, task: Task, base_name: str) -> dict[str, Any]:
    """adapter_config.json as PEFT 0.21 reads it."""
    tokens = cast("VirtualTokens", model.virtual_tokens)
    width = tokens.embeddings.shape[1]
    is_prompt = settings.method == "prompt"
    own = {"prompt_tuning_init": "RANDOM"} if is_prompt else {"prefix_projection": False}
    return {
        "peft_type": "PROMPT_TUNING" if is_prompt else "PREFIX_TUNING",
        "task_type": objective_of(task).peft_task,
        "base_model_name_or_path": base_name,
        "num_virtual_tokens": settings.count,
        "token_dim": width if is_prompt else width // (2 * tokens.layers),
        "num_attention_heads": tokens.heads,
        "num_layers": tokens.layers,
        "num_transformer_submodules": 1,
        **own,
        "inference_mode": True,
    }


def read_virtual_settings(config: dict[str, Any]) -> VirtualSettings:
    """From adapter_config.json."""
    method = "prompt" if config["peft_type"] == "PROMPT_TUNING" else "prefix"
    return VirtualSettings(method, int(config["num_virtual_tokens"]))
