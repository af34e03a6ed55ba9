"""Each family trains: its first loss is that of transformers over ids made by its own tokenizer, it falls,
and the artefact answers as the trained model did."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import KINDS, make_family
from tiny import LABELS, chat_rows, class_rows, make_spec, pair_rows, write_rows
from torch.nn import functional
from training import of_type, train

from fettle_trainer.data import Dataset, Tokeniser, load_dataset
from fettle_trainer.device import Compute
from fettle_trainer.models import Loaded, load_for_training
from fettle_trainer.serve_models import load_model as load_served
from fettle_trainer.spec import parse_spec
from fettle_trainer.step import Stepper
from fettle_trainer.tokenizer import decoder_start

CPU = Compute(torch.device("cpu"), torch.float32, "test")
TASKS = {"decoder": "chat", "encoder": "classification", "seq2seq": "seq2seq"}
ROWS = 16


def rows_of(name: str) -> list[dict[str, Any]]:
    task = TASKS[KINDS[name].family]
    if task == "classification":
        # Every other row is a pair of texts.
        return [
            {**row, "text_pair": "the lazy dog" if index % 2 else None}
            for index, row in enumerate(class_rows(ROWS, seed=2))
        ]
    if task == "seq2seq" or name == "gpt2":
        return pair_rows(ROWS, seed=2)
    rows = chat_rows(ROWS, seed=2)
    return [{"messages": row["messages"][1:]} for row in rows] if name in ("mistral", "gemma3") else rows


def spec_of(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """All rows in one step, no dropout."""
    kind = KINDS[name]
    if not (folder / "model").exists():
        make_family(folder / "model", name)
    task = TASKS[kind.family]
    return make_spec(
        folder / "model",
        write_rows(folder / "rows.jsonl", rows_of(name)),
        folder / "out",
        **{
            "task": task,
            "method": kind.method,
            "base_model__family": kind.family,
            "data__labels": LABELS if task == "classification" else None,
            "hyperparameters__dropout": 0.0,
            "hyperparameters__gradient_accumulation_steps": ROWS // 4,
            "hyperparameters__num_train_epochs": 12,
            "hyperparameters__learning_rate": 0.05 if kind.method == "lora" else 0.01,
            "hyperparameters__weight_decay": 0.0,
            **changes,
        },
    )


def plain(spec: dict[str, Any]) -> Loaded:
    """As the run loads it; with the layers of transformers."""
    loaded = load_for_training(parse_spec(spec), CPU)
    if loaded.kernels is not None:
        loaded.kernels.disable()
    loaded.model.set_attn_implementation("eager")
    loaded.model.eval()
    return loaded


def decoder_loss(loaded: Loaded, spec: dict[str, Any], folder: Path) -> float:
    """Labels of all but the answers are -100; each row alone."""
    tokeniser = Tokeniser(loaded.prompts, "chat", loaded.max_length)
    rows = load_dataset(
        Path(spec["data"]["train_path"]), tokeniser, cache=folder / "other", tokenizer_sha256=""
    ).rows
    total, count = 0.0, 0
    for row in range(len(rows)):
        ids, learn = rows.ids_of(row), rows.aux_of(row).bool()
        labels = torch.where(learn, ids, -100)
        number = int(learn[1:].sum())
        total += float(loaded.model(input_ids=ids[None], labels=labels[None]).loss) * number
        count += number
    return total / count


def encoder_loss(loaded: Loaded, rows: list[dict[str, Any]]) -> float:
    tokenizer: Any = loaded.prompts.raw
    total = 0.0
    for row in rows:
        texts = (row["text"],) if row["text_pair"] is None else (row["text"], row["text_pair"])
        encoded = tokenizer(*texts, return_tensors="pt")
        label = torch.tensor([LABELS.index(row["label"])])
        total += float(loaded.model(**encoded, labels=label).loss)
    return total / len(rows)


def seq2seq_loss(loaded: Loaded, rows: list[dict[str, Any]]) -> float:
    """The model shifts its labels itself. mBART's end with the language, which is no part of an answer."""
    tokenizer: Any = loaded.prompts.raw
    encoded = tokenizer([row["prompt"] for row in rows], padding=True, return_tensors="pt")
    targets = tokenizer(text_target=[row["completion"] for row in rows], padding=True, return_tensors="pt")
    labels = targets.input_ids.masked_fill(targets.attention_mask == 0, -100)
    logits = loaded.model(
        **{key: encoded[key] for key in ("input_ids", "attention_mask")}, labels=labels
    ).logits
    learnt = labels.masked_fill(labels > tokenizer.convert_tokens_to_ids("<mask>"), -100)
    if not isinstance(tokenizer, transformers.MBartTokenizer):
        learnt = labels
    elif (learnt == labels).all():
        raise AssertionError("mBART's labels hold the target language")
    return float(functional.cross_entropy(logits.flatten(0, 1), learnt.flatten()))


