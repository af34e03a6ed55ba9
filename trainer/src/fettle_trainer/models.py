"""A model and its tokenizer from a local folder, ready to train: checked first, nothing fetched."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from .adapter_kinds import ADAPTER_METHODS, Settings, attach, load, merge, method_of, read_adapter
from .adapters import LoraSettings, keep_in_four_bits
from .checksums import tokenizer_sha256
from .compared import ANEW, Compared
from .device import Compute, seed_everything
from .failure import TrainFailure
from .freeze import train_heads, train_last_layers
from .ia3 import Ia3Settings, ia3_settings
from .kernels import Kernels
from .kernels import enable as enable_kernels
from .kernels.borrowed import lend
from .kernels.plain_head import logits_are_the_heads
from .light_start import prepare_transformers
from .light_torch import with_shapes
from .model_folder import check_adapter_folder, check_model_folder
from .packing import enable as enable_packing
from .prompt import PromptEncoder
from .serve_artefact import read_pooling
from .serve_refusal import ServeRefusal
from .spec import Family, Layers, Task, TrainSpec
from .tasks import objective_of
from .tokenizer import decoder_start
from .virtual_tokens import VirtualSettings

# A comparison of answers would not tell: such adapters begin by changing nothing, or lie outside the layers.
_UNFUSED: dict[type, str] = {
    Ia3Settings: "the fused layers know no IA3, which rescales their inputs",
    VirtualSettings: "the fused layers know no virtual tokens before a row",
}

# Bytes in fp32; they take twice as much.
_MOST_LOGITS = 1 << 30
_DROPOUT_KEYS = (
    "dropout",
    "dropout_rate",
    "attention_dropout",
    "activation_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "hidden_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "classifier_dropout",
    "classifier_dropout_prob",
    "seq_classif_dropout",
    "qa_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "summary_first_dropout",
)

# By the checksum of the files they are made from.
_prepared: dict[str, PromptEncoder] = {}


@dataclass(frozen=True, slots=True)
class Loaded:
    """`head_modules`: the parts new for this task. `packed`: rows may be laid end to end. `kernels`: what
    stands in for the model's own layers, and in `layers` why, or why not. `plain_head`: that the logits of a
    model with its own layers are what its head gives, and nothing else. `adapter` None: the model itself
    is trained. `max_length`: the row bound, lowered to what the model can take. `pooling`: how vectors are
    made of tokens, where the task wants vectors."""

    model: Any
    prompts: PromptEncoder
    family: Family
    head_modules: tuple[str, ...]
    packed: bool
    adapter: Settings | None
    max_length: int
    pad_id: int
    start_id: int
    kernels: Kernels | None = None
    plain_head: bool = False
    layers: str = ""
    pooling: str = "mean"

    def trainable(self) -> dict[str, nn.Parameter]:
        """By name, in model order; tied weights once."""
        named = cast("list[tuple[str, nn.Parameter]]", list(self.model.named_parameters()))
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def in_pieces(self, learnt: int) -> bool:
        """Whether the loss over so many positions is made behind the head, piece by piece. Few logits of a
        model's own layers are made all at once, which is a little faster."""
        if self.kernels is not None:
            return self.kernels.head is not None
        return self.plain_head and 4 * learnt * len(self.model.get_output_embeddings().weight) > _MOST_LOGITS

    def set_training(self) -> None:
        """Dropout on, except in a frozen base: a head then learns from steady features."""
        self.model.train()
        base = self.model.base_model
        inside = [name for name in self.head_modules if name.startswith(f"{self.model.base_model_prefix}.")]
        heads = {
            id(parameter) for name in inside for parameter in self.model.get_submodule(name).parameters()
        }
        if self.adapter is None and not any(
            p.requires_grad and id(p) not in heads for p in base.parameters()
        ):
            base.eval()


def load_for_training(
    spec: TrainSpec, compute: Compute, *, sharded: bool = False, compared: Compared = ANEW
) -> Loaded:
    """Model with its trainable part thawed. `sharded`: its weights are to be split over ranks. `compared`:
    what need not be compared again. Raises TrainFailure."""
    folder = Path(spec.base_model.path)
    check_model_folder(folder)
    # A new head is drawn from this seed, whatever happened in this process before.
    seed_everything(spec.seed)
    frozen_dtype = compute.dtype if spec.method in ADAPTER_METHODS else torch.float32
    model, heads = load_model(
        folder,
        spec.task,
        labels=spec.data.labels,
        dtype=frozen_dtype,
        dropout=spec.hyperparameters.dropout,
    )
    _check_family(model, spec.base_model.family)
    prompts = load_prompts(folder)
    pad_id = _pad_id(model, prompts)
    adapter = _prepare(model, spec, heads)
    if spec.method == "qlora":
        _check_whole(sharded=sharded)
        keep_in_four_bits(model, heads, compute.device)
    model.to(compute.device)
    virtual = adapter.count if isinstance(adapter, VirtualSettings) else 0
    loaded = Loaded(
        model=model,
        prompts=prompts,
        family=spec.base_model.family,
        head_modules=heads,
        packed=False,
        adapter=adapter,
        max_length=_row_bound(model, spec.hyperparameters.max_length, virtual),
        pad_id=pad_id,
        start_id=start_id(model, prompts, pad_id),
        pooling=pooling_of(folder, spec.task),
    )
    asked = spec.runtime.layers or "auto"
    return quickened(loaded, compute.dtype, sharded=sharded, asked=asked, compared=compared)


