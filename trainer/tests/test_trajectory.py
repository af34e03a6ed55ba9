"""Runs that must be equivalent share one trajectory, recorded from a plain loop: rows alone, no padding, the
layers of transformers. Model and rows are made of whole numbers, so that every platform has the same.

`python tests/test_trajectory.py` prints the record anew.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import CHATML, SPECIAL, make_spec, write_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from training import TwoRanks, events_of, of_type, train

import fettle_trainer.models
from fettle_trainer import collate, sampling
from fettle_trainer import train as training_loop
from fettle_trainer.step import Stepper

RECORD = Path(__file__).parent / "recorded" / "trajectory.json"
ROWS, ROWS_PER_STEP, EPOCHS, RATE, DECAY, SEED = 13, 8, 4, 0.002, 0.01, 7
STEPS = EPOCHS * -(-ROWS // ROWS_PER_STEP)
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "answers",
    "with",
    "care",
]
# Relative. Here the runs below differ by 2e-7, each fault by 0.1 or more.
TOLERANCE = 1e-5


def fixed(index: int) -> float:
    """A fixed number between -0.5 and 0.5, exact in fp32."""
    mixed = (index + 1) * 2654435761 % 2**32
    mixed = (mixed ^ mixed >> 15) * 2246822519 % 2**32
    return ((mixed ^ mixed >> 13) % 2**16) / 2**16 - 0.5


def make_model(folder: Path) -> Path:
    """A llama over bytes, without one merged token."""
    known = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({piece: index for index, piece in enumerate(known)}, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, max_position_embeddings=512, vocab_size=len(known), eos_token_id=3,
        pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for place, (_, parameter) in enumerate(sorted(model.named_parameters())):
            made = [fixed(place * 100_003 + index) for index in range(parameter.numel())]
            values = torch.tensor(made).view(parameter.shape)
            parameter.copy_(values / 2 if parameter.ndim > 1 else 1 + values / 4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows() -> list[dict[str, Any]]:
    """One to three turns; questions of one to five words, answers of one to four."""

    def words(first: int, count: int) -> str:
        return " ".join(WORDS[(first + step * 5) % len(WORDS)] for step in range(count))

    made: list[dict[str, Any]] = []
    for row in range(ROWS):
        messages: list[dict[str, str]] = []
        for turn in range(row % 3 + 1):
            messages.append({"role": "user", "content": words(row * 7 + turn, (row * 3 + turn) % 5 + 1)})
            messages.append({"role": "assistant", "content": words(row + turn * 2, (row + turn) % 4 + 1)})
        made.append({"messages": messages})
    return made


@dataclass(frozen=True, slots=True)
class Written:
    """`learn`: 1 where a token is learnt."""

    ids: list[int]
    learn: list[int]


def written(row: dict[str, Any], tokenizer: Any) -> Written:
    """By hand, piece after piece: learnt are what an assistant says and the end of it."""
    ids, learn = list[int](), list[int]()
    for message in row["messages"]:
        spoken = int(message["role"] == "assistant")
        pieces = [
            (f"<|im_start|>{message['role']}\n", 0),
            (f"{message['content']}<|im_end|>", spoken),
            ("\n", 0),
        ]
        for text, counts in pieces:
            own = tokenizer.encode(text, add_special_tokens=False)
            ids, learn = ids + own, learn + [counts] * len(own)
    return Written(ids, learn)


def plain_loop(folder: Path, windows: Sequence[Sequence[int]], fault: str = "") -> list[list[float]]:
    """Loss and gradient norm of each step. `fault`: one of FAULTS, to see that it shows."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).train()
    sequences = [FAULTS.get(fault, lambda one: one)(written(row, tokenizer)) for row in rows()]
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": DECAY},
        {"params": [], "weight_decay": 0.0},
    ]
    for parameter in model.parameters():
        groups[parameter.ndim < 2]["params"].append(parameter)
    optimiser = torch.optim.AdamW(groups, lr=RATE, foreach=False)
    told: list[list[float]] = []
    for step, window in enumerate(windows):
        for group in optimiser.param_groups:
            group["lr"] = RATE * (STEPS - step) / STEPS
        optimiser.zero_grad()
        counts = [sum(sequences[row].learn[1:]) for row in window]
        loss = torch.zeros(())
        before: list[int] = []
        for row, count in zip(window, counts, strict=True):
            ids, learn = torch.tensor(before + sequences[row].ids), torch.tensor(sequences[row].learn)[1:]
            logits = model(input_ids=ids[None]).logits[0, len(before) : -1]
            losses = functional.cross_entropy(logits, ids[len(before) + 1 :], reduction="none")
            share = len(window) * count if fault == "every row counts alike" else sum(counts)
            loss = loss + (losses * learn).sum() / share
            before = sequences[row].ids if fault == "rows see the row before" else []
        (loss / 8 if fault == "divided by the micro-batches too" else loss).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        told.append([float(loss.detach()), float(norm)])
    return told


