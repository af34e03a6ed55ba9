"""Tiny random models and a tokenizer trained in the test: what every test trains on."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
# Drops earlier thoughts and keeps the newest, as Qwen3 does.
THINKING = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['role'] == 'assistant' and loop.last -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}"
    "{{- message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}"
    "{%- if enable_thinking is defined and not enable_thinking -%}"
    "{{- '<think>\n\n</think>\n\n' -}}"
    "{%- endif -%}"
    "{%- endif -%}"
)
# BOS by the template, no system turn, model instead of assistant: Gemma's way.
GEMMA = (
    "{{- bos_token -}}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{{- raise_exception('System role not supported') -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{- '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>model\n' -}}{%- endif -%}"
)
CORPUS = [
    "the quick brown fox jumps over the lazy dog and answers every question with care",
    "system user assistant model think billing refund invoice late broken login password",
    '{"product": "app", "urgency": "high", "language": "en", "summary": "cannot log in"}',
    "grüße aus köln, été à paris, привет, 你好",
]
SPECIAL = ["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>", "<unk>"]


def make_tokenizer(
    template: str | None = CHATML, *, adds_bos: bool = False, adds_eos: bool = False, size: int = 400
) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", 1)]
        )
    if adds_eos:
        core.post_processor = processors.TemplateProcessing(
            single="$A <|im_end|>", special_tokens=[("<|im_end|>", 3)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<unk>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = template
    return tokenizer


def make_decoder(folder: Path, kind: str = "llama", template: str | None = CHATML) -> Path:
    """A random decoder with its tokenizer, saved. About 60 thousand weights."""
    tokenizer = make_tokenizer(template)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    wide = {
        **shape,
        "intermediate_size": 48,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "head_dim": 8,
    }
    ids = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
    configs: dict[str, Any] = {
        "llama": lambda: transformers.LlamaConfig(**wide, **ids),
        "qwen2": lambda: transformers.Qwen2Config(**wide, **ids),
        "qwen3": lambda: transformers.Qwen3Config(**wide, **ids),
        "gemma3": lambda: transformers.Gemma3TextConfig(
            **wide, **ids, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
        "gpt2": lambda: transformers.GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            vocab_size=len(tokenizer),
            bos_token_id=1,
            eos_token_id=3,
        ),
    }
    return save(build(transformers.AutoModelForCausalLM, configs[kind]()), tokenizer, folder)


def build(loader: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return loader.from_config(config)


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    # Most random models of small width have nearly uniform logits; spread them so that a wrong mask shows.
    spread = 1 if model.config.model_type == "t5" else 4
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_layers(model: Path, count: int) -> Path:
    config: Any = transformers.AutoConfig.from_pretrained(model)
    config.num_hidden_layers = config.num_decoder_layers = count
    getattr(transformers, config.architectures[0])(config).save_pretrained(model)
    return model


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(
        json.dumps({"line": number, **row}, ensure_ascii=False) + "\n" for number, row in enumerate(rows, 1)
    )
    path.write_text(text, encoding="utf-8")
    return path


def chat_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of one to three turns with answers that can be learnt."""
    random_ = random.Random(seed)
    words = " ".join(CORPUS[:2]).split()
    rows: list[dict[str, Any]] = []
    for index in range(count):
        messages: list[dict[str, Any]] = [{"role": "system", "content": "answer every question"}]
        for _ in range(random_.randint(1, 3)):
            question = " ".join(random_.choices(words, k=random_.randint(1, 12))) + f" {index}"
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": question.split()[0] + " lazy dog"})
        rows.append({"messages": messages})
    return rows


def class_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    random_ = random.Random(seed)
    topics = {
        "billing": ["refund", "invoice", "late"],
        "login": ["password", "login", "broken"],
        "other": ["fox", "dog"],
    }
    rows: list[dict[str, Any]] = []
    for index in range(count):
        label = list(topics)[index % 3]
        words = random_.choices(topics[label], k=random_.randint(1, 5)) + random_.choices(
            CORPUS[0].split(), k=3
        )
        rows.append({"text": " ".join(words) + f" {index}", "label": label})
    return rows


def pair_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    random_ = random.Random(seed)
    words = CORPUS[0].split()
    rows: list[dict[str, Any]] = []
    for index in range(count):
        chosen = random_.choices(words, k=random_.randint(2, 7))
        rows.append({"prompt": " ".join(chosen) + f" {index}", "completion": chosen[0] + " the fox"})
    return rows


