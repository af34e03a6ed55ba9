"""A decoder as one GGUF file, as llama.cpp reads it; and the file read back, tensor by tensor.

config ── _shape ── metadata          weights ── _Layout ── llama.cpp's names and order ── quantised ── file
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..models import Loaded
from ..prompt import PromptEncoder
from ..tensor_files import sync
from .gguf_tokenizer import GgufTokenizer, gguf_tokenizer
from .refusal import not_possible

GgufType = Literal["f16", "q8_0", "q4_0"]
Floats = npt.NDArray[np.float32]

_BLOCK = 32
_LARGEST_F16 = 65504.0
_FILE_TYPES: dict[GgufType, gguf.LlamaFileType] = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
_TYPES: dict[GgufType, gguf.GGMLQuantizationType] = {
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
# Largest error of a weight as a share of the largest weight of its block of 32 (f16: of itself). A block of
# q4_0 goes from -8 to 7 steps of an eighth: its largest weight of the other sign loses a whole step.
_BOUNDS = {
    gguf.GGMLQuantizationType.F32: 0.0,
    gguf.GGMLQuantizationType.F16: 2**-11,
    gguf.GGMLQuantizationType.Q8_0: 0.5 / 127 + 2**-10,
    gguf.GGMLQuantizationType.Q4_0: 1 / 8 + 2**-10,
}


@dataclass(frozen=True, slots=True)
class _Kind:
    """`activation`: the one llama.cpp computes. `permuted`: pairs of a rotation stand side by side there.
    `offset`: what it adds to the weight of a norm that transformers adds when it computes."""

    arch: gguf.MODEL_ARCH
    activation: tuple[str, ...] = ("silu",)
    permuted: bool = False
    offset: float = 0.0


_KINDS = {
    "llama": _Kind(gguf.MODEL_ARCH.LLAMA, permuted=True),
    "mistral": _Kind(gguf.MODEL_ARCH.LLAMA, permuted=True),
    "qwen2": _Kind(gguf.MODEL_ARCH.QWEN2),
    "qwen3": _Kind(gguf.MODEL_ARCH.QWEN3),
    "phi3": _Kind(gguf.MODEL_ARCH.PHI3),
    "gemma3_text": _Kind(gguf.MODEL_ARCH.GEMMA3, activation=("gelu_pytorch_tanh",), offset=1.0),
    "gpt2": _Kind(gguf.MODEL_ARCH.GPT2, activation=("gelu_new", "gelu_pytorch_tanh")),
}


def write_gguf(loaded: Loaded, path: Path, *, name: str, quantize: GgufType, stop_ids: list[int]) -> int:
    """Writes the file; returns how many tensors stay f16 as their rows do not fill blocks.
    Raises TrainFailure (`export_not_possible`), OSError."""
    kind = kind_of(loaded.model)
    tokenizer = gguf_tokenizer(loaded.prompts, _text_config(loaded).vocab_size)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[kind.arch])
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[quantize])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_shape(writer, loaded)
    _write_tokenizer(writer, tokenizer)
    _write_prompts(writer, loaded.prompts, stop_ids)
    whole = 0
    for name_, weight in _tensors(loaded, kind):
        chosen = _type_of(name_, weight, quantize)
        whole += weight.ndim == 2 and quantize != "f16" and chosen == gguf.GGMLQuantizationType.F16
        writer.add_tensor(name_, gguf.quantize(weight, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sync(path)
    return whole


def check_gguf(loaded: Loaded, path: Path) -> float:
    """Reads the file back: the largest error of a weight, as a share of what its type allows.
    Raises ValueError when it holds other tensors or one is beyond its bound."""
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    worst = 0.0
    for name, weight in _tensors(loaded, kind_of(loaded.model)):
        tensor = found.pop(name, None)
        if tensor is None:
            raise ValueError(f"{name} is not in it")
        worst = max(worst, _error(name, weight, tensor))
    if found:
        raise ValueError(f"{next(iter(found))} is in it, and nobody wrote it")
    return worst


@torch.no_grad()
def as_stored(loaded: Loaded, quantize: GgufType) -> None:
    """Gives the model in memory the weights that the file's reader gets."""
    config = _text_config(loaded)
    names = gguf.get_tensor_name_map(kind_of(loaded.model).arch, config.num_hidden_layers)
    for name, tensor in cast("dict[str, Tensor]", loaded.model.state_dict()).items():
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        is_turned = config.model_type == "gpt2" and tensor.ndim == 2 and ".h." in name
        rows = (tensor.T if is_turned else tensor).contiguous().float().numpy()
        chosen = _type_of(written, rows, quantize)
        stored = cast("Any", torch).from_numpy(
            gguf.dequantize(gguf.quantize(rows, chosen), chosen).astype(np.float32)
        )
        tensor.copy_(stored.T if is_turned else stored)


