"""One run on several processes, as `torchrun` starts them: the windows stay those of one process, and their
micro-batches are dealt out.

    window ── micro-batches ──┬─ rank 0 ── gradients ─┐
                              └─ rank 1 ── gradients ─┴─ sum ── the same step everywhere

`ddp`: each rank holds the whole model, and gradients are summed once a step, so ranks may have different
numbers of micro-batches. `fsdp`: weights, gradients and moments are split over the ranks (FSDP2); a layer is
gathered when it is computed, so a rank without a micro-batch computes another one's with a loss of zero.

Rank 0 alone writes checkpoints and the artefact; each rank has its own event file.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

from .device import Compute, seed_everything
from .failure import TrainFailure
from .spec import Task
from .tasks import objective_of
from .tensor_files import integers

_distributed = cast("Any", distributed)  # its collectives are untyped
_Item = TypeVar("_Item")
Parallelism = Literal["ddp", "fsdp"]
# Between two collectives lies one micro-batch, an evaluation or a checkpoint of one rank; a peer silent
# for longer is gone.
_PATIENCE = timedelta(minutes=30)
# Before they meet, one rank may read its rows from a cache while another tokenises for hours; torchrun ends
# them all when one fails.
_ARRIVAL = timedelta(days=2)
# Gradients are summed in flat pieces of at most this many elements.
_BUCKET = 8_000_000


class Ranks:
    """`rank` of `world`. With a world of one every method is a no-op. Made by `of_environment`; talks from
    `join` to `leave` alone."""

    def __init__(self, rank: int = 0, world: int = 1, parallelism: Parallelism = "ddp") -> None:
        self.rank = rank
        self.world = world
        self.sharded = world > 1 and parallelism == "fsdp"
        self._device = torch.device("cpu")

    @classmethod
    def of_environment(cls, parallelism: Parallelism) -> "Ranks":
        """As torchrun set it; alone without it."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), parallelism)

    @property
    def alone(self) -> bool:
        return self.world == 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def check(self, task: Task) -> None:
        """Raises TrainFailure when ranks cannot share its rows."""
        if objective_of(task).joint and not self.alone:
            raise TrainFailure(
                "incompatible_method",
                f"The task {task} was started on {self.world} ranks: its rows are answers to one another, so "
                "each rank would need those of all.",
                "Start it as one process.",
            )

    def place(self, compute: Compute) -> Compute:
        """On the device of this rank: each has a GPU of its own."""
        if self.alone or compute.device.type != "cuda":
            return compute
        self._device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(self._device)
        return replace(compute, device=self._device)

    def join(self, facts: Sequence[int]) -> None:
        """Once everything slow that needs no other rank is done. Raises TrainFailure when `facts` are not the
        same everywhere: the ranks would train different models."""
        if self.alone:
            return
        backend = "nccl" if self._device.type == "cuda" else "gloo"
        store, _, _ = next(_distributed.rendezvous("env://", self.rank, self.world, timeout=_ARRIVAL))
        store.set(f"arrived.{self.rank}", "")
        store.wait([f"arrived.{rank}" for rank in range(self.world)], _ARRIVAL)
        store.set_timeout(_PATIENCE)
        _distributed.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.world, timeout=_PATIENCE
        )
        mine = torch.tensor(facts, dtype=torch.long, device=self._device)
        found = [torch.empty_like(mine) for _ in range(self.world)]
        _distributed.all_gather(found, mine)
        if any(not torch.equal(other, mine) for other in found):
            # A rank that ends at once takes the answer from one that still reads it.
            with suppress(RuntimeError):
                _distributed.barrier()
            raise TrainFailure(
                "conflict",
                f"The {self.world} ranks do not begin at the same place: {[integers(one) for one in found]}.",
                "Give all ranks the same spec, rows and output_dir, on a file system they share.",
            )

    def leave(self) -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()

    # ------------------------------------------------------------ a step

    def rows_per_batch(self, most: int, num_rows: int) -> int:
        """So that no rank is idle while another has more than its part."""
        return max(1, min(most, -(-num_rows // self.world)))

    def share(self, batches: Sequence[_Item]) -> list[tuple[_Item, bool]]:
        """The micro-batches of this rank, and whether they count."""
        own = [(batch, True) for batch in batches[self.rank :: self.world]]
        rounds = -(-len(batches) // self.world)
        if self.sharded and len(own) < rounds:
            own.append((batches[0], False))
        return own

    def totals(self, *values: float) -> list[float]:
        """Each summed over the ranks."""
        if self.alone:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self._device)
        _distributed.all_reduce(sums)
        return [float(one) for one in sums]

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients over the ranks. FSDP has done so already."""
        if self.alone or self.sharded:
            return
        bucket: list[nn.Parameter] = []
        for parameter in parameters:
            if bucket and sum(one.numel() for one in bucket) + parameter.numel() > _BUCKET:
                _sum_flat(bucket)
                bucket = []
            bucket.append(parameter)
        _sum_flat(bucket)

    def any(self, flag: bool) -> bool:
        """Whether some rank says so: what the clock or a signal decides is decided for all."""
        return self.totals(float(flag)) != [0.0]

    def from_first(self, tensor: Tensor | None) -> Tensor | None:
        """What the first rank has, a matrix of fp32 or nothing, on every rank's CPU: what one disk holds or
        does not is decided for all. Of the other ranks `tensor` is not looked at."""
        if self.alone:
            return tensor
        shape = torch.full((2,), -1, dtype=torch.long, device=self._device)
        if self.first and tensor is not None:
            shape = torch.tensor(tensor.shape, device=self._device)
        _distributed.broadcast(shape, src=0)
        rows, columns = integers(shape)
        if rows < 0:
            return None
        told = torch.empty(rows, columns, device=self._device)
        if self.first and tensor is not None:
            told.copy_(tensor)
        _distributed.broadcast(told, src=0)
        return told.cpu()

    # ------------------------------------------------------------ weights

    def shard(self, model: Any, apart: Sequence[str]) -> None:
        """Splits weights over the ranks, layer by layer. `apart`: heads that are asked on their own, behind a
        trunk that is asked on its own."""
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(self._device.type, (self.world,))
        layers = set(cast("Iterable[str]", getattr(model, "_no_split_modules", None) or ()))
        for module in [one for one in model.modules() if type(one).__name__ in layers]:
            fully_shard(module, mesh=mesh)
        outside = [name for name in apart if not name.startswith(f"{model.base_model_prefix}.")]
        for module in [model.base_model, *map(model.get_submodule, outside)] if outside else [model]:
            fully_shard(module, mesh=mesh)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # Each rank's loss is divided by the targets of all: gradients are summed, not averaged.
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gathered from all ranks, one by one; kept on the first. All ranks must call it."""
        if not self.sharded:
            return dict(tensors)
        kept: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            full = _full(tensor)
            if self.first:
                kept[name] = full.cpu()
        return kept

    def split(self, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The inverse of `whole`: tensors by the name of a parameter, or one that begins with it and a dot,
        split as the parameter is."""
        if not self.sharded:
            return tensors
        from torch.distributed.tensor import DTensor, distribute_tensor

        own: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            parameter = parameters.get(name, parameters.get(name.rpartition(".")[0]))
            if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
                placed = tensor.to(self._device)
                own[name] = distribute_tensor(placed, parameter.device_mesh, parameter.placements)
            else:
                own[name] = tensor
        return own

    # ------------------------------------------------------------ chance

    def seed(self, seed: int) -> None:
        """Dropout must not be the same on all ranks."""
        seed_everything(seed + self.rank * 1_000_003)

    def rng(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of all ranks, for a checkpoint: those of others have `rank.<n>.` before their name."""
        if self.alone:
            return dict(states)
        kept: dict[str, Tensor] = {}
        for name, state in states.items():
            found = [torch.empty_like(state, device=self._device) for _ in range(self.world)]
            _distributed.all_gather(found, state.to(self._device))
            for rank, one in enumerate(found):
                kept[name if rank == 0 else f"rank.{rank}.{name}"] = one.cpu()
        return kept

    def own_rng(self, states: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Of this rank; None when the checkpoint is of fewer."""
        prefix = "" if self.first else f"rank.{self.rank}."
        own = {
            name.removeprefix(prefix): state
            for name, state in states.items()
            if name.startswith(prefix) and name.startswith("rank.") == bool(prefix)
        }
        return own or None


def _full(tensor: Tensor) -> Tensor:
    # Not by its class, whose import takes longer than a small run's first step.
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def norm_of(norm: Tensor) -> float:
    """Of gradients that may be split over the ranks."""
    return float(_full(norm))


def _sum_flat(parameters: Sequence[nn.Parameter]) -> None:
    """The sums get memory of their own: kernels add to the old gradients, and know what is in them."""
    if not parameters:
        return
    flat = torch.cat(
        [(torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in parameters]
    )
    _distributed.all_reduce(flat)
    parts = torch.split(flat, [one.numel() for one in parameters])
    for one, part in zip(parameters, parts, strict=True):
        one.grad = part.view_as(one)


ALONE = Ranks()
