"""Makes a small T5 from text alone: its own tokenizer, then span corruption and translation, on one CPU.

``python make_base.py ROWS DEST [--steps N]``. ROWS: JSON lines with ``kind`` (``restore`` or ``translate``),
``prompt`` and ``completion``. The same rows, steps and number of threads give the same weights. Progress on
stdout, one line every few seconds. DEST appears whole or not at all.
"""

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from fettle_trainer.fetch_folder import whole_folder

VOCABULARY = 4000
SENTINELS = [f"<extra_id_{number}>" for number in range(16)]
BATCH = 32
MAX_TOKENS = 96
PEAK_LEARNING_RATE = 2e-3
CORRUPTED = 0.3
MEAN_SPAN = 3


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the texts with T5's special tokens; every text ends with ``</s>``."""
    words: list[Any] = [pre_tokenizers.Digits(individual_digits=True)]
    words.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>", "<unk>", *SENTINELS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = [("</s>", tokenizer.token_to_id("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=end)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SENTINELS,
        model_max_length=512,
    )


def corrupt(ids: list[int], sentinels: list[int], chance: random.Random) -> tuple[list[int], list[int]]:
    """T5's span corruption: runs of tokens are replaced by sentinels, which the answer spells out."""
    body, end = ids[:-1], ids[-1]
    source: list[int] = []
    target: list[int] = []
    at, used = 0, 0
    while at < len(body):
        if used < len(sentinels) and chance.random() < CORRUPTED / MEAN_SPAN:
            length = chance.randint(1, 2 * MEAN_SPAN - 1)
            source.append(sentinels[used])
            target += [sentinels[used], *body[at : at + length]]
            at, used = at + length, used + 1
        else:
            source.append(body[at])
            at += 1
    return [*source, end], [*target, end]


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    """(B, L) with ``value`` after the end of each row."""
    length = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


class Rows:
    """Token ids of the rows, drawn as batches of (sources, targets)."""

    def __init__(self, tokenizer: Any, rows: list[dict[str, str]]) -> None:
        def ids(text: str) -> list[int]:
            return tokenizer(text).input_ids[:MAX_TOKENS]

        self.chance = random.Random(0)
        self.sentinels: list[int] = tokenizer.convert_tokens_to_ids(SENTINELS)
        self.encoded = [(row["kind"], ids(row["prompt"]), ids(row["completion"])) for row in rows]

    def draw(self) -> list[tuple[list[int], list[int]]]:
        """``BATCH`` pairs; a row to restore is corrupted anew each time."""
        drawn = [self.encoded[self.chance.randrange(len(self.encoded))] for _ in range(BATCH)]
        return [
            corrupt(source, self.sentinels, self.chance) if kind == "restore" else (source, target)
            for kind, source, target in drawn
        ]


def train(model: Any, rows: Rows, steps: int) -> None:
    """``steps`` batches; the learning rate goes up over 5 % of them, then down along a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01)
    padding = model.config.pad_token_id
    started = told = time.monotonic()
    model.train()
    for step in range(steps):
        pairs = rows.draw()
        rate = min((step + 1) / (0.05 * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * rate
        input_ids = pad([source for source, _ in pairs], padding)
        labels = pad([target for _, target in pairs], -100)
        loss = model(input_ids=input_ids, attention_mask=(input_ids != padding).long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if time.monotonic() - told > 5 or step + 1 == steps:
            told = time.monotonic()
            left = (told - started) / (step + 1) * (steps - step - 1)
            print(f"step {step + 1}/{steps}: loss {loss.item():.3f}, about {left:.0f} s left", flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("dest", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    options = parser.parse_args()
    rows = [cast(dict[str, str], json.loads(line)) for line in options.rows.read_text("utf-8").splitlines()]
    torch.manual_seed(0)
    tokenizer = make_tokenizer([text for row in rows for text in (row["prompt"], row["completion"])])
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=256,
        d_kv=32,
        d_ff=640,
        num_heads=8,
        num_layers=3,
        num_decoder_layers=3,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        dropout_rate=0.1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        n_positions=512,
    )
    model = T5ForConditionalGeneration(config)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"a T5 of {size / 1e6:.1f} million parameters, vocabulary {len(tokenizer)}, {len(rows)} rows",
        flush=True,
    )
    train(model, Rows(tokenizer, rows), options.steps)
    with whole_folder(options.dest) as folder:
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
