"""The optimiser's state across an interruption."""

import torch
from torch import nn

from fettle_trainer.optim import load_optimiser


def test_moments_read_from_a_file_go_to_the_device_of_their_parameter() -> None:
    # Bug: they stayed on the CPU, where checkpoints are read to, and the fused step refuses that on a GPU.
    # The device without memory stands for any other.
    parameter = nn.Parameter(torch.empty(2, 3, device="meta"))
    optimiser = torch.optim.AdamW([parameter], fused=False)
    kept = {
        "w.step": torch.tensor(4.0),
        "w.exp_avg": torch.ones(2, 3),
        "w.exp_avg_sq": torch.ones(2, 3),
    }

    load_optimiser(optimiser, {"w": parameter}, kept)

    assert {tensor.device.type for tensor in optimiser.state[parameter].values()} == {"meta"}


def test_moments_are_copied_not_shared_with_what_was_read() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.AdamW([parameter])
    kept = {"w.step": torch.tensor(4.0), "w.exp_avg": torch.ones(2), "w.exp_avg_sq": torch.ones(2)}

    load_optimiser(optimiser, {"w": parameter}, kept)
    optimiser.state[parameter]["exp_avg"].zero_()

    assert torch.equal(kept["w.exp_avg"], torch.ones(2))
