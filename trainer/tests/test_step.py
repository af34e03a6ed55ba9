"""What a step computes must not depend on how rows are laid out, cut or padded."""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    LABELS,
    chat_rows,
    class_rows,
    make_decoder,
    make_encoder,
    make_seq2seq,
    make_spec,
    pair_rows,
    write_rows,
)
from torch.nn import functional

from fettle_trainer import collate
from fettle_trainer.adapters import lora_layers
from fettle_trainer.collate import Batch, bounds_tokens, epoch_windows, micro_batches
from fettle_trainer.data import Tokeniser, TokenRows, load_dataset
from fettle_trainer.device import Compute
from fettle_trainer.models import Loaded, load_for_training
from fettle_trainer.spec import Task, parse_spec
from fettle_trainer.step import Stepper
from fettle_trainer.tasks.classification import macro_f1

CPU = Compute(torch.device("cpu"), torch.float32, "test")
KINDS = {
    "llama": ("chat", "decoder"),
    "gpt2": ("chat", "decoder"),
    "gemma3": ("chat", "decoder"),
    "qwen3": ("chat", "decoder"),
    "bert": ("classification", "encoder"),
    "qwen2": ("classification", "decoder"),
    "t5": ("seq2seq", "seq2seq"),
    "bart": ("seq2seq", "seq2seq"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("step")


def prepared(
    folder: Path, kind: str, method: str = "full", *, compute: Compute = CPU, **changes: Any
) -> tuple[Loaded, TokenRows, Stepper]:
    """Model, rows and stepper of one architecture, dropout off."""
    task, family = KINDS[kind]
    model = folder / kind
    if not model.exists():
        {"decoder": make_decoder, "encoder": make_encoder, "seq2seq": make_seq2seq}[family](model, kind)
    rows = {"chat": chat_rows, "classification": class_rows, "seq2seq": pair_rows}[task](16, seed=1)
    path = write_rows(folder / f"{task}.jsonl", rows)
    labels = {"data__labels": LABELS} if task == "classification" else {}
    made = make_spec(
        model, path, folder / "out", task=task, method=method, base_model__family=family,
        hyperparameters__dropout=0.0, **labels, **changes,
    )  # fmt: skip
    spec = parse_spec(made)
    loaded = load_for_training(spec, compute)
    loaded.set_training()
    tokeniser = Tokeniser(loaded.prompts, spec.task, loaded.max_length, spec.data.labels)
    tokens = load_dataset(path, tokeniser, cache=folder / "cache", tokenizer_sha256=kind).rows
    return loaded, tokens, Stepper(loaded, spec.task, dtype=compute.dtype)


def gradients(stepper: Stepper, rows: TokenRows, micro: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    model = stepper.loaded.model
    model.zero_grad(set_to_none=True)
    stepper.train_step(rows, micro, lambda _: None)
    return {name: p.grad.clone() for name, p in stepper.loaded.trainable().items() if p.grad is not None}


def plain_stepper(loaded: Loaded, task: Task) -> Stepper:
    """The model as transformers has it, rows padded."""
    make_plain(loaded)
    return Stepper(replace(loaded, packed=False, kernels=None), task)


def make_plain(loaded: Loaded) -> None:
    if loaded.kernels is not None:
        loaded.kernels.disable()
    loaded.model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "qwen2", "t5", "bart"])
def test_gradients_do_not_depend_on_accumulation(folder: Path, kind: str) -> None:
    loaded, rows, stepper = prepared(folder, kind)
    [window, *_] = epoch_windows(rows, 8, seed=1, by_length=not loaded.packed)
    expected = gradients(stepper, rows, micro_batches(window, 8))
    assert expected
    for size in (4, 2, 1):
        actual = gradients(stepper, rows, micro_batches(window, size))
        assert actual.keys() == expected.keys()
        for name, gradient in actual.items():
            torch.testing.assert_close(
                gradient, expected[name], rtol=0, atol=1e-6, msg=f"{name} at {size} rows"
            )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "qwen3", "qwen2"])
