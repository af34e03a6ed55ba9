"""Layers computed twice, where memory does not suffice for once: a layer keeps what went into it, and the way
back makes the rest again (Chen et al. 2016). The same numbers, to the bit.

What is kept of a token is one vector in fp32 a layer; offloaded, it waits in the machine's own memory.
"""

from contextlib import nullcontext
from typing import Any, cast

from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils import checkpoint

from .packing import same_segments

# Untyped.
_twice = cast("Any", checkpoint).checkpoint


def compute_again(model: Any, *, offload: bool) -> None:
    """From the next step on, in training alone."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    pinned = model.device.type == "cuda"

    def run(function: Any, *inputs: Any) -> Any:
        rows_again = same_segments()
        # Whatever is kept within the layer is the checkpoint's own affair: this sees the inputs alone.
        with save_on_cpu(pin_memory=pinned) if offload else nullcontext():
            return _twice(
                function,
                *inputs,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), rows_again()),
            )

    for module in cast("list[nn.Module]", list(model.modules())):
        if isinstance(module, GradientCheckpointingLayer):
            # transformers' own switch.
            switched = cast("Any", module)
            switched.gradient_checkpointing = True
            switched._gradient_checkpointing_func = run