@pytest.mark.parametrize("name", KINDS)
def test_family_trains(tmp_path: Path, name: str) -> None:
    spec = spec_of(tmp_path, name)
    with torch.no_grad():
        loaded = plain(spec)
        family = KINDS[name].family
        if family == "decoder":
            expected = decoder_loss(loaded, spec, tmp_path)
        else:
            expected = (encoder_loss if family == "encoder" else seq2seq_loss)(loaded, rows_of(name))
    code, events = train(spec)
    assert code == 0, events[-1]
    [data] = of_type(events, "data")
    assert (data["num_train_rows"], data["num_refused"]) == (ROWS, 0)
    losses = [event["train_loss"] for event in of_type(events, "step")]
    assert losses[0] == pytest.approx(expected, rel=2e-5)
    assert losses[-1] < 0.85 * losses[0]
    assert of_type(events, "verified")[0]["max_abs_diff"] < 1e-4 * max(1.0, math.log(1000))
    facts = json.loads((tmp_path / "out" / "artefact" / "fettle.json").read_text())
    assert facts["family"] == family


def tokens_of(folder: Path, name: str, rows: list[dict[str, Any]], **changes: Any) -> tuple[Loaded, Dataset]:
    spec = spec_of(folder, name, **changes)
    loaded = load_for_training(parse_spec(spec), CPU)
    labels = spec["data"]["labels"]
    tokeniser = Tokeniser(loaded.prompts, spec["task"], loaded.max_length, tuple(labels) if labels else None)
    path = write_rows(folder / "quirk.jsonl", rows)
    return loaded, load_dataset(path, tokeniser, cache=folder / "quirks", tokenizer_sha256="")


def read(loaded: Loaded, ids: torch.Tensor) -> list[str]:
    tokenizer: Any = loaded.prompts.raw
    return tokenizer.convert_ids_to_tokens([int(one) for one in ids])


def test_gpt2_has_no_pad_token_and_learns_its_end_all_the_same(tmp_path: Path) -> None:
    loaded, data = tokens_of(tmp_path, "gpt2", [{"prompt": "the fox", "completion": " care"}])
    assert loaded.prompts.raw.pad_token_id is None
    ids, learn = data.rows.ids_of(0), data.rows.aux_of(0)
    assert read(loaded, ids)[-1] == "<|endoftext|>"
    assert int(learn[-1]) == 1
    assert list(loaded.prompts.stop_ids()) == [int(ids[-1])]


