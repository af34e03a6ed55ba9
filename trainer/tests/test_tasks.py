"""What each task with a head, or with vectors, learns: against plain transformers and plain torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from test_step import CPU, gradients, make_plain
from tiny import LABELS, make_decoder, make_encoder, make_spec, task_rows, write_rows
from torch import Tensor
from torch.nn import functional
from training import of_type, train

from fettle_trainer.artefact import load_artefact
from fettle_trainer.checkpoint import CheckpointFolder
from fettle_trainer.collate import micro_batches
from fettle_trainer.data import Tokeniser, TokenRows, load_dataset
from fettle_trainer.messages import PromptError
from fettle_trainer.models import Loaded, load_for_training
from fettle_trainer.spec import TrainSpec, parse_spec
from fettle_trainer.step import Stepper
from fettle_trainer.tasks import objective_of
from fettle_trainer.tasks.answers import best_span
from fettle_trainer.tasks.classification import balanced
from fettle_trainer.tasks.entities import Span, spans_of, tag_names
from fettle_trainer.tasks.regression import spearman

LABELLED = ("classification", "multilabel_classification", "token_classification")
# Each task with the architectures it is done by.
WAYS = [
    ("classification", "bert"),
    ("multilabel_classification", "bert"),
    ("multilabel_classification", "qwen2"),
    ("regression", "bert"),
    ("regression", "llama"),
    ("ranking", "bert"),
    ("ranking", "qwen2"),
    ("token_classification", "bert"),
    ("token_classification", "roberta"),
    ("question_answering", "bert"),
    ("question_answering", "distilbert"),
    ("embedding", "bert"),
    ("embedding", "distilbert"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


def spec_of(folder: Path, task: str, kind: str, **changes: Any) -> TrainSpec:
    model = folder / kind
    is_encoder = kind in ("bert", "roberta", "distilbert")
    if not model.exists():
        (make_encoder if is_encoder else make_decoder)(model, kind)
    path = write_rows(folder / f"{task}.jsonl", task_rows(task, 16, seed=1))
    given: dict[str, Any] = {
        "hyperparameters__dropout": 0.0,
        "method": "full",
        "hyperparameters__max_length": 64,
    }
    if task in LABELLED:
        given["data__labels"] = LABELS
    if task == "regression":
        given |= {"hyperparameters__target_mean": 50.0, "hyperparameters__target_std": 8.0}
    given |= {"base_model__family": "encoder" if is_encoder else "decoder", **changes}
    return parse_spec(make_spec(model, path, folder / "out", task=task, **given))


def prepared(folder: Path, task: str, kind: str, **changes: Any) -> tuple[Loaded, TokenRows, Stepper]:
    spec = spec_of(folder, task, kind, **changes)
    loaded = load_for_training(spec, CPU)
    loaded.set_training()
    tokeniser = Tokeniser(loaded.prompts, spec.task, loaded.max_length, spec.data.labels)
    rows = load_dataset(
        Path(spec.data.train_path), tokeniser, cache=folder / "cache", tokenizer_sha256=kind
    ).rows
    objective = objective_of(spec.task).tuned(spec.hyperparameters, rows)
    return loaded, rows, Stepper(loaded, spec.task, objective=objective)


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys() != set()
    for name, gradient in actual.items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("task", "kind"), WAYS)
def test_gradients_do_not_depend_on_the_cut(folder: Path, task: str, kind: str) -> None:
    balance = {"hyperparameters__class_weights": "balanced"} if task == "classification" else {}
    _, rows, stepper = prepared(folder, task, kind, **balance)
    window = list(range(8))
    expected = gradients(stepper, rows, micro_batches(window, 8))
    assert expected
    for size in (4, 2, 1):
        same(gradients(stepper, rows, micro_batches(window, size)), expected)


def test_a_cut_step_of_vectors_draws_the_dropout_it_was_measured_with(folder: Path) -> None:
    """Both passes over a micro-batch see the same model, and the next step draws on."""
    _, rows, stepper = prepared(folder, "embedding", "bert", hyperparameters__dropout=0.3)
    torch.manual_seed(3)
    first = gradients(stepper, rows, [[0, 1], [2, 3]])
    after = torch.rand(1)
    torch.manual_seed(3)
    again = gradients(stepper, rows, [[0, 1], [2, 3]])
    same(again, first)
    torch.manual_seed(3)
    with torch.no_grad():
        for chosen in ([0, 1], [2, 3]):
            stepper.logits(stepper.collate(rows, chosen))
    torch.testing.assert_close(torch.rand(1), after)


def reference(task: str, model: Any, stepper: Stepper, rows: TokenRows, chosen: Sequence[int]) -> Tensor:
    """The mean loss over these rows, from transformers' own padded model and plain torch."""
    batch = stepper.collate(rows, chosen)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.token_type_ids is not None:
        inputs["token_type_ids"] = batch.token_type_ids
    if task == "multilabel_classification":
        return cast("Tensor", model(**inputs, labels=batch.targets_N).loss)
    if task == "regression":
        return cast("Tensor", model(**inputs, labels=((batch.targets_N - 50.0) / 8.0).float()).loss)
    if task == "ranking":
        scores = model(**inputs).logits[:, 0]
        return -functional.logsigmoid(scores[0::2] - scores[1::2]).mean()
    if task == "token_classification":
        tags = torch.full_like(batch.input_ids, -100).flatten()
        tags[batch.gather_N] = batch.targets_N
        return cast("Tensor", model(**inputs, labels=tags.view_as(batch.input_ids)).loss)
    if task == "embedding":
        hidden = model(**inputs).last_hidden_state
        mask = batch.attention_mask[..., None].float()
        vectors = functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        anchors, positives, negatives = (vectors[batch.targets_N == role] for role in range(3))
        scores = anchors @ torch.cat([positives, negatives]).t() * 20
        return functional.cross_entropy(scores, torch.arange(len(anchors)))
    raise AssertionError(task)


