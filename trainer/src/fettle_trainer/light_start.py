"""Keeps transformers from loading what training and serving never use: seconds at each start."""

import gc
import os
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, cast

from .spec import TrainSpec
from .transformers_exports import keep_exports

# transformers imports each of these as soon as it finds it installed (baselines and benchmarks need some).
_UNUSED = (
    "accelerate",
    "datasets",
    "librosa",
    "pandas",
    "peft",
    "scipy",
    "sklearn",
    "tensorflow",
    "torchvision",
)
# Of one layer, with rows of as many lengths as any batch has.
MOST_KINDS = 256
_NEEDED = (
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
_COMPILER = "torch._dynamo"
_MARKS = ("allow_in_graph", "assume_constant_result", "disable", "graph_break")
# All that transformers takes from within it: for masks of a kind that none of our models makes.
_PART, _TAKEN = f"{_COMPILER}._trace_wrapped_higher_order_op", "TransformGetItemToIndex"


def bound_product_caches(kinds: int = MOST_KINDS) -> None:
    """Before the first product: oneDNN asks once. It keeps what it prepared for products of `kinds` sizes,
    0.7 MB each, 1,024 unless told; with rows of many lengths that is 10 MB a step. Another cache, in PyTorch,
    keeps the same once more, and no time that could be seen."""
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(kinds))


def product_kinds(spec: TrainSpec) -> int:
    """A little more than the products of one layer, both ways: with fewer each layer would prepare its own
    anew, half a millisecond each. Most are attention's, six for each length; rows of an encoder come sorted,
    and share them."""
    rows = spec.hyperparameters.per_device_train_batch_size
    if spec.task in ("preference", "embedding", "ranking"):
        rows *= 2
    return min(MOST_KINDS, 32 + rows if spec.base_model.family == "encoder" else 32 + 4 * rows)


def hide_unused_packages() -> None:
    """At the start of a process of our own, before transformers is imported. What is loaded stays."""
    known = cast("dict[str, object]", sys.modules)
    keep_exports()
    for name in _UNUSED:
        # None is Python's own way to say: there is no such package.
        known.setdefault(name, None)


def put_off_collection() -> None:
    """Until `collect_from_here`: a fifth of the time that libraries take to load goes into looking for
    garbage among what they have made, and there is a megabyte of it."""
    gc.disable()


def collect_from_here() -> None:
    """What was made since `put_off_collection` stays, and is never looked at again: a quarter of a second
    each time. Does nothing where collection was not put off."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def prepare_transformers() -> None:
    """transformers without what only a compiler, or one of several processes, needs."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not alone or "transformers.modeling_utils" in sys.modules:
        return
    import torch.distributed
    from transformers.utils import import_utils

    distributed = cast("Any", torch.distributed)
    is_available = distributed.is_available
    distributed.is_available = lambda: False
    try:
        # It remembers the answer.
        cast("Any", import_utils).is_torch_distributed_available()
    finally:
        distributed.is_available = is_available
    _stand_in_for_compiler()


def load_libraries() -> None:
    """What every training needs of transformers, whatever its model."""
    prepare_transformers()
    for name in _NEEDED:
        import_module(name)


def _stand_in_for_compiler() -> None:
    """Marks for a compiler do nothing and do not load it; once anything else is asked, the real one takes its
    place."""
    if _COMPILER in sys.modules:
        return
    whole, part = ModuleType(_COMPILER), ModuleType(_PART)

    def asked_of(name: str) -> Callable[[str], Any]:
        def real(attribute: str) -> Any:
            # Names with __ are asked of every module, but the path of the whole leads to its other parts.
            if attribute.startswith("__") and (name, attribute) != (_COMPILER, "__path__"):
                raise AttributeError(attribute)
            for stand_in in (whole, part):
                if sys.modules.get(stand_in.__name__) is stand_in:
                    del sys.modules[stand_in.__name__]
            return getattr(import_module(name), attribute)

        return real

    vars(whole).update(dict.fromkeys(_MARKS, _unmarked), __getattr__=asked_of(_COMPILER))

    def taken(*given: object) -> Any:
        return asked_of(_PART)(_TAKEN)(*given)

    vars(part).update({_TAKEN: taken}, __getattr__=asked_of(_PART))
    sys.modules.update({_COMPILER: whole, _PART: part})


def _unmarked(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Callable[..., Any]:
    """As a decorator, with or without arguments."""
    return _unmarked if function is None else function
