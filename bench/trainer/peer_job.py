"""The same job as one would write it with the peer: `peer_job.py CONFIG.json RESULT.json`.

Imports, rows, tokenising, one epoch, saving, then loading what was saved and comparing a few answers.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

_COMPARED, _TOLERANCE = 4, 5e-2


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(config["num_threads"])
    chosen = config["hyperparameters"]
    labels = config["labels"]
    tokenizer = AutoTokenizer.from_pretrained(config["model"])

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        encoded = tokenizer(batch["text"], truncation=True, max_length=chosen["max_length"])
        return {**encoded, "labels": [labels.index(label) for label in batch["label"]]}

    cache = str(Path(config["output_dir"]) / "cache")
    rows = load_dataset("json", data_files=config["rows"], split="train", cache_dir=cache)
    rows = rows.map(encode, batched=True, remove_columns=rows.column_names)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        config["model"], num_labels=len(labels), dtype=torch.float32
    )
    settings = TrainingArguments(
        output_dir=config["output_dir"],
        per_device_train_batch_size=chosen["per_device_train_batch_size"],
        num_train_epochs=chosen["num_train_epochs"],
        learning_rate=chosen["learning_rate"],
        lr_scheduler_type=chosen["lr_scheduler_type"],
        weight_decay=chosen["weight_decay"],
        max_grad_norm=chosen["max_grad_norm"],
        seed=config["seed"],
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **config["flags"],
    )
    trainer = Trainer(
        model=model, args=settings, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)
    )
    trainer.train()
    final = Path(config["output_dir"]) / "final"
    trainer.save_model(str(final))
    tokenizer.save_pretrained(final)
    compare(model, final, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    num_tokens = sum(len(ids) for ids in rows["input_ids"])
    result = {"ended_at": time.time(), "peak_rss_bytes": peak, "num_tokens": num_tokens}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


@torch.no_grad()
def compare(model: Any, final: Path, rows: Any) -> None:
    saved: Any = AutoModelForSequenceClassification.from_pretrained(final, dtype=torch.float32)
    for one in (model, saved):
        one.eval()
    for row in range(_COMPARED):
        ids = torch.tensor([rows[row]["input_ids"]])
        difference = (model(input_ids=ids).logits - saved(input_ids=ids).logits).abs().max()
        # The model in memory may answer under the trainer's autocast.
        if not difference < _TOLERANCE:
            raise SystemExit(f"the saved model answers otherwise by {float(difference)}")


if __name__ == "__main__":
    main()
