"""What is trained on the GPU: shapes of models, lengths of rows."""

from dataclasses import dataclass
from typing import Any

QWEN3_06B = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
QWEN3_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Work:
    """`mean` and `spread` of log-normal lengths between `least` and `most`; a spread of 0 is one length.
    `keeps`: as in the trainer's memory_layers.py."""

    method: str
    shape: dict[str, Any]
    rows_per_step: int
    mean: int
    spread: float
    least: int
    most: int
    peer_batch: int
    steps: int
    pairs: int
    keeps: str = "everything"


WORKS = {
    "full-short": Work("full", QWEN3_06B, 56, 300, 0.6, 64, 2048, 8, 8, 3),
    "full-long": Work("full", QWEN3_06B, 4, 4096, 0.0, 4096, 4096, 2, 8, 1),
    "lora-8b": Work("lora", QWEN3_8B, 8, 1024, 0.0, 1024, 1024, 8, 8, 3),
    "qlora-8b": Work("qlora", QWEN3_8B, 8, 1024, 0.0, 1024, 1024, 8, 8, 1),
    "lora-8b-again": Work("lora", QWEN3_8B, 8, 1024, 0.0, 1024, 1024, 8, 6, 1, keeps="inputs"),
    "lora-8b-offloaded": Work("lora", QWEN3_8B, 8, 1024, 0.0, 1024, 1024, 8, 6, 1, keeps="nothing"),
}
DRY = {
    "full-short": Work("full", TINY, 8, 30, 0.6, 8, 64, 4, 6, 1),
    "lora-8b": Work("lora", TINY, 4, 32, 0.0, 32, 32, 4, 6, 1),
    "qlora-8b": Work("qlora", TINY, 4, 32, 0.0, 32, 32, 4, 6, 1),
    "lora-8b-again": Work("lora", TINY, 4, 32, 0.0, 32, 32, 4, 6, 1, keeps="inputs"),
    "lora-8b-offloaded": Work("lora", TINY, 4, 32, 0.0, 32, 32, 4, 6, 1, keeps="nothing"),
}
WARM = 3
SEED = 7


def lengths_of(work: Work, generator: Any) -> list[int]:
    """Of all rows, step after step."""
    import torch

    count = work.rows_per_step * work.steps
    drawn = torch.randn(count, generator=generator) * work.spread - work.spread**2 / 2
    return (drawn.exp() * work.mean).clamp(work.least, work.most).long().tolist()


def make_rows(work: Work) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(SEED)
    lengths = lengths_of(work, generator)
    # A thousand of the tokens, some far more often than others: there is something to learn in few steps.
    weights = 1.0 / torch.arange(1, 1001).float()
    return [
        (torch.multinomial(weights, length, replacement=True, generator=generator) % 500 + 4).tolist()
        for length in lengths
    ]


def make_model(work: Work, device: str) -> Any:
    """The same weights for every side."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(**work.shape, max_position_embeddings=8192, pad_token_id=0, bos_token_id=1)
    dtype = torch.bfloat16 if work.method != "full" and device == "cuda" else torch.float32
    torch.manual_seed(SEED)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def same_adapters(model: Any) -> None:
    import torch

    for index, (name, parameter) in enumerate(model.named_parameters()):
        if "lora_A" in name:
            generator = torch.Generator().manual_seed(index)
            bound = parameter.shape[1] ** -0.5
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.data.copy_(drawn)
