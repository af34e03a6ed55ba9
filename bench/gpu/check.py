"""Is it right on this GPU? ``check.py DEVICE``; the last line is the findings as JSON."""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from works import TINY

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "trainer" / "src"), str(ROOT / "trainer" / "tests")]
METHODS = ("full", "lora", *(("qlora",) if importlib.util.find_spec("bitsandbytes") else ()))


def main() -> None:
    device = sys.argv[1]
    found: dict[str, Any] = {"methods": METHODS}
    for name, check in {"gradients": gradients, "runs": runs}.items():
        try:
            found[name] = check(device)
        except Exception as error:
            found[name] = f"failed: {type(error).__name__}: {error}"
    print(json.dumps(found))


def gradients(device: str) -> dict[str, Any]:
    """Packed rows through our layers against each row alone through transformers' own, in fp32."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    from fettle_trainer.adapters import LoraSettings, add_lora, keep_in_four_bits
    from fettle_trainer.data import TokenRows
    from fettle_trainer.kernels import enable
    from fettle_trainer.models import Loaded
    from fettle_trainer.recompute import compute_again
    from fettle_trainer.step import Stepper

    rows = [[5 + (7 * i * j) % 300 for j in range(length)] for i, length in enumerate((70, 3, 700, 33), 1)]
    answer: dict[str, Any] = {}
    for method in METHODS:
        torch.manual_seed(1)
        with torch.device(device):
            model: Any = AutoModelForCausalLM.from_config(Qwen3Config(**TINY), dtype=torch.float32)
        if method != "full":
            add_lora(model, LoraSettings(r=4, alpha=8, dropout=0.0, targets=None, modules_to_save=()), 1)
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    torch.nn.init.normal_(parameter, std=0.02)
        if method == "qlora":
            keep_in_four_bits(model, (), torch.device(device))
        model.to(device)
        trainable = {key: value for key, value in model.named_parameters() if value.requires_grad}
        model.train()
        total = sum(len(row) - 1 for row in rows)
        for row in rows:
            ids = torch.tensor([row], device=device)
            logits = model(input_ids=ids[:, :-1]).logits[0].float()
            (torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / total).backward()
        plain = {key: value.grad.clone() for key, value in trainable.items()}
        for value in trainable.values():
            value.grad = None
        kernels, reason = enable(model, torch.bfloat16)
        answer[f"{method} layers"] = reason
        if kernels is None:
            continue
        starts = torch.tensor([0, *torch.tensor([len(row) for row in rows]).cumsum(0).tolist()])
        ids = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
        flat = TokenRows(
            ids, starts, torch.ones_like(ids), starts, torch.zeros(4, dtype=torch.long), starts[:-1]
        )
        loaded = Loaded(
            model=model,
            prompts=None,
            family="decoder",
            head_modules=(),
            packed=True,
            adapter=None,  # type: ignore[arg-type]
            max_length=1024,
            pad_id=0,
            start_id=0,
            kernels=kernels,
        )
        stepper = Stepper(loaded, "chat", dtype=torch.bfloat16)
        stepper.train_step(flat, [[0, 1, 2], [3]], lambda _: None)
        answer[f"{method} gradients, largest relative difference to fp32"] = worst(trainable, plain)
        answer[f"{method} without gradient"] = [key for key, value in trainable.items() if value.grad is None]
        once = {key: value.grad.clone() for key, value in trainable.items() if value.grad is not None}
        for keeps in ("inputs", "nothing"):
            compute_again(model, offload=keeps == "nothing")
            for value in trainable.values():
                value.grad = None
            stepper.train_step(flat, [[0, 1, 2], [3]], lambda _: None)
            answer[f"{method} gradients, layers keeping {keeps}"] = worst(trainable, once)
    return answer


def worst(trainable: dict[str, Any], expected: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of a gradient; infinite where one is missing."""
    return max(
        float("inf")
        if trainable[key].grad is None
        else float((trainable[key].grad - gradient).norm() / gradient.norm().clamp(min=1e-9))
        for key, gradient in expected.items()
    )


def runs(device: str) -> dict[str, Any]:
    """A run as the server starts it, and one that goes on from its checkpoint."""
    from tiny import chat_rows, make_decoder, make_spec, write_rows
    from training import of_type, train

    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_decoder(Path(folder) / "model")
        rows = write_rows(Path(folder) / "rows.jsonl", chat_rows(16))
        for method in METHODS:
            spec = make_spec(
                model,
                rows,
                Path(folder) / method,
                method=method,
                runtime__device=device,
                runtime__dtype="auto",
            )
            code, events = train(spec)
            losses = [event["train_loss"] for event in of_type(events, "step")]
            answer[method] = {
                "exit code": code,
                "last": events[-1]["type"],
                "losses": [losses[0], losses[-1]],
                "told": [event["message"] for event in of_type(events, "log")][:4],
            }
    return answer


if __name__ == "__main__":
    main()
