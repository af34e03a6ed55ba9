"""One run of one side: ``side.py SIDE WORK DEVICE STARTED_AT [--dry] [--profile]``; the last line is its
result as JSON. With ``--profile`` ours tells the kernels of one more step.

SIDE: ``ours``, ``trl-defaults``, or ``trl-best``: Liger's kernels, no gradient checkpointing, rows of like
length together.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from works import DRY, SEED, WARM, WORKS, Work, make_model, make_rows, same_adapters

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """Seconds and tokens of the steps after the first few."""

    def __init__(self, device: str, started_at: float) -> None:
        self._cuda = device == "cuda"
        self._started_at = started_at
        self.first_step_s = self._from = self.seconds = 0.0
        self._tokens_before = 0
        self.tokens = 0
        self.losses: list[float] = []

    def step_ended(self, step: int, tokens: int) -> None:
        """`tokens` so far, padding left out."""
        if step == 1 or step >= WARM:
            if self._cuda:
                torch.cuda.synchronize()
            if step == 1:
                self.first_step_s = time.time() - self._started_at
            if step == WARM:
                self._from, self._tokens_before = time.perf_counter(), tokens
            self.seconds, self.tokens = time.perf_counter() - self._from, tokens - self._tokens_before

    def result(self) -> dict[str, Any]:
        return {
            "tokens_per_s": self.tokens / self.seconds,
            "first_step_s": self.first_step_s,
            "losses": self.losses,
            "peak_bytes": torch.cuda.max_memory_allocated() if self._cuda else 0,
        }


def run_ours(work: Work, device: str, clock: Clock) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "trainer" / "src"))
    from fettle_trainer.adapter_kinds import attach
    from fettle_trainer.adapters import LoraSettings, keep_in_four_bits
    from fettle_trainer.data import TokenRows
    from fettle_trainer.kernels import enable
    from fettle_trainer.models import Loaded
    from fettle_trainer.packing import enable as enable_packing
    from fettle_trainer.recompute import compute_again
    from fettle_trainer.step import Stepper

    rows = make_rows(work)
    model = make_model(work, device)
    adapter = None
    if work.method != "full":
        adapter = LoraSettings(r=16, alpha=32, dropout=0.0, targets=None, modules_to_save=())
        attach(model, adapter, SEED)
        model.to(device)
        same_adapters(model)
    if work.method == "qlora":
        keep_in_four_bits(model, (), torch.device(device))
    if work.keeps != "everything":
        compute_again(model, offload=work.keeps == "nothing")
    kernels, reason = enable(model, torch.bfloat16)
    packed = kernels is not None or enable_packing(model, torch.bfloat16)
    starts = torch.tensor([0, *torch.tensor([len(row) for row in rows]).cumsum(0).tolist()])
    ids = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    tokens = TokenRows(
        ids=ids,
        starts=starts,
        aux=torch.ones_like(ids),
        aux_starts=starts,
        labels=torch.zeros(len(rows), dtype=torch.long),
        lines=torch.arange(len(rows)),
    )
    loaded = Loaded(
        model=model,
        prompts=None,  # type: ignore[arg-type]
        family="decoder",
        head_modules=(),
        packed=packed,
        adapter=adapter,
        max_length=work.most,
        pad_id=0,
        start_id=0,
        kernels=kernels,
        layers=reason,
    )
    loaded.set_training()
    stepper = Stepper(loaded, "chat", dtype=torch.bfloat16)
    trainable = list(loaded.trainable().values())
    optimiser = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0, fused=True)

    def take(step: int) -> tuple[float, int]:
        window = list(range(step * work.rows_per_step, (step + 1) * work.rows_per_step))
        optimiser.zero_grad(set_to_none=True)
        loss, _, count = stepper.train_step(tokens, [window], lambda _: None)
        norm = float(torch.nn.utils.clip_grad_norm_(trainable, 1.0))
        assert math.isfinite(norm), "the gradients are not finite"
        optimiser.step()
        return loss, count

    num_tokens = 0
    for step in range(work.steps):
        loss, count = take(step)
        num_tokens += count
        clock.losses.append(loss)
        clock.step_ended(step + 1, num_tokens)
    told = {"layers": reason, "packed": packed}
    return told if "--profile" not in sys.argv else {**told, **profile(lambda: take(work.steps - 1))}


def profile(step: Callable[[], object]) -> dict[str, Any]:
    """Milliseconds of a step by kernel, and of the whole."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        whole = time.perf_counter() - start
    found = [
        (event.key[:90], round(event.self_device_time_total / 1e3, 2), event.count)
        for event in recorded.key_averages()
        if event.self_device_time_total > 0 and event.device_type != torch.autograd.DeviceType.CPU
    ]
    found.sort(key=lambda one: -one[1])
    return {"step_ms": whole * 1e3, "kernels_ms": sum(one[1] for one in found), "kernels": found[:40]}


def run_trl(work: Work, device: str, clock: Clock, *, best: bool) -> dict[str, Any]:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Record(TrainerCallback):
        num_tokens = 0

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            clock.step_ended(state.global_step, self.num_tokens)

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                clock.losses.append(float(logs["loss"]))

    record = Record()

    class Counted(SFTTrainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
            record.num_tokens += int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *rest, **more)

    words = Tokenizer(WordLevel({"[pad]": 0, "[bos]": 1, "[eos]": 2, "[unk]": 3}, unk_token="[unk]"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[pad]", bos_token="[bos]", eos_token="[eos]", unk_token="[unk]"
    )
    data = Dataset.from_list([{"input_ids": row, "labels": row} for row in make_rows(work)])
    model = make_model(work, device)
    if work.method == "lora":
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
        model = get_peft_model(model, settings)
        same_adapters(model)
    flags: dict[str, Any] = {}
    if best:
        flags = {
            "use_liger_kernel": device == "cuda",
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
        }
    config = SFTConfig(
        output_dir="/tmp/fettle-gpu-bench",
        per_device_train_batch_size=work.peer_batch,
        gradient_accumulation_steps=work.rows_per_step // work.peer_batch,
        num_train_epochs=1,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=device == "cpu",
        max_length=work.most,
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        logging_first_step=True,
        disable_tqdm=True,
        seed=SEED,
        **flags,
    )
    trainer = Counted(
        model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[record]
    )
    trainer.train()
    return {"flags": {name: str(value) for name, value in flags.items()}}


def main() -> None:
    side, name, device, started_at = sys.argv[1:5]
    work = (DRY if "--dry" in sys.argv else WORKS)[name]
    clock = Clock(device, float(started_at))
    if side == "ours":
        more = run_ours(work, device, clock)
    else:
        more = run_trl(work, device, clock, best=side == "trl-best")
    print(json.dumps({**clock.result(), **more}))


if __name__ == "__main__":
    main()
