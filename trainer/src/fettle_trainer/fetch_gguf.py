"""GGUF -> a folder that can be trained: float32 safetensors, tokenizer, chat template."""

from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from fettle_trainer.fetch_model import FetchError


def dequantise(gguf: Path, folder: Path) -> None:
    """Writes config, ``model.safetensors`` (float32), generation config and tokenizer to ``folder``.

    Raises FetchError when the file has no chat template or no end-of-turn token: a chat model without them
    would train on one prompt format and answer in another.
    """
    options: Any = {"gguf_file": gguf.name}
    tokenizer = cast(Any, AutoTokenizer).from_pretrained(str(gguf.parent), **options)
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise FetchError("model_unavailable", f"{gguf.name} has no chat template or no end-of-turn token.")
    split_digits(tokenizer)
    loader = cast(Any, AutoModelForCausalLM)
    quantised = loader.from_pretrained(str(gguf.parent), dtype=torch.float32, **options)
    config = cast(dict[str, Any], quantised.config.to_dict())
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)
    # The weights are plain float32 by now, yet the loaded model refuses to be saved as "quantised". So: a
    # fresh model of the same config takes the tensors over.
    model = loader.from_config(cast(Any, type(quantised.config)).from_dict(config))
    model.load_state_dict(quantised.state_dict(), strict=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def split_digits(tokenizer: Any) -> None:
    """Splits every digit, as SmolLM's own tokenizer does; the GGUF tells it only as ``pre: smollm``."""
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