def kind_of(model: Any) -> _Kind:
    """Raises TrainFailure for a model that llama.cpp does not know, or computes in another way."""
    config = model.config
    kind = _KINDS.get(config.model_type)
    if kind is None:
        raise not_possible("gguf", f"{config.model_type!r} is none of {', '.join(_KINDS)}")
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    activation = activation or getattr(config, "activation_function", None)
    if getattr(config, "hidden_activation", None):
        activation = config.hidden_activation
    if activation not in kind.activation:
        raise not_possible(
            "gguf", f"it computes {activation!r} where llama.cpp computes {kind.activation[0]!r}"
        )
    return kind


# ---------------------------------------------------------------- metadata


def _text_config(loaded: Loaded) -> Any:
    return loaded.model.config.get_text_config()


def _write_shape(writer: gguf.GGUFWriter, loaded: Loaded) -> None:
    config = _text_config(loaded)
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_context_length(config.n_positions)
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    window = getattr(config, "sliding_window", None)
    # llama.cpp looks at everything in these models: a text must not be longer than what the model sees.
    sees = window if config.model_type in ("mistral", "phi3") and window else config.max_position_embeddings
    writer.add_context_length(min(sees, config.max_position_embeddings))
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head)
    writer.add_value_length(head)
    rope = cast("dict[str, Any]", config.rope_parameters)
    if config.model_type == "gemma3_text":
        _write_gemma(writer, config, head)
        rope = rope["full_attention"]
    elif config.model_type in ("qwen2", "qwen3") and "sliding_attention" in (config.layer_types or ()):
        raise not_possible(
            "gguf", "some of its layers see a sliding window, which llama.cpp does not do for it"
        )
    writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    _write_rope_scaling(writer, rope)