def test_gpt2_classifies_alike_alone_and_padded_with_its_end_token(tmp_path: Path) -> None:
    """The text ends with the token that fills up: masks go by length."""
    changes = {"task": "classification", "data__labels": LABELS}
    rows = [
        {"text": text, "label": "billing"} for text in ("the fox", "the lazy dog and the quick brown fox")
    ]
    loaded, data = tokens_of(tmp_path, "gpt2", rows, **changes)
    stepper = Stepper(loaded, "classification")
    together = stepper.answers(data.rows, [0, 1])
    alone = torch.cat([stepper.answers(data.rows, [row]) for row in (0, 1)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def test_t5_reads_sentinels_as_text_and_writes_one_step_late(tmp_path: Path) -> None:
    row = {"prompt": "the fox <extra_id_0>", "completion": "care <extra_id_1>"}
    loaded, data = tokens_of(tmp_path, "t5", [row, {"prompt": "the fox", "completion": "care"}])
    tokenizer: Any = loaded.prompts.raw
    sentinels = {tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>") for number in range(4)}
    assert len(sentinels) == 4
    source, target = data.rows.ids_of(0), data.rows.aux_of(0)
    assert not sentinels & {int(one) for one in (*source, *target)}
    batch = Stepper(loaded, "seq2seq").collate(data.rows, [0, 1])
    assert batch.decoder_input_ids is not None
    written = batch.decoder_input_ids[0]
    assert int(written[0]) == tokenizer.pad_token_id == loaded.start_id
    assert torch.equal(written[1 : len(target)], target[:-1])
    assert int(target[-1]) == tokenizer.eos_token_id
    # Padding of the shorter target is no label.
    assert batch.targets_N.numel() == len(target) + len(data.rows.aux_of(1))


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta"])
def test_roberta_puts_two_separators_between_texts_and_ends_two_positions_early(
    tmp_path: Path, name: str
) -> None:
    rows = [
        {"text": "the fox", "text_pair": "the dog", "label": "login"},
        {"text": "the fox " * 80, "text_pair": None, "label": "login"},
    ]
    loaded, data = tokens_of(tmp_path, name, rows)
    read_pair = read(loaded, data.rows.ids_of(0))
    assert read_pair[0] == "<s>"
    middle = read_pair.index("</s>")
    assert read_pair[middle : middle + 2] == ["</s>", "</s>"]
    assert read_pair.count("</s>") == 3
    # 66 positions, counted from behind the padding's own.
    assert (loaded.max_length, len(data.rows.ids_of(1)), data.num_truncated) == (64, 64, 1)
    answers = Stepper(loaded, "classification").answers(data.rows, [0, 1])
    assert answers.isfinite().all()


@pytest.mark.parametrize("name", ["bert", "electra", "deberta-v2"])
def test_pairs_carry_token_types_where_the_family_has_them(tmp_path: Path, name: str) -> None:
    row = {"text": "the fox", "text_pair": "the dog", "label": "login"}
    loaded, data = tokens_of(tmp_path, name, [row])
    assert read(loaded, data.rows.ids_of(0)).count("[SEP]") == 2
    assert {int(one) for one in data.rows.aux_of(0)} == {0, 1}


def test_mbart_names_its_languages_on_both_sides(tmp_path: Path) -> None:
    loaded, data = tokens_of(tmp_path, "mbart", [{"prompt": "the fox", "completion": "care"}])
    assert loaded.model.config.decoder_start_token_id is None
    assert read(loaded, data.rows.ids_of(0))[-2:] == ["</s>", "en_XX"]
    assert read(loaded, data.rows.aux_of(0))[-1] == "</s>"
    batch = Stepper(loaded, "seq2seq").collate(data.rows, [0])
    assert batch.decoder_input_ids is not None
    assert read(loaded, batch.decoder_input_ids[0])[0] == "ro_RO"


def test_mbart_is_served_from_its_target_language(tmp_path: Path) -> None:
    served = load_served(make_family(tmp_path, "mbart"), "seq2seq", device=CPU.device, dtype=torch.float32)
    assert decoder_start(served.model, served.tokenizer) == served.tokenizer.convert_tokens_to_ids("ro_RO")


def test_phi3_stops_at_the_end_its_template_writes(tmp_path: Path) -> None:
    """Which is not the EOS of its tokenizer."""
    loaded, data = tokens_of(tmp_path, "phi3", chat_rows(1))
    tokenizer: Any = loaded.prompts.raw
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert end != tokenizer.eos_token_id
    assert end in loaded.prompts.stop_ids()
    ids, learn = data.rows.ids_of(0), data.rows.aux_of(0)
    assert end in [int(one) for one, learnt in zip(ids, learn, strict=True) if learnt]


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_exactly_one_bos_by_tokenizer_or_by_template(tmp_path: Path, name: str) -> None:
    rows = chat_rows(1)
    if name != "llama":
        rows[0]["messages"] = rows[0]["messages"][1:]
    loaded, data = tokens_of(tmp_path, name, rows)
    bos = loaded.prompts.raw.bos_token_id
    ids = [int(one) for one in data.rows.ids_of(0)]
    assert (ids[0], ids.count(bos)) == (bos, 1)
    assert loaded.prompts.generation_prompt(rows[0]["messages"][:-1])[:1] == [bos]
