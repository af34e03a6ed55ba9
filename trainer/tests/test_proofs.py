"""Minutes of killing, for `npm run test:proofs`. What it measures, it prints."""

import hashlib
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import (
    LABELS,
    chat_rows,
    class_rows,
    make_decoder,
    make_encoder,
    make_seq2seq,
    make_spec,
    pair_rows,
    preference_rows,
    write_rows,
)
from training import Forked, events_of, of_type

KILLS = 8
CASES = [
    ("chat", "decoder", "llama", "lora"),
    ("chat", "decoder", "qwen3", "full"),
    ("classification", "encoder", "bert", "full"),
    ("classification", "encoder", "distilbert", "head"),
    ("classification", "decoder", "qwen2", "lora"),
    ("seq2seq", "seq2seq", "t5", "full"),
    ("preference", "decoder", "llama", "lora"),
]
ROWS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "chat": chat_rows,
    "classification": class_rows,
    "seq2seq": pair_rows,
    "preference": preference_rows,
}
MAKERS: dict[str, Callable[[Path, str], Path]] = {
    "decoder": make_decoder,
    "encoder": make_encoder,
    "seq2seq": make_seq2seq,
}


def make(folder: Path, case: tuple[str, str, str, str], output: str, **changes: Any) -> dict[str, Any]:
    """Four micro-batches a step and nine steps an epoch: most kills are inside a step and inside an epoch."""
    task, family, kind, method = case
    if not (folder / "model").exists():
        MAKERS[family](folder / "model", kind)
        write_rows(folder / "rows.jsonl", ROWS[task](72))
    return make_spec(
        folder / "model",
        folder / "rows.jsonl",
        folder / output,
        **{
            "task": task,
            "method": method,
            "base_model__family": family,
            "data__labels": LABELS if task == "classification" else None,
            "hyperparameters__per_device_train_batch_size": 2,
            "hyperparameters__gradient_accumulation_steps": 4,
            "hyperparameters__num_train_epochs": 6,
            "hyperparameters__learning_rate": 0.001,
            "hyperparameters__lora_dropout": 0.1 if method == "lora" else 0.0,
            "runtime__checkpoint_steps": 2,
            **changes,
        },
    )


def artefact_sha256(spec: dict[str, Any]) -> str:
    [path] = (Path(spec["output_dir"]) / "artefact").glob("*model.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def seconds_of_children() -> float:
    """CPU time of the runs that have ended: what a busy machine does to the clock is no loss of a kill's."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def steps_told(spec: dict[str, Any]) -> int:
    return len(of_type(events_of(spec), "step"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_killed_anywhere_ends_in_the_same_bits(tmp_path: Path, case: tuple[str, str, str, str]) -> None:
    straight, spec = make(tmp_path, case, "straight"), make(tmp_path, case, "killed")
    began = seconds_of_children()
    assert Forked(straight).wait() == 0, events_of(straight)[-1]
    useful = seconds_of_children() - began
    random_ = random.Random("-".join(case))
    began = seconds_of_children()
    for attempt in range(1, KILLS + 1):
        process = Forked({**spec, "attempt": attempt})
        wanted = steps_told(spec) + random_.randint(1, 6)
        # A few thousandths of a second later: in the micro-batches of the next step, or its checkpoint.
        looks = iter(range(random_.randint(0, 20)))
        ended = process.wait_until(
            lambda wanted=wanted, looks=looks: steps_told(spec) >= wanted and next(looks, None) is None
        )
        assert ended is None, f"ended with {ended} before kill {attempt}: {events_of(spec)[-1]}"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert Forked({**spec, "attempt": KILLS + 1}).wait() == 0, events_of(spec)[-1]
    everything = seconds_of_children() - began
    resumed = [event["resumed_from_step"] for event in of_type(events_of(spec), "started")]
    print(
        f"\n{'-'.join(case)}: {KILLS} kills, resumed from {resumed}, goodput {useful / everything:.2f}"
        f" ({useful:.1f} s of CPU undisturbed, {everything:.1f} s in all)"
    )
    assert len([step for step in resumed if step]) >= KILLS // 2
    assert artefact_sha256(spec) == artefact_sha256(straight)