def _write_rope_scaling(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    match rope["rope_type"]:
        case "default" | "llama3":  # the factors of llama3 are a tensor
            pass
        case "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        case other:
            raise not_possible("gguf", f"its positions are scaled by {other!r}, which is not written")


def _write_gemma(writer: gguf.GGUFWriter, config: Any, head: int) -> None:
    layers = cast("list[str]", config.layer_types)
    expected = [
        "full_attention" if (index + 1) % 6 == 0 else "sliding_attention" for index in range(len(layers))
    ]
    if layers != expected:
        raise not_possible(
            "gguf", "llama.cpp lets every sixth layer of a Gemma 3 see everything, this one has others"
        )
    if config.query_pre_attn_scalar != head:
        raise not_possible("gguf", "its attention is not scaled by the width of its heads")
    if config.final_logit_softcapping or config.attn_logit_softcapping:
        raise not_possible("gguf", "its logits are capped, which llama.cpp does not do for a Gemma 3")
    if config.rope_parameters["sliding_attention"]["rope_theta"] != 10_000:
        raise not_possible("gguf", "its sliding layers turn with another base than llama.cpp's 10000")
    writer.add_sliding_window(config.sliding_window)


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.model == "gpt2":
        writer.add_token_merges(tokenizer.merges)
    else:
        writer.add_token_scores(tokenizer.scores)
        writer.add_add_space_prefix(tokenizer.adds_space)


def _write_prompts(writer: gguf.GGUFWriter, prompts: PromptEncoder, stop_ids: list[int]) -> None:
    """Control tokens and the chat template."""
    raw = cast("Any", prompts.raw)
    adders: list[tuple[Any, Callable[[int], None]]] = [
        (raw.bos_token_id, writer.add_bos_token_id),
        (raw.eos_token_id, writer.add_eos_token_id),
        (raw.unk_token_id, writer.add_unk_token_id),
        (raw.pad_token_id, writer.add_pad_token_id),
        (next((one for one in stop_ids if one != raw.eos_token_id), None), writer.add_eot_token_id),
    ]
    for token, add in adders:
        if token is not None:
            add(int(token))
    writer.add_add_bos_token(prompts.tokens.adds_bos)
    writer.add_add_eos_token(False)
    writer.add_chat_template(cast("str", raw.chat_template))


# ---------------------------------------------------------------- weights


def _tensors(loaded: Loaded, kind: _Kind) -> Iterator[tuple[str, Floats]]:
    """By llama.cpp's names, in its order of rows."""
    config = _text_config(loaded)
    names = gguf.get_tensor_name_map(kind.arch, config.num_hidden_layers)
    rope = cast("dict[str, Any]", getattr(config, "rope_parameters", None) or {})
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(rope, config)
    for name, tensor in cast("dict[str, Tensor]", loaded.model.state_dict()).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise not_possible("gguf", f"llama.cpp has no place for its weights {name!r}")
        weight = tensor.detach().to(torch.float32)
        if config.model_type == "gpt2" and weight.ndim == 2 and ".h." in name:
            weight = weight.T
        if kind.offset and name.endswith("norm.weight"):
            weight = weight + kind.offset
        if kind.permuted and ".q_proj." in name:
            weight = _permuted(weight, config.num_attention_heads)
        if kind.permuted and ".k_proj." in name:
            weight = _permuted(weight, config.num_key_value_heads)
        yield written, cast("Floats", weight.contiguous().cpu().numpy())


def _permuted(weight: Tensor, heads: int) -> Tensor:
    """Halves of each head's rows interleaved: llama.cpp turns neighbours, transformers turns halves."""
    rows = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, rows, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _llama3_factors(rope: dict[str, Any], config: Any) -> Floats:
    """What each frequency is divided by: nothing for high ones, `factor` for low ones, else a blend."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = 1.0 / rope["rope_theta"] ** (np.arange(0, head, 2, dtype=np.float64) / head)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1 - blend) / rope["factor"] + blend)).astype(np.float32)


def _type_of(name: str, weight: Floats, quantize: GgufType) -> gguf.GGMLQuantizationType:
    """Norms, biases and positions stay exact. The embedding, which is the head too, has 8 bits at least."""
    if weight.ndim < 2 or name == "position_embd.weight":
        return gguf.GGMLQuantizationType.F32
    if float(np.abs(weight).max(initial=0.0)) > _LARGEST_F16:
        raise not_possible("gguf", f"{name} holds a weight beyond what f16 holds")
    if weight.shape[-1] % _BLOCK:
        return gguf.GGMLQuantizationType.F16
    if quantize == "q4_0" and name in ("token_embd.weight", "output.weight"):
        return gguf.GGMLQuantizationType.Q8_0
    return _TYPES[quantize]


def _error(name: str, weight: Floats, tensor: Any) -> float:
    stored = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    if stored.shape != weight.shape:
        raise ValueError(f"{name} has the shape {stored.shape}, not {weight.shape}")
    bound = _BOUNDS[tensor.tensor_type]
    error, size = np.abs(stored - weight), np.abs(weight)
    if tensor.tensor_type in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0):
        blocks = size.reshape(*size.shape[:-1], -1, _BLOCK)
        size = np.broadcast_to(blocks.max(axis=-1, keepdims=True), blocks.shape).reshape(size.shape)
    # f16 has no smaller step than this, nor has the scale of a block: 127 times it is 8-bit's.
    allowed = bound * size + (0.0 if bound == 0 else 127 * 2**-25)
    if not bool((error <= allowed).all()):
        raise ValueError(f"{name} differs by {float(error.max()):.3g}")
    return float((error / np.maximum(allowed, 1e-30)).max(initial=0.0))