@pytest.mark.parametrize(
    ("task", "kind"), [way for way in WAYS if way[0] not in ("classification", "question_answering")]
)
def test_gradients_are_those_of_the_plain_model(folder: Path, task: str, kind: str) -> None:
    loaded, rows, stepper = prepared(folder, task, kind)
    chosen = [0, 5, 1, 3, 7]
    actual = gradients(stepper, rows, [chosen[:2], chosen[2:]])
    make_plain(loaded)
    plain = Stepper(replace(loaded, packed=False, kernels=None), stepper.task)
    loaded.model.zero_grad(set_to_none=True)
    cast("Any", reference(task, loaded.model, plain, rows, chosen)).backward()
    trainable = loaded.trainable()
    same(actual, {name: p.grad for name, p in trainable.items() if p.grad is not None})


@pytest.mark.parametrize("chosen", [[0, 2, 4, 6, 8], [1, 3, 5, 7]], ids=["pairs", "triplets"])
def test_vectors_learn_by_multiple_negatives_ranking(folder: Path, chosen: list[int]) -> None:
    """Loss and gradients of sentence-transformers' formula, written out: each text and anchor alone."""
    loaded, rows, stepper = prepared(folder, "embedding", "bert")
    loaded.model.zero_grad(set_to_none=True)
    loss, _, _ = stepper.train_step(rows, [chosen], lambda _: None)
    actual = torch.cat([p.grad.flatten() for p in loaded.trainable().values() if p.grad is not None])
    make_plain(loaded)
    loaded.model.zero_grad(set_to_none=True)
    texts = [rows.ids_of(row).split(rows.aux_of(row).tolist()) for row in chosen]
    vectors = [[loaded.model(ids[None]).last_hidden_state[0].mean(dim=0) for ids in row] for row in texts]
    candidates = [row[1] for row in vectors] + [row[2] for row in vectors if len(row) == 3]
    assert len(candidates) == len(chosen) * (len(texts[0]) - 1)
    losses: list[Tensor] = []
    for place, (anchor, *_) in enumerate(vectors):
        scores = [20 * functional.cosine_similarity(anchor, one, dim=0) for one in candidates]
        losses.append(torch.logsumexp(torch.stack(scores), dim=0) - scores[place])
    expected = torch.stack(losses).mean()
    cast("Any", expected).backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    wanted = torch.cat([p.grad.flatten() for p in loaded.trainable().values() if p.grad is not None])
    assert float((actual - wanted).norm() / wanted.norm()) < 1e-5


