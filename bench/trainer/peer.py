"""One run of a peer: ``peer.py CONFIG.json RESULT.json``; runs in the bench's own environment.

CONFIG names the folder of prepare.py, the peer and its flags. RESULT: {"steps": [{"step", "loss",
"num_tokens" so far, "time" Unix seconds}], "first_began", "held_out_loss", "peak_rss_bytes" when trained,
"versions"}.
"""

import json
import resource
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

IGNORED = -100
# Rows whose texts are answers to each other in an evaluation, as our trainer has it (joint.py).
EVALUATED_TOGETHER = 64
SCALE = 20.0


@dataclass
class Record(TrainerCallback):
    """Loss and non-pad tokens of each step, at the time it ended."""

    num_tokens: int = 0
    first_began: float = 0.0
    steps: list[dict[str, float]] = field(default_factory=list)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.first_began = self.first_began or time.time()

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self.steps.append({"step": state.global_step, "num_tokens": self.num_tokens, "time": time.time()})

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if logs and "loss" in logs and self.steps:
            self.steps[-1]["loss"] = float(logs["loss"])


def counted(trainer_class: Any, record: Record) -> Any:
    """The peer's own class, which also counts the tokens that are not padding."""

    class Counted(trainer_class):
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
            masks = [mask for name, mask in inputs.items() if name.endswith("attention_mask")]
            record.num_tokens += sum(int(mask.sum()) for mask in masks)
            if "decoder_input_ids" in inputs:
                record.num_tokens += int((inputs["labels"] != IGNORED).sum())
            return super().training_step(model, inputs, *rest, **more)

    return Counted


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """What both peers share with our spec, then the flags of this run."""
    chosen = config["hyperparameters"]
    total = len(config["windows"]) * chosen["num_train_epochs"]
    same = {
        "output_dir": config["output_dir"],
        "per_device_train_batch_size": chosen["per_device_train_batch_size"],
        "gradient_accumulation_steps": chosen["gradient_accumulation_steps"],
        "num_train_epochs": chosen["num_train_epochs"],
        "learning_rate": chosen["learning_rate"],
        "lr_scheduler_type": chosen["lr_scheduler_type"],
        "warmup_steps": round(chosen["warmup_ratio"] * total),
        "weight_decay": chosen["weight_decay"],
        "max_grad_norm": chosen["max_grad_norm"],
        "seed": config["seed"],
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "logging_first_step": True,
        "disable_tqdm": True,
    }
    return {**same, **config["flags"]}


