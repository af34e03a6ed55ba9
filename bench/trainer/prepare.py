"""Writes once what both sides of a comparison read: base weights, rows, their token ids, the order of the
batches, and the first adapter. ``prepare.py CONFIG.json``; runs in the trainer's own environment.

Folder layout: model/, rows.jsonl, held_out.jsonl, adapter/ (LoRA alone), tokens.json
{"train": [{"ids": [...], "labels": [...] | int}], "held_out": [...], "windows": [[row, ...], ...]}; of a pair
of texts `ids` holds both, and `labels` the length of each.
"""

import json
import random
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from fettle_trainer.checksums import tokenizer_sha256
from fettle_trainer.collate import epoch_windows
from fettle_trainer.data import Tokeniser, TokenRows, load_dataset
from fettle_trainer.fetch import fetch
from fettle_trainer.prompt import PromptEncoder
from rows import RowLengths, chat_rows, classification_rows, embedding_rows, pair_rows, whole_words

IGNORED = -100
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_model(config: dict[str, Any], folder: Path) -> None:
    """The bundled model; an encoder with dropout off on both sides, for classification with a head drawn from
    the seed."""
    if config["model"] == "t5-small-shape":
        make_t5(config, folder / "model")
        return
    source = fetch(config["model"], folder / "bundled", lambda *_: None)
    layers = {} if config["num_layers"] is None else {"num_hidden_layers": config["num_layers"]}
    torch.manual_seed(config["seed"])
    if config["task"] == "embedding":
        AutoModel.from_pretrained(source, **layers, **NO_DROPOUT).save_pretrained(folder / "model")
        AutoTokenizer.from_pretrained(source).save_pretrained(folder / "model")
        return
    if config["task"] != "classification":
        if not layers:
            (folder / "model").symlink_to(source, target_is_directory=True)
            return
        AutoModelForCausalLM.from_pretrained(source, **layers).save_pretrained(folder / "model")
        AutoTokenizer.from_pretrained(source).save_pretrained(folder / "model")
        return
    labels = [f"class {number}" for number in range(4)]
    settings = AutoConfig.from_pretrained(
        source,
        **layers,
        num_labels=4,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        **NO_DROPOUT,
        classifier_dropout=0.0,
    )
    model = AutoModelForSequenceClassification.from_pretrained(source, config=settings)
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "model")


def make_t5(config: dict[str, Any], folder: Path) -> None:
    """T5-small's shape with random weights, and a tokenizer of made-up words. Dropout off on both sides."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    known = ["<pad>", "</s>", "<unk>", *(one + other for one in syllables for other in syllables)]
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(known)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(config["seed"])
    num_layers = config["num_layers"] or 6
    settings = T5Config(num_layers=num_layers, num_heads=8, dropout_rate=0.0, decoder_start_token_id=0)
    T5ForConditionalGeneration(settings).save_pretrained(folder)


def endless_rows(config: dict[str, Any], words: list[str], dice: random.Random) -> Any:
    lengths = RowLengths(**config["lengths"])
    if config["target_lengths"]:
        make_pairs = pair_rows if config["task"] == "seq2seq" else embedding_rows
        return make_pairs(words, (lengths, RowLengths(**config["target_lengths"])), dice)
    make = classification_rows if config["task"] == "classification" else chat_rows
    return make(words, lengths, dice)


def make_rows(config: dict[str, Any], folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    dice = random.Random(config["seed"])
    words = whole_words(tokenizer, 1000)
    endless = endless_rows(config, words, dice)
    for name, count in (("rows", config["num_rows"]), ("held_out", config["num_held_out"])):
        lines = [json.dumps({**row, "line": number + 1}) for number, row in enumerate(islice(endless, count))]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def tokens_of(config: dict[str, Any], folder: Path, name: str) -> TokenRows:
    """By the trainer's own tokenisation: both sides train on the same ids and learn the same positions."""
    raw = AutoTokenizer.from_pretrained(folder / "model")
    labels = tuple(config["labels"]) if config["labels"] else None
    tokeniser = Tokeniser(PromptEncoder(raw), config["task"], config["hyperparameters"]["max_length"], labels)
    sha256 = tokenizer_sha256(folder / "model")
    dataset = load_dataset(
        folder / f"{name}.jsonl", tokeniser, cache=folder / "cache", tokenizer_sha256=sha256
    )
    if dataset.num_refused or dataset.num_truncated:
        raise SystemExit(f"{name}: {dataset.num_refused} rows refused, {dataset.num_truncated} cut")
    return dataset.rows


def plain(config: dict[str, Any], rows: TokenRows) -> list[dict[str, Any]]:
    if config["task"] == "classification":
        return [
            {"ids": rows.ids_of(row).tolist(), "labels": int(rows.labels[row])} for row in range(len(rows))
        ]
    if config["task"] in ("seq2seq", "embedding"):
        return [
            {"ids": rows.ids_of(row).tolist(), "labels": rows.aux_of(row).tolist()}
            for row in range(len(rows))
        ]
    found: list[dict[str, Any]] = []
    for row in range(len(rows)):
        ids, learnt = rows.ids_of(row).tolist(), rows.aux_of(row).tolist()
        labels = [token if learn else IGNORED for token, learn in zip(ids, learnt, strict=True)]
        found.append({"ids": ids, "labels": labels})
    return found


def make_adapter(config: dict[str, Any], folder: Path) -> None:
    """A PEFT adapter with B = 0: both sides go on from the same A."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(config["seed"])
    chosen = config["hyperparameters"]
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    settings = LoraConfig(
        r=chosen["lora_r"],
        lora_alpha=chosen["lora_alpha"],
        lora_dropout=chosen["lora_dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    get_peft_model(model, settings).save_pretrained(folder / "adapter")


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(config["folder"])
    make_model(config, folder)
    make_rows(config, folder)
    train, held_out = tokens_of(config, folder, "rows"), tokens_of(config, folder, "held_out")
    windows = epoch_windows(
        train,
        config["hyperparameters"]["per_device_train_batch_size"],
        config["epoch_seed"],
        by_length=config["by_length"],
    )
    tokens = {"train": plain(config, train), "held_out": plain(config, held_out), "windows": windows}
    (folder / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    if config["method"] == "lora":
        make_adapter(config, folder)


if __name__ == "__main__":
    main()