def without_ends(one: Written) -> Written:
    ends = [learnt and not after for learnt, after in zip(one.learn, [*one.learn[1:], 0], strict=True)]
    return Written(one.ids, [int(learnt and not end) for learnt, end in zip(one.learn, ends, strict=True)])


FAULTS: dict[str, Callable[[Written], Written]] = {
    "ends are not learnt": without_ends,
    "learnt one token late": lambda one: Written(one.ids, [0, *one.learn[:-1]]),
    "every row counts alike": lambda one: one,
    "rows see the row before": lambda one: one,
    "divided by the micro-batches too": lambda one: one,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trajectory")
    make_model(place / "model")
    write_rows(place / "rows.jsonl", rows())
    return place


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads(RECORD.read_text())


def spec_of(folder: Path, output: str, rows_per_batch: int = 2, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "method": "full",
        "seed": SEED,
        "hyperparameters__num_train_epochs": EPOCHS,
        "hyperparameters__per_device_train_batch_size": rows_per_batch,
        "hyperparameters__gradient_accumulation_steps": ROWS_PER_STEP // rows_per_batch,
        "hyperparameters__learning_rate": RATE,
        "hyperparameters__warmup_ratio": 0.0,
        "hyperparameters__weight_decay": DECAY,
        "hyperparameters__max_length": 512,
        **changes,
    }
    return make_spec(folder / "model", folder / "rows.jsonl", folder / output, **settings)


def trajectory(spec: dict[str, Any]) -> list[list[float]]:
    """Loss and gradient norm by step, of all attempts."""
    steps = {event["step"]: event for event in of_type(events_of(spec), "step")}
    return [[steps[step]["train_loss"], steps[step]["grad_norm"]] for step in sorted(steps)]


def furthest(found: list[list[float]], expected: list[list[float]]) -> float:
    """Largest relative difference."""
    assert len(found) == len(expected) == STEPS
    return max(
        abs(a - b) / abs(b)
        for one, other in zip(found, expected, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def fused_and_packed(spec: dict[str, Any]) -> tuple[bool, bool]:
    [told] = [event["data"] for event in of_type(events_of(spec), "log") if "fused" in event.get("data", {})]
    return told["fused"], told["packed"]


def test_a_plain_loop_gives_what_is_recorded(folder: Path, record: dict[str, Any]) -> None:
    found = plain_loop(folder / "model", record["windows"])
    assert furthest(found, record["steps"]) < TOLERANCE
    assert found[-1][0] < 0.8 * found[0][0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_would_show(folder: Path, record: dict[str, Any], fault: str) -> None:
    assert (
        furthest(plain_loop(folder / "model", record["windows"], fault), record["steps"]) > 1000 * TOLERANCE
    )


@pytest.mark.parametrize("rows_per_batch", [8, 4, 2, 1])
def test_however_a_step_is_cut(folder: Path, record: dict[str, Any], rows_per_batch: int) -> None:
    spec = spec_of(folder, f"cut-{rows_per_batch}", rows_per_batch)
    code, events = train(spec)
    assert code == 0, events[-1]
    assert fused_and_packed(spec) == (True, True)
    assert furthest(trajectory(spec), record["steps"]) < TOLERANCE


def test_rows_too_long_to_be_learnt_together(
    folder: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    plain = Stepper.loss
    monkeypatch.setattr(
        Stepper, "loss", lambda self, batch, *more: begun.append(len(batch.rows)) or plain(self, batch, *more)
    )
    monkeypatch.setattr(collate, "TOKENS_AT_ONCE", 200)
    spec = spec_of(folder, "tokens", ROWS_PER_STEP)
    code, events = train(spec)
    assert code == 0, events[-1]
    assert 1 < max(begun) < ROWS_PER_STEP
    assert furthest(trajectory(spec), record["steps"]) < TOLERANCE


def test_gradients_of_a_step_are_the_same_to_a_millionth_however_it_is_cut(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the run clips them: its windows, its micro-batches, its weights of tokens."""
    found: dict[int, dict[str, Tensor]] = {}

    class Seen(Exception):
        pass

    for rows_per_batch in (8, 4, 2, 1):
        kept = found[rows_per_batch] = dict[str, Tensor]()

        def see(training: Any, kept: dict[str, Tensor] = kept) -> None:
            training._gradients(training._windows.of(0)[0])
            kept |= {name: one.grad.clone() for name, one in training._trainable.items()}
            raise Seen

        monkeypatch.setattr(training_loop.Training, "_train_step", see)
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.zeros(()))
        code, events = train(spec_of(folder, f"gradients-{rows_per_batch}", rows_per_batch))
        assert (code, "Seen" in events[-1]["message"]) == (1, True)
    for rows_per_batch, gradients in found.items():
        assert gradients.keys() == found[8].keys()
        for name, gradient in gradients.items():
            expected = found[8][name]
            assert expected.norm() > 1e-4, name
            apart = (gradient - expected).norm() / expected.norm()
            assert apart <= 1e-6, (name, rows_per_batch, float(apart))


@pytest.mark.parametrize("packed", [True, False])
def test_with_the_models_own_layers_packed_and_padded(
    folder: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    monkeypatch.setattr(fettle_trainer.models, "enable_kernels", lambda *_: (None, "off, for this test"))
    if not packed:
        monkeypatch.setattr(fettle_trainer.models, "enable_packing", lambda *_: False)
        # Padded runs put rows of like length into one step: here the same rows as recorded.
        plain = sampling.epoch_windows
        monkeypatch.setattr(
            sampling,
            "epoch_windows",
            lambda *given, by_length, **more: plain(*given, by_length=False, **more),
        )
    spec = spec_of(folder, f"own-layers-{packed}")
    code, events = train(spec)
    assert code == 0, events[-1]
    assert fused_and_packed(spec) == (False, packed)
    assert furthest(trajectory(spec), record["steps"]) < TOLERANCE


def test_stopped_in_the_middle_of_an_epoch_and_resumed(
    folder: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(folder, "resumed", runtime__checkpoint_steps=1)
    plain = Stepper.train_step

    def ends_at_step_four(stepper: Stepper, *arguments: Any, **ranks: Any) -> Any:
        if len(of_type(events_of(spec), "step")) == 3:
            raise OSError(28, "No space left on device")
        return plain(stepper, *arguments, **ranks)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "train_step", ends_at_step_four)
        assert train(spec)[0] == 74
    code, events = train({**spec, "attempt": 2})
    assert code == 0, events[-1]
    assert of_type(events, "started")[-1]["resumed_from_step"] == 3
    assert furthest(trajectory(spec), record["steps"]) < TOLERANCE


@pytest.mark.parametrize("parallelism", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_on_two_ranks(folder: Path, record: dict[str, Any], parallelism: str) -> None:
    spec = spec_of(folder, parallelism, runtime__parallelism=parallelism)
    assert TwoRanks(spec).wait() == [0, 0], events_of(spec)[-1]
    assert furthest(trajectory(spec), record["steps"]) < TOLERANCE


def windows_of_a_run() -> list[list[int]]:
    """As `epoch_windows` shuffles them. Recorded: a platform that shuffled otherwise would show."""
    made: list[list[int]] = []
    for epoch in range(EPOCHS):
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + epoch)
        order = [int(row) for row in torch.randperm(ROWS, generator=generator)]
        made += [order[start : start + ROWS_PER_STEP] for start in range(0, ROWS, ROWS_PER_STEP)]
    return made


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        order = windows_of_a_run()
        print(json.dumps({"windows": order, "steps": plain_loop(make_model(Path(place)), order)}))