def quickened(
    loaded: Loaded,
    dtype: torch.dtype,
    *,
    sharded: bool = False,
    asked: Layers = "auto",
    compared: Compared = ANEW,
) -> Loaded:
    """With rows laid end to end and layers rewritten for speed, where these answer as the model's own do.
    `dtype`: of the products. `asked`: which layers."""
    model, adapter = loaded.model, loaded.adapter
    kernels = None
    layers = "its own layers, split over the ranks" if sharded else _UNFUSED.get(type(adapter), "")
    if asked != "auto":
        layers = layers or f"its own layers, as runtime.layers is {asked!r}"
    if not layers:
        kernels, layers = enable_kernels(model, dtype, compared)
    may_pack = loaded.family == "decoder" and not isinstance(adapter, VirtualSettings)
    packed = may_pack and (kernels is not None or enable_packing(model, dtype, compared))
    if kernels is None and not sharded:
        lent = lend(model, dtype, asked=asked, family=loaded.family, packed=packed)
        layers = f"{layers}; {lent}" if lent else layers
    plain_head = kernels is None and not sharded and logits_are_the_heads(model, loaded.family)
    return replace(loaded, packed=packed, kernels=kernels, plain_head=plain_head, layers=layers)


def load_model(
    folder: Path,
    task: Task,
    *,
    labels: tuple[str, ...] | None,
    dtype: torch.dtype,
    dropout: float | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """The bare model and its head modules. Raises TrainFailure when its architecture cannot do the task."""
    library = _transformers()
    config: Any = library.AutoConfig.from_pretrained(folder, local_files_only=True)
    if dropout is not None:
        for key in _DROPOUT_KEYS:
            if getattr(config, key, None) is not None:
                setattr(config, key, dropout)
    objective = objective_of(task)
    objective.configure(config, labels)
    config.use_cache = False
    loader: Any = getattr(library, objective.auto_class)

    def loaded() -> Any:
        return loader.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="sdpa" if _knows_sdpa(loader, config) else "eager",
            ignore_mismatched_sizes=objective.has_head,
            output_loading_info=True,
        )

    try:
        model, info = with_shapes(loaded)
    except ValueError as error:
        raise TrainFailure(
            "incompatible_method",
            f"A model of type {config.model_type!r} cannot do task {task!r}: {str(error).splitlines()[0]}",
            "Choose a model of another family; `fettle models` lists what each can do.",
        ) from error
    config.use_cache = True
    model.config.use_cache = True
    missing = {str(key) for key in info["missing_keys"]} | {
        str(entry[0]) for entry in info["mismatched_keys"]
    }
    if objective.reads == "vectors":
        # Vectors are pooled from the tokens: a pooler is not asked, and need not be there.
        missing = {key for key in missing if "pooler." not in key}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("pooler." not in name)
    heads = _head_modules(model, missing) if objective.has_head else ()
    unknown = [key for key in missing if not key.startswith(heads)] if heads else sorted(missing)
    if unknown:
        raise TrainFailure(
            "incompatible_method",
            f"The weights in {folder} lack {unknown[0]!r} and {len(unknown) - 1} more.",
            "Fetch the model again; the folder is incomplete.",
        )
    return model, heads


def pooling_of(folder: Path, task: Task) -> str:
    """`mean` or `cls`, as the folder says. Raises TrainFailure for another kind."""
    if objective_of(task).reads != "vectors":
        return "mean"
    try:
        return read_pooling(folder).mode
    except ServeRefusal as refusal:
        raise TrainFailure("incompatible_method", refusal.message, "Choose another model.") from refusal


def _transformers() -> Any:
    """Imported late, as it takes seconds; untyped, as most of its signatures are. Quiet on stderr."""
    prepare_transformers()
    import transformers

    library = cast("Any", transformers)
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


def prepare_prompts(folder: Path) -> None:
    """Beforehand, for a process that waits: the next `load_prompts` takes them, or forgets
    them where its files are others."""
    name = tokenizer_sha256(folder)  # first: files that change meanwhile are then not found again
    _prepared[name] = load_prompts(folder)


def load_prompts(folder: Path) -> PromptEncoder:
    prepared = _prepared.get(tokenizer_sha256(folder)) if _prepared else None
    _prepared.clear()
    if prepared is not None:
        return prepared
    tokenizer: Any = _transformers().AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    return PromptEncoder(tokenizer)


