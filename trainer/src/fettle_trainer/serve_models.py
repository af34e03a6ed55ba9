"""Loading the one base model of a process, from local files only.

What is loaded, by family and by what the folder's config.json says it is:

    decoder                     the causal language model; its trunk carries classification heads of adapters
    decoder, tuned with a head  the sequence classifier itself; it generates nothing
    seq2seq                     the encoder-decoder
    encoder                     the trunk alone; heads come from adapters, or from a tuned folder
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from torch import nn

from .generate import Voice
from .generate_bytes import TokenBytes
from .model_folder import check_model_folder
from .prompt import PromptEncoder
from .serve_artefact import Artefact, Pooling, read_artefact, read_pooling
from .serve_linears import block_linears
from .serve_refusal import ServeRefusal

Family = Literal["decoder", "encoder", "seq2seq"]
_HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering")
# A tokenizer without a limit says 10^30; longer than this is no limit of a model.
_NO_LIMIT = 1 << 24
# T5 has relative positions and no limit of its own; it was trained on this many.
_RELATIVE_LIMIT = 512


@dataclass(frozen=True, slots=True)
class ServedModel:
    """`trunk`: the part heads share. `own_head`: the folder's model with its head, None when it has none.

    `unset`: trunk weights the folder does not hold (a pooler nobody trained): an adapter must bring them.
    """

    folder: Path
    family: Family
    model: Any
    trunk: Any
    own_head: Any
    tokenizer: Any
    artefact: Artefact
    pooling: Pooling
    voice: Voice
    context_length: int
    unset: frozenset[str]

    @property
    def generates(self) -> bool:
        return self.family == "seq2seq" or (self.family == "decoder" and self.own_head is None)


def load_model(folder: Path, family: Family, *, device: torch.device, dtype: torch.dtype) -> ServedModel:
    """ServeRefusal or TrainFailure when the folder holds no model of this family that can be served."""
    check_model_folder(folder)
    config = _auto("AutoConfig").from_pretrained(folder, local_files_only=True)
    tokenizer = _auto("AutoTokenizer").from_pretrained(folder, local_files_only=True)
    architectures = cast(list[str], config.architectures or [])
    head = next((kind for kind in _HEADS for name in architectures if name.endswith(f"For{kind}")), None)
    model, unset = _load(folder, family, head=head, dtype=dtype)
    model.to(device).eval()
    block_linears(model)
    trunk = model if family == "seq2seq" else model.base_model
    if getattr(model, "_is_stateful", False):
        raise ServeRefusal(
            "inference_failed",
            f"{folder} holds a {config.model_type} model: recurrent state cannot be batched yet. "
            "Use an attention model.",
        )
    artefact = read_artefact(folder)
    prefix = model.base_model_prefix + "."
    return ServedModel(
        folder=folder,
        family=family,
        model=trunk if family == "encoder" else model,
        trunk=trunk,
        own_head=None if head is None else model,
        tokenizer=tokenizer,
        artefact=artefact,
        pooling=read_pooling(folder),
        voice=Voice(TokenBytes(tokenizer), artefact.stop_ids or stop_ids_of(model, tokenizer)),
        context_length=context_length_of(trunk, tokenizer),
        unset=frozenset(name.removeprefix(prefix) for name in unset if name.startswith(prefix)),
    )


def _load(folder: Path, family: Family, *, head: str | None, dtype: torch.dtype) -> tuple[Any, set[str]]:
    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "dtype": dtype,
        "output_loading_info": True,
    }
    kind = "Seq2SeqLM" if family == "seq2seq" else "CausalLM"
    if head is not None or family == "encoder":
        kind = head or "SequenceClassification"
    try:
        model, info = _auto(f"AutoModelFor{kind}").from_pretrained(folder, **options)
    except ValueError:
        if family != "encoder" or head is not None:
            raise
        # An encoder without a classifier class still embeds.
        model, info = _auto("AutoModel").from_pretrained(folder, **options)
    missing = {str(name) for name in info["missing_keys"]}
    if missing and (head is not None or family != "encoder"):
        raise ServeRefusal(
            "inference_failed",
            f"{folder} lacks weights: {', '.join(sorted(missing)[:5])}. Fetch the model again.",
        )
    return model, missing


def _auto(name: str) -> Any:
    """A class of transformers, whose own types say little."""
    return getattr(transformers, name)


def stop_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer when no artefact says: those of the model's configs and of the template."""
    generation = getattr(model, "generation_config", None)
    stated = getattr(generation, "eos_token_id", None)
    stated = stated if stated is not None else getattr(model.config, "eos_token_id", None)
    return frozenset(PromptEncoder(tokenizer).stop_ids(stated))


def context_length_of(trunk: Any, tokenizer: Any) -> int:
    """Most tokens one text may have: prompt and answer together, or a seq2seq model's source."""
    config: Any = trunk.config.get_text_config()
    stated = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx")]
    limits = [int(value) for value in stated if isinstance(value, int) and 0 < value < _NO_LIMIT]
    if limits:
        return limits[0] - _reserved_positions(trunk)
    length = int(tokenizer.model_max_length)
    return length if 0 < length < _NO_LIMIT else _RELATIVE_LIMIT


def _reserved_positions(trunk: Any) -> int:
    """RoBERTa's kind counts positions from after the padding index, and so loses some."""
    for name, module in cast(list[tuple[str, nn.Module]], list(trunk.named_modules())):
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ):
            return module.padding_idx + 1
    return 0