def test_packed_rows_see_themselves_alone(folder: Path, kind: str) -> None:
    """Packed logits are those of the model's own attention over each row alone, and over padded rows."""
    loaded, rows, stepper = prepared(folder, kind)
    assert loaded.packed
    chosen = [3, 0, 5, 1, 1]
    packed = stepper.answers(rows, chosen)
    plain = plain_stepper(loaded, stepper.task)
    alone = torch.cat([plain.answers(rows, [row]) for row in chosen])
    padded = plain.answers(rows, chosen)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)
    assert packed.std() > 1e-3


def test_packed_gradients_are_the_padded_ones(folder: Path) -> None:
    loaded, rows, stepper = prepared(folder, "llama")
    packed = gradients(stepper, rows, [[0, 1, 2, 3]])
    padded = gradients(plain_stepper(loaded, "chat"), rows, [[0, 1, 2, 3]])
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, padded[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_evaluation_does_not_depend_on_the_batch_size(folder: Path, kind: str) -> None:
    _, rows, stepper = prepared(folder, kind)
    one, eight = (stepper.evaluate(rows, size, lambda _: None) for size in (1, 8))
    assert one.loss == pytest.approx(eight.loss, abs=1e-5)
    assert one.accuracy == eight.accuracy


def test_evaluation_memory_does_not_grow_with_the_rows(folder: Path) -> None:
    """No more than the newest two batches of logits are ever alive."""
    _, rows, stepper = prepared(folder, "llama")
    born: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    plain = stepper.logits

    def watched(batch: Batch) -> torch.Tensor:
        alive.append(sum(reference() is not None for reference in born))
        logits = plain(batch)
        born.append(weakref.ref(logits))
        return logits

    stepper.logits = watched  # type: ignore[method-assign]
    stepper.evaluate(rows, 1, lambda _: None)
    assert len(born) == len(rows)
    assert max(alive) <= 2


@pytest.mark.parametrize("kind", ["qwen2", "bert"])
def test_classifier_answers_alike_alone_and_in_a_batch(folder: Path, kind: str) -> None:
    loaded, rows, stepper = prepared(folder, kind)
    chosen = list(range(8))
    assert len(set(rows.lengths[:8])) > 1
    batched = stepper.answers(rows, chosen)
    torch.testing.assert_close(
        batched, torch.cat([stepper.answers(rows, [row]) for row in chosen]), rtol=1e-4, atol=1e-5
    )
    assert loaded.model.config.pad_token_id is not None


def test_loss_is_the_mean_over_learnt_tokens(folder: Path) -> None:
    """Against transformers' own loss: labels of everything else are -100."""
    loaded, rows, stepper = prepared(folder, "llama")
    loss, accuracy, num_tokens = stepper.train_step(rows, [[0, 1], [2]], lambda _: None)
    make_plain(loaded)
    total, count, right = 0.0, 0, 0
    for row in range(3):
        ids, learn = rows.ids_of(row), rows.aux_of(row).bool()
        logits = loaded.model(input_ids=ids[None]).logits[0, :-1]
        targets = torch.where(learn, ids, -100)[1:]
        total += functional.cross_entropy(logits, targets, reduction="sum").item()
        right += int((logits.argmax(-1) == targets).sum())
        count += int(learn[1:].sum())
    assert loss == pytest.approx(total / count, rel=1e-5)
    assert accuracy == pytest.approx(right / count)
    assert num_tokens == sum(rows.lengths[:3])


def test_seq2seq_pads_are_no_targets(folder: Path) -> None:
    loaded, rows, stepper = prepared(folder, "t5")
    chosen = [0, 1, 2, 3]
    batch = stepper.collate(rows, chosen)
    assert batch.targets_N.numel() == sum(len(rows.aux_of(row)) for row in chosen)
    assert (batch.targets_N == 3).sum() == 4
    assert batch.decoder_input_ids is not None
    assert (batch.decoder_input_ids[:, 0] == loaded.start_id).all()
    loss = stepper.loss(batch, 0.0).total / batch.targets_N.numel()
    padded = torch.nn.utils.rnn.pad_sequence(
        [rows.aux_of(row) for row in chosen], batch_first=True, padding_value=-100
    )
    make_plain(loaded)
    reference = loaded.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=padded
    ).loss
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_lora_trains_its_layers_alone_and_all_of_them(folder: Path, kind: str) -> None:
    loaded, rows, stepper = prepared(folder, kind, "lora")
    names = set(loaded.trainable())
    expected = {f"{name}.lora_{half}" for name, _ in lora_layers(loaded.model) for half in "AB"}
    heads = {name for name in names if name.startswith(tuple(f"{head}." for head in loaded.head_modules))}
    assert names == expected | heads
    assert bool(heads) == (kind == "bert")
    before = {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}
    optimiser = torch.optim.AdamW(list(loaded.trainable().values()), lr=0.01)
    for _ in range(2):  # B begins at zero, so A has a gradient from the second step on
        gradients(stepper, rows, [[0, 1, 2, 3]])
        optimiser.step()
    changed = {name for name, p in loaded.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == names


@pytest.mark.parametrize(
    ("kind", "method"), [("llama", "full"), ("bert", "full"), ("bert", "head"), ("t5", "full")]
)
def test_every_trainable_tensor_changes_at_the_first_step(folder: Path, kind: str, method: str) -> None:
    loaded, rows, stepper = prepared(folder, kind, method)
    before = {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}
    optimiser = torch.optim.AdamW(list(loaded.trainable().values()), lr=0.01)
    gradients(stepper, rows, [[0, 1, 2, 3]])
    optimiser.step()
    changed = {name for name, p in loaded.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(loaded.trainable())
    if method == "head":
        assert changed == {"classifier.weight", "classifier.bias"}
        assert not loaded.model.bert.training
    else:
        assert changed == set(before)


def test_backward_stops_below_the_lowest_trainable_layer(folder: Path) -> None:
    loaded, rows, stepper = prepared(folder, "bert", "head")
    seen: list[bool] = []
    handle = loaded.model.bert.encoder.register_forward_hook(
        lambda _m, _a, output: seen.append(output.last_hidden_state.requires_grad)
    )
    stepper.train_step(rows, [[0, 1]], lambda _: None)
    handle.remove()
    assert seen == [False]


def test_windows_hold_every_row_once_and_like_lengths(folder: Path) -> None:
    _, rows, _ = prepared(folder, "bert")
    for by_length in (True, False):
        windows = epoch_windows(rows, 3, seed=5, by_length=by_length)
        assert sorted(row for window in windows for row in window) == list(range(len(rows)))
        assert windows == epoch_windows(rows, 3, seed=5, by_length=by_length)
        assert windows != epoch_windows(rows, 3, seed=6, by_length=by_length)
    bucketed = epoch_windows(rows, 4, seed=5, by_length=True)
    spread = sum(max(rows.lengths[r] for r in w) - min(rows.lengths[r] for r in w) for w in bucketed)
    mixed = epoch_windows(rows, 4, seed=5, by_length=False)
    assert spread < sum(max(rows.lengths[r] for r in w) - min(rows.lengths[r] for r in w) for w in mixed)


def test_macro_f1_is_sklearns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    guesses, targets = [0, 1, 2, 2, 1, 0, 0], [0, 2, 2, 2, 1, 1, 0]
    assert macro_f1(guesses, targets) == pytest.approx(metrics.f1_score(targets, guesses, average="macro"))


def test_dropout_setting_reaches_the_model(folder: Path) -> None:
    loaded, _, _ = prepared(folder, "bert")
    assert {m.p for m in loaded.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


def test_micro_batches_have_so_many_rows_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collate, "TOKENS_AT_ONCE", 10)
    lengths = [0, 4, 6, 1, 30, 2, 2, 2]
    assert micro_batches([1, 2, 3, 4, 5, 6, 7], 2) == [[1, 2], [3, 4], [5, 6], [7]]
    assert micro_batches([1, 2, 3, 4, 5, 6, 7], 9, lengths) == [[1, 2], [3], [4], [5, 6, 7]]
    assert micro_batches([5, 6, 7], 2, lengths) == [[5, 6], [7]]
    assert micro_batches([], 2, lengths) == []


def test_only_cpus_and_losses_of_single_rows_are_cut_by_tokens() -> None:
    assert bounds_tokens(torch.device("cpu"), joint=False)
    assert not bounds_tokens(torch.device("cpu"), joint=True)
    assert not bounds_tokens(torch.device("cuda"), joint=False)