def _new_settings(model: Any, spec: TrainSpec, heads: tuple[str, ...]) -> Settings:
    hyperparameters, method = spec.hyperparameters, spec.method
    if method == "ia3":
        return ia3_settings(model, heads)
    if method == "prompt" or method == "prefix":
        return VirtualSettings(method, hyperparameters.num_virtual_tokens)
    targets = hyperparameters.target_modules
    return LoraSettings(
        r=hyperparameters.lora_r,
        alpha=hyperparameters.lora_alpha,
        dropout=hyperparameters.lora_dropout,
        targets=None if targets == "all-linear" else tuple(targets),
        modules_to_save=heads,
        rslora=method == "rslora",
        dora=method == "dora",
    )


def _prepare(model: Any, spec: TrainSpec, heads: tuple[str, ...]) -> Settings | None:
    """Freezes and thaws by method."""
    adapter = spec.base_model.adapter_path
    if spec.method in ADAPTER_METHODS:
        if adapter is not None:
            return _go_on(model, spec, Path(adapter))
        settings = _new_settings(model, spec, heads)
        attach(model, settings, spec.seed)
        return settings
    if adapter is not None:
        _fold_in(model, Path(adapter), spec.seed)
    if spec.method == "head":
        train_heads(model, heads)
    if spec.method == "freeze":
        train_last_layers(model, spec.hyperparameters.trainable_layers, heads)
    return None


def _check_whole(*, sharded: bool) -> None:
    if sharded:
        raise TrainFailure(
            "incompatible_method",
            "A base in 4 bits (method 'qlora') cannot be split over ranks.",
            "Use runtime.parallelism 'ddp', or the method 'lora'.",
        )


def _go_on(model: Any, spec: TrainSpec, folder: Path) -> Settings:
    check_adapter_folder(folder)
    settings, tensors = read_adapter(folder)
    made_by = method_of(settings)
    if made_by != ("lora" if spec.method == "qlora" else spec.method):
        raise TrainFailure(
            "incompatible_method",
            f"The adapter was made with method {made_by!r}: method {spec.method!r} cannot go on from it.",
            f"Use method {made_by!r}, or begin from the base model.",
        )
    if isinstance(settings, LoraSettings):
        # Rank, alpha and layers are the adapter's; dropout is how this run trains them.
        settings = replace(settings, dropout=spec.hyperparameters.lora_dropout)
    attach(model, settings, spec.seed)
    load(model, settings, tensors)
    return settings


def _fold_in(model: Any, folder: Path, seed: int) -> None:
    """The adapter becomes part of the weights, all of them thawed. An adapter of text serves a new head too.
    Raises TrainFailure when it does not fit."""
    check_adapter_folder(folder)
    settings, tensors = read_adapter(folder)
    if isinstance(settings, VirtualSettings):
        raise TrainFailure(
            "incompatible_method",
            "The adapter is virtual tokens, which no weight can take in.",
            f"Use method {method_of(settings)!r}, or begin from the base model.",
        )
    attach(model, settings, seed)
    load(model, settings, tensors)
    merge(model, settings)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _head_modules(model: Any, missing: set[str]) -> tuple[str, ...]:
    """What lies outside the base model, and parts of the base that the weights do not have (a pooler)."""
    base = model.base_model_prefix
    heads = [
        name
        for name, child in cast("list[tuple[str, nn.Module]]", list(model.named_children()))
        if name != base and any(True for _ in child.parameters())
    ]
    inside = sorted({key.rpartition(".")[0] for key in missing if key.startswith(f"{base}.pooler.")})
    return tuple(heads + inside)


def _check_family(model: Any, family: Family) -> None:
    real = "seq2seq" if model.config.is_encoder_decoder else "decoder" if _is_causal(model) else "encoder"
    if real != family:
        raise TrainFailure(
            "incompatible_method",
            f"base_model.family says {family!r}, but {model.config.model_type!r} is of family {real!r}.",
            f"Set base_model.family to {real!r}, or choose another model.",
        )


def _is_causal(model: Any) -> bool:
    """A decoder is what transformers can also load for text generation, and does not mask both ways."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as masked

    kind = model.config.model_type
    return kind in cast("Any", causal) and (kind not in cast("Any", masked) or model.config.is_decoder)


def _knows_sdpa(loader: Any, config: Any) -> bool:
    mapped: Any = loader._model_mapping.get(type(config), None)
    return bool(getattr(mapped, "_supports_sdpa", False))


def _pad_id(model: Any, prompts: PromptEncoder) -> int:
    """For filling up; what is learnt is chosen by length. Decoder classifiers read it from the config."""
    raw = prompts.raw
    chosen = next((i for i in (raw.pad_token_id, raw.eos_token_id, 0) if i is not None), 0)
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = chosen
    return int(raw.pad_token_id if raw.pad_token_id is not None else config.pad_token_id)


def start_id(model: Any, prompts: PromptEncoder, pad_id: int) -> int:
    start = decoder_start(model, prompts.raw) if model.config.is_encoder_decoder else None
    return pad_id if start is None else start


def _row_bound(model: Any, asked: int, virtual: int) -> int:
    """Learned position tables end; RoBERTa's begin after the pad position, and virtual tokens take theirs."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if most is None or config.model_type in ("t5", "mt5", "umt5", "longt5"):
        return asked
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet"):
        most = int(most) - int(config.pad_token_id) - 1
    return min(asked, int(most) - virtual)