def task_rows(task: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the tasks with a head or vectors, made of the rows of `class_rows`."""
    rows = class_rows(count, seed)
    made: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        text, label = row["text"], row["label"]
        other = rows[(index + 1) % count]["text"]
        word = text.split()[0]
        made.append(
            {
                "classification": {"text": text, "label": label},
                "multilabel_classification": {
                    "text": text,
                    "labels": [name for name in LABELS if name == label or index % 4 == 0],
                },
                "regression": {"text": text, "score": 40.0 + 10.0 * LABELS.index(label)},
                "ranking": {"chosen_text": text, "rejected_text": other, "prompt": "login"},
                "token_classification": {
                    "text": text,
                    "entities": [{"start": 0, "end": len(word), "label": label}],
                },
                "question_answering": {
                    "question": "which fox",
                    "context": text,
                    "answers": [] if index % 3 == 2 else [{"start": 0, "text": word}],
                },
                "embedding": {
                    "anchor": text,
                    "positive": f"{label} {word}",
                    **({"negative": other} if index % 2 else {}),
                },
            }[task]
        )
    return made


def preference_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with an answer to learn, and one to leave."""
    rows: list[dict[str, Any]] = []
    for row in chat_rows(count, seed):
        *messages, answer = row["messages"]
        other = {"role": "assistant", "content": "login broken"}
        rows.append({"messages": messages, "preferred": [answer], "non_preferred": [other]})
    return rows


LABELS = ["billing", "login", "other"]


def make_spec(model: Path, rows: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A spec as the server writes it; `changes` by dotted names with `__` for the dot."""
    spec: dict[str, Any] = {
        "version": 1,
        "run_id": "run_1",
        "attempt": 1,
        "task": "chat",
        "method": "lora",
        "base_model": {"name": "tiny", "path": str(model), "family": "decoder", "adapter_path": None},
        "data": {
            "train_path": str(rows),
            "train_sha256": hashlib.sha256(rows.read_bytes()).hexdigest(),
            "validation_path": None,
            "labels": None,
        },
        "output_dir": str(output),
        "hyperparameters": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 0.01,
            "lr_scheduler_type": "linear",
            "warmup_ratio": 0.1,
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "label_smoothing_factor": 0.0,
            "dropout": None,
            "max_length": 128,
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.0,
            "target_modules": "all-linear",
            "trainable_layers": 1,
            "num_virtual_tokens": 5,
            "early_stopping_patience": 0,
            "eval_steps": 0,
            "sampling": "shuffled",
            "class_weights": "none",
            "target_mean": 0.0,
            "target_std": 1.0,
            "beta": 0.1,
            "distill_weight": 0.5,
            "distill_temperature": 2.0,
        },
        "seed": 7,
        "runtime": {
            "device": "cpu",
            "dtype": "float32",
            "num_threads": 1,
            "parallelism": "ddp",
            "layers": "auto",
            "checkpoint_seconds": 3600,
            "checkpoint_steps": 0,
            "keep_checkpoints": 3,
            "heartbeat_seconds": 0.5,
        },
    }
    for name, value in changes.items():
        place = spec
        *parents, leaf = name.split("__")
        for parent in parents:
            place = place[parent]
        assert leaf in place, name
        place[leaf] = value
    return spec


def read_events(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def make_encoder(folder: Path, kind: str = "bert") -> Path:
    """A random encoder without a classification head, as MiniLM and its like are shipped."""
    tokenizer = make_wordpiece()
    size = len(tokenizer)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    configs: dict[str, Any] = {
        "bert": lambda: transformers.BertConfig(
            **shape, vocab_size=size, max_position_embeddings=64, pad_token_id=0
        ),
        "roberta": lambda: transformers.RobertaConfig(
            **shape,
            vocab_size=size,
            max_position_embeddings=66,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        ),
        "distilbert": lambda: transformers.DistilBertConfig(
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=48,
            vocab_size=size,
            max_position_embeddings=64,
            pad_token_id=0,
        ),
    }
    return save(build(transformers.AutoModel, configs[kind]()), tokenizer, folder)


def make_wordpiece() -> PreTrainedTokenizerFast:
    """Written out, not trained: tokenizers' WordPieceTrainer numbers its pieces anew in each process."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for line in CORPUS for word in line.split() if word.isalpha()})
    letters = sorted(set("".join(CORPUS) + "abcdefghijklmnopqrstuvwxyz0123456789") - {" "})
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def make_seq2seq(folder: Path, kind: str = "t5") -> Path:
    tokenizer = make_tokenizer(None, adds_eos=True)
    size = len(tokenizer)
    marked = {"pad_token_id": 0, "eos_token_id": 3, "vocab_size": size}
    layers = {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "d_model": 32,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
    }
    configs: dict[str, Any] = {
        "t5": lambda: transformers.T5Config(
            **marked, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        ),
        "bart": lambda: transformers.BartConfig(
            **marked, **layers, decoder_start_token_id=3, forced_eos_token_id=None
        ),
        "marian": lambda: transformers.MarianConfig(
            **marked, **layers, decoder_start_token_id=0, forced_eos_token_id=None
        ),
    }
    return save(build(transformers.AutoModelForSeq2SeqLM, configs[kind]()), tokenizer, folder)