def test_answers_learn_what_transformers_would_of_each_window(folder: Path) -> None:
    loaded, rows, stepper = prepared(folder, "question_answering", "bert")
    actual = gradients(stepper, rows, [[0, 5], [2]])
    make_plain(loaded)
    loaded.model.zero_grad(set_to_none=True)
    for row in (0, 5, 2):
        batch = stepper.collate(rows, [row])
        start, end = ((batch.targets_N & mark != 0).int().argmax()[None] for mark in (1, 2))
        inputs = {"input_ids": batch.input_ids, "token_type_ids": batch.token_type_ids}
        (loaded.model(**inputs, start_positions=start, end_positions=end).loss / 3).backward()
    same(actual, {name: p.grad for name, p in loaded.trainable().items() if p.grad is not None})


def test_weighted_classes_are_torchs_over_the_whole_step(folder: Path) -> None:
    loaded, rows, _ = prepared(folder, "classification", "bert")
    kept = rows.select([0, 3, 6, 9, 12, 1, 4, 2])
    objective = objective_of("classification").tuned(
        spec_of(folder, "classification", "bert", hyperparameters__class_weights="balanced").hyperparameters,
        kept,
    )
    stepper = Stepper(loaded, "classification", objective=objective)
    actual = gradients(stepper, kept, [[0, 5, 7], [1, 2], [6, 3, 4]])
    weights = torch.tensor([8 / (3 * 5), 8 / (3 * 2), 8 / (3 * 1)])
    assert balanced(kept.labels) == pytest.approx(weights.tolist())
    make_plain(loaded)
    loaded.model.zero_grad(set_to_none=True)
    batch = stepper.collate(kept, range(8))
    logits = loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    functional.cross_entropy(logits, batch.targets_N, weight=weights).backward()
    same(actual, {name: p.grad for name, p in loaded.trainable().items() if p.grad is not None})


def test_a_class_that_is_only_held_out_has_a_weight_too(folder: Path) -> None:
    """The last class of all may lie in one fold alone: evaluating it looked behind the end of the weights."""
    loaded, rows, _ = prepared(folder, "classification", "bert")
    trained = [row for row in range(len(rows)) if int(rows.labels[row]) < 2]
    asked = spec_of(
        folder, "classification", "bert", hyperparameters__class_weights="balanced"
    ).hyperparameters
    objective = objective_of("classification").tuned(asked, rows.select(trained))
    found = Stepper(loaded, "classification", objective=objective).evaluate(rows, 4, lambda _: None)
    assert len(trained) < len(rows)
    assert found.loss > 0


def test_a_step_of_vectors_ranks_against_all_of_its_rows(folder: Path) -> None:
    """Not against those of the micro-batch alone."""
    _, rows, stepper = prepared(folder, "embedding", "bert")
    whole = stepper.train_step(rows, [[0, 1, 2, 3]], lambda _: None)
    cut = stepper.train_step(rows, [[0], [1], [2], [3]], lambda _: None)
    assert cut[0] == pytest.approx(whole[0], rel=1e-5)
    assert cut[0] > 0.1
    evaluations = [stepper.evaluate(rows, size, lambda _: None) for size in (1, 7)]
    assert evaluations[0].loss == pytest.approx(evaluations[1].loss, rel=1e-5)
    assert evaluations[0].metrics == pytest.approx(evaluations[1].metrics)


METRICS = {
    "multilabel_classification": "f1_micro",
    "regression": "spearman",
    "ranking": "pair_accuracy",
    "token_classification": "entity_f1",
    "question_answering": "exact_match",
    "embedding": "mrr_at_10",
}
RUNS = [
    ("multilabel_classification", "bert", "lora"),
    ("regression", "llama", "lora"),
    ("regression", "bert", "head"),
    ("ranking", "qwen2", "full"),
    ("token_classification", "bert", "full"),
    ("token_classification", "bert", "lora"),
    ("question_answering", "bert", "full"),
    ("embedding", "bert", "full"),
    ("embedding", "bert", "lora"),
]