def decoder_trainer(config: dict[str, Any], rows: list[dict[str, Any]], record: Record) -> Any:
    from datasets import Dataset
    from peft import PeftModel
    from trl import SFTConfig, SFTTrainer

    folder = Path(config["folder"])
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    if config["method"] == "lora":
        model = PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)
    data = Dataset.from_list([{"input_ids": row["ids"], "labels": row["labels"]} for row in rows])
    settings = SFTConfig(
        **arguments(config),
        max_length=config["hyperparameters"]["max_length"],
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return counted(SFTTrainer, record)(
        model=model,
        args=settings,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[record],
    )


def encoder_trainer(config: dict[str, Any], rows: list[dict[str, Any]], record: Record) -> Any:
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    folder = Path(config["folder"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", dtype=torch.float32)
    if config["method"] == "head":
        model.base_model.requires_grad_(False)
    data = Dataset.from_list(
        [
            {"input_ids": row["ids"], "attention_mask": [1] * len(row["ids"]), "labels": row["labels"]}
            for row in rows
        ]
    )
    return counted(Trainer, record)(
        model=model,
        args=TrainingArguments(**arguments(config)),
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[record],
    )


def seq2seq_trainer(config: dict[str, Any], rows: list[dict[str, Any]], record: Record) -> Any:
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    folder = Path(config["folder"])
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model", dtype=torch.float32)
    data = Dataset.from_list(
        [
            {"input_ids": row["ids"], "attention_mask": [1] * len(row["ids"]), "labels": row["labels"]}
            for row in rows
        ]
    )
    return counted(Seq2SeqTrainer, record)(
        model=model,
        args=Seq2SeqTrainingArguments(**arguments(config)),
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(folder / "model"), model=model),
        callbacks=[record],
    )


def embedding_trainer(config: dict[str, Any], rows: list[dict[str, Any]], record: Record) -> Any:
    """Its own collator fills up token ids that are there already, each column by itself as with texts."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    trunk = Transformer(str(Path(config["folder"]) / "model"))
    model = SentenceTransformer(
        modules=[trunk, Pooling(trunk.get_embedding_dimension(), "mean")], device="cpu"
    )
    flags = dict(config["flags"])
    if flags.pop("train_sampling_strategy", None) == "sequential":
        flags["batch_sampler"] = in_sequence
    pairs = [texts_of(row) for row in rows]
    data = Dataset.from_list([{"anchor": anchor, "positive": positive} for anchor, positive in pairs])

    def filled(ids: list[list[int]], **_: Any) -> Any:
        return trunk.tokenizer.pad({"input_ids": ids}, return_tensors="pt")

    return counted(SentenceTransformerTrainer, record)(
        model=model,
        args=SentenceTransformerTrainingArguments(**arguments({**config, "flags": flags})),
        train_dataset=data,
        loss=MultipleNegativesRankingLoss(model, scale=SCALE),
        data_collator=SentenceTransformerDataCollator(preprocess_fn=filled),
        callbacks=[record],
    )


def in_sequence(data: Any, *, batch_size: int, drop_last: bool, **_: Any) -> Any:
    """A batch sampler as its documentation lets one give: the rows as they lie."""
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    return DefaultBatchSampler(SequentialSampler(data), batch_size=batch_size, drop_last=drop_last)


def texts_of(row: dict[str, Any]) -> list[list[int]]:
    """Token ids of each text of a row."""
    return [part.tolist() for part in torch.tensor(row["ids"]).split(row["labels"])]


MAKERS = {
    "classification": encoder_trainer,
    "chat": decoder_trainer,
    "seq2seq": seq2seq_trainer,
    "embedding": embedding_trainer,
}


def losses_of(model: Any, task: str, row: dict[str, Any]) -> tuple[float, int]:
    """Summed over what is learnt of one row, and how much that is."""
    ids, labels = torch.tensor([row["ids"]]), torch.tensor(row["labels"])
    if task == "classification":
        return float(functional.cross_entropy(model(input_ids=ids).logits.float(), labels[None])), 1
    if task == "seq2seq":
        logits = model(input_ids=ids, labels=labels[None]).logits.float()[0]
    else:
        logits, labels = model(input_ids=ids).logits.float()[0, :-1], labels[1:]
    total = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return float(total), int((labels != IGNORED).sum())


def ranking_loss(model: Any, rows: list[dict[str, Any]]) -> float:
    """Mean over rows, each among those of its part, longest first."""
    rows = sorted(rows, key=lambda row: -len(row["ids"]))
    total = 0.0
    for start in range(0, len(rows), EVALUATED_TOGETHER):
        texts = [texts_of(row) for row in rows[start : start + EVALUATED_TOGETHER]]
        anchors, positives = (
            functional.normalize(torch.cat([vector_of(model, ids) for ids in side]), dim=-1)
            for side in zip(*texts, strict=True)
        )
        right = torch.arange(len(texts))
        total += float(functional.cross_entropy(SCALE * anchors @ positives.T, right, reduction="sum"))
    return total / len(rows)


def vector_of(model: Any, ids: list[int]) -> torch.Tensor:
    features = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    return model(features)["sentence_embedding"].float()


@torch.no_grad()
def held_out_loss(model: Any, task: str, rows: list[dict[str, Any]]) -> float:
    """Mean over learnt tokens, or over rows; one row at a time, so that no padding can matter."""
    model.eval()
    if task == "embedding":
        return ranking_loss(model, rows)
    found = [losses_of(model, task, row) for row in rows]
    return sum(loss for loss, _ in found) / sum(count for _, count in found)


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(config["num_threads"])
    tokens = json.loads((Path(config["folder"]) / "tokens.json").read_text(encoding="utf-8"))
    config["windows"] = tokens["windows"][: config["max_steps"] or None]
    # In the order of our own batches: a peer told to read in sequence trains on the very same ones.
    rows = [tokens["train"][row] for window in config["windows"] for row in window]
    record = Record()
    trainer = MAKERS[config["task"]](config, rows, record)
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    held_out = None
    if config["evaluate"]:
        held_out = held_out_loss(trainer.model, config["task"], tokens["held_out"])
    names = ["torch", "transformers", "trl", "peft", "accelerate", "datasets", "sentence-transformers"]
    result = {
        "steps": record.steps,
        "first_began": record.first_began,
        "held_out_loss": held_out,
        "peak_rss_bytes": peak,
        "versions": {name: version(name) for name in names},
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