@pytest.mark.parametrize(("task", "kind", "method"), RUNS)
def test_a_run_learns_and_its_artefact_answers(folder: Path, task: str, kind: str, method: str) -> None:
    """The run itself proves that the saved model answers as the trained one."""
    spec = spec_of(folder, task, kind)
    output = folder / f"run-{task}-{kind}-{method}"
    changes: dict[str, Any] = {"data__validation_path": spec.data.train_path, "method": method}
    if task in LABELLED:
        changes["data__labels"] = LABELS
    if task == "regression":
        changes |= {"hyperparameters__target_mean": 50.0, "hyperparameters__target_std": 8.0}
    made = make_spec(
        folder / kind, Path(spec.data.train_path), output, task=task,
        base_model__family=spec.base_model.family, hyperparameters__num_train_epochs=6,
        hyperparameters__max_length=64, **changes,
    )  # fmt: skip
    code, events = train(made)
    assert code == 0, events[-1]
    seen = [event["metrics"][METRICS[task]] for event in of_type(events, "evaluation")]
    losses = [event["valid_loss"] for event in of_type(events, "evaluation")]
    assert losses[-1] < losses[0]
    assert max(seen) >= seen[0]
    loaded = load_artefact(output / "artefact", folder / kind, torch.float32)
    assert loaded.head_modules or task == "embedding"


# Each task with a new output, or none, by each method beside LoRA and full that changes less than all.
METHOD_RUNS = [
    (task, kind, method)
    for task, kind in [
        ("multilabel_classification", "bert"),
        ("regression", "qwen2"),
        ("ranking", "llama"),
        ("token_classification", "distilbert"),
        ("question_answering", "bert"),
        ("embedding", "bert"),
    ]
    for method in ("rslora", "dora", "ia3", "freeze")
]


@pytest.mark.parametrize(("task", "kind", "method"), METHOD_RUNS)
def test_each_method_trains_each_output(folder: Path, task: str, kind: str, method: str) -> None:
    """All that is trained moves; that the saved model answers as the trained one the run proves itself."""
    spec = spec_of(folder, task, kind, method=method)
    before = {name: value.clone() for name, value in load_for_training(spec, CPU).trainable().items()}
    output = folder / f"method-{task}-{method}"
    changes: dict[str, Any] = {"data__labels": LABELS} if task in LABELLED else {}
    made = make_spec(
        folder / kind, Path(spec.data.train_path), output, task=task, method=method,
        base_model__family=spec.base_model.family, hyperparameters__num_train_epochs=1,
        hyperparameters__max_length=64, hyperparameters__weight_decay=0.0, runtime__checkpoint_steps=1,
        runtime__keep_checkpoints=100, **changes,
    )  # fmt: skip
    code, events = train(made)
    assert code == 0, events[-1]
    told = [event["type"] for event in events if event["type"] != "heartbeat"]
    assert told[-2:] == ["finished", "verified"]
    steps = len(of_type(events, "step"))
    after = CheckpointFolder(output / "checkpoints", 100).load(steps).weights
    assert steps > 1
    assert before.keys() == after.keys() != set()
    assert [name for name, value in before.items() if torch.equal(value, after[name])] == []


def test_words_carry_tags_and_spans_come_back(folder: Path) -> None:
    loaded, _, _ = prepared(folder, "token_classification", "bert")
    tokeniser = Tokeniser(loaded.prompts, "token_classification", 64, tuple(LABELS))
    text = "the refund of grüße login broken"
    row = {
        "text": text,
        "entities": [{"start": 4, "end": 10, "label": "billing"}, {"start": 20, "end": 32, "label": "login"}],
    }
    [made] = tokeniser.encode(row)
    [feed] = objective_of("token_classification").feeds(
        torch.tensor(made.ids), torch.tensor(made.aux), torch.zeros(1)
    )
    names = [tag_names(LABELS)[tag] for tag in feed.targets.tolist()]
    assert names == ["O", "B-billing", "O", "O", "B-login", "I-login"]
    assert spans_of(feed.targets.tolist()) == [Span(1, 1, 0), Span(4, 5, 1)]
    assert len(made.ids) > len(names) + 2  # words of several tokens have one tag
    with pytest.raises(PromptError, match="meet in the word"):
        tokeniser.encode(
            {
                "text": "refund",
                "entities": [
                    {"start": 0, "end": 3, "label": "billing"},
                    {"start": 3, "end": 6, "label": "login"},
                ],
            }
        )
    with pytest.raises(PromptError, match="none of the run's 3 labels"):
        tokeniser.encode({"text": "refund", "entities": [{"start": 0, "end": 3, "label": "city"}]})


def test_spans_that_begin_inside_are_spans() -> None:
    assert spans_of([2, 2, 0, 1, 1, 4]) == [Span(0, 1, 0), Span(3, 3, 0), Span(4, 4, 0), Span(5, 5, 1)]


def test_long_contexts_become_windows_that_cover_everything(folder: Path) -> None:
    loaded, _, _ = prepared(folder, "question_answering", "bert")
    context = " ".join(["the quick brown fox"] * 12) + " lazy dog"
    at = context.index("lazy")
    row = {
        "line": 9,
        "question": "which dog",
        "context": context,
        "answers": [{"start": at, "text": "lazy dog"}],
    }
    made = Tokeniser(loaded.prompts, "question_answering", 24).encode(row)
    assert len(made) > 2
    assert all(len(one.ids) <= 24 and one.label == 9 for one in made)
    found = [[mark & 3 for mark in one.aux[: len(one.ids)]] for one in made]
    assert [sum(marks[1:]) > 0 for marks in found] == [False] * (len(made) - 1) + [True]
    assert all(marks[0] == 3 for marks in found[:-1])
    windows = loaded.prompts.windows("which dog", context, 24)
    covered = {place for window in windows for span in window.spans if span for place in range(*span)}
    assert covered == {place for place, letter in enumerate(context) if letter != " "}
    with pytest.raises(PromptError, match="The question has"):
        Tokeniser(loaded.prompts, "question_answering", 8).encode({**row, "question": "the " * 9})


def test_the_best_span_is_in_the_context_and_in_order() -> None:
    logits = torch.tensor([[0.0, 0.0], [9.0, 9.0], [1.0, 5.0], [4.0, 1.0], [0.0, 3.0]])
    found = best_span(logits, torch.tensor([False, False, True, True, True]))
    assert found is not None
    assert (found.first, found.last, found.score) == (3, 4, 7.0)


def test_ranks_share_ties() -> None:
    a, b = torch.tensor([1.0, 2.0, 2.0, 4.0]), torch.tensor([10.0, 30.0, 20.0, 40.0])
    assert spearman(a, b) == pytest.approx(0.9486833)
    assert spearman(torch.ones(3), torch.tensor([1.0, 2.0, 3.0])) == 0.0


def test_rows_of_another_kind_are_refused(folder: Path) -> None:
    loaded, _, _ = prepared(folder, "embedding", "bert")
    for task in METRICS:
        with pytest.raises(PromptError, match="another kind"):
            Tokeniser(loaded.prompts, cast("Any", task), 32, tuple(LABELS)).encode({"messages": []})


def test_the_same_text_twice_is_no_choice(folder: Path) -> None:
    loaded, _, _ = prepared(folder, "ranking", "bert")
    with pytest.raises(PromptError, match="no choice"):
        Tokeniser(loaded.prompts, "ranking", 32).encode({"chosen_text": "fox", "rejected_text": "fox"})


def test_rows_that_answer_one_another_are_not_dealt_out_to_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    rows = write_rows(tmp_path / "rows.jsonl", task_rows("embedding", 8))
    model = make_encoder(tmp_path / "model")
    given = {"task": "embedding", "method": "full", "base_model__family": "encoder"}
    spec = make_spec(model, rows, tmp_path / "run", **given)
    code, events = train(spec)
    assert code != 0
    assert events[-1]["code"] == "incompatible_method"
    assert "2 ranks" in events[-1]["message"]
