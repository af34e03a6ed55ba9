"""Writes tiny models with random weights, their tokenizers, and PEFT adapters for the serving tests.

`python serve_folders.py OUT [NAME ...]` writes them all, or those named. Everything follows from fixed seeds.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
SPECIAL = ["<|endoftext|>", "<pad>", "<|im_start|>", "<|im_end|>", "[CLS]", "[SEP]"]
TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "Grüße aus München: die Straße war naß, 漢字 and emoji 🦊 too.",
    '{"product": "phone", "urgency": 2, "language": "en", "summary": null, "ok": true}',
    "my parcel has not come, please help; the invoice is wrong",
]


def write_tokenizer(folder: Path, kind: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE. `kind`: chatml, plain (no template), encoder ([CLS] x [SEP]), seq2seq (x EOS)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    if kind == "encoder":
        pair = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
        tokenizer.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", pair
        )
    elif kind == "seq2seq":
        end = [("<|endoftext|>", ids["<|endoftext|>"])]
        tokenizer.post_processor = processors.TemplateProcessing("$A <|endoftext|>", None, end)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>" if kind == "chatml" else "<|endoftext|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "[CLS]", "[SEP]"],
        model_max_length=256,
    )
    if kind == "chatml":
        fast.chat_template = CHATML
    fast.save_pretrained(str(folder))
    return fast


def save(model: PreTrainedModel, folder: Path, kind: str) -> PreTrainedTokenizerFast:
    """Random weights are made larger than usual, so that the greedy choice is never a near tie."""
    tokenizer = write_tokenizer(folder, kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.save_pretrained(str(folder))
    return tokenizer


def write_adapter(base: PreTrainedModel, folder: Path, options: dict[str, object], seed: int) -> None:
    """A PEFT adapter whose B is not zero, so that it changes what the base says."""
    torch.manual_seed(seed)
    config = IA3Config if "feedforward_modules" in options else LoraConfig
    peft = get_peft_model(base, config(**options))  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.4)
            elif "magnitude" in name or "ia3_l" in name:
                parameter.mul_(torch.rand(parameter.shape) + 0.5)
    peft.save_pretrained(str(folder))
    peft.unload()


def write_virtual(base: PreTrainedModel, out: Path) -> None:
    """Virtual tokens as PEFT writes them: `<model>-prompt` and `<model>-prefix`."""
    for kind in (PromptTuningConfig, PrefixTuningConfig):
        torch.manual_seed(112)
        peft = get_peft_model(base, kind(task_type="CAUSAL_LM", num_virtual_tokens=5))
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "prompt_encoder" in name:
                    parameter.mul_(2.0)
        which = "prompt" if kind is PromptTuningConfig else "prefix"
        peft.save_pretrained(str(out / f"{base.config.model_type}-{which}"))


def llama_config(**changes: object) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=3, pad_token_id=1,
        **changes,
    )  # fmt: skip


def write_llama(out: Path) -> None:
    torch.manual_seed(1)
    model = LlamaForCausalLM(llama_config())
    save(model, out / "llama", "chatml")
    for number, rank in enumerate((4, 2, 8)):
        options = {"r": rank, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        write_adapter(model, out / f"llama-adapter-{number}", options, 100 + number)
    dora = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
        "use_dora": True,
    }
    write_adapter(model, out / "llama-adapter-dora", dora, 110)
    ia3 = {
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
        "task_type": "CAUSAL_LM",
    }
    write_adapter(model, out / "llama-adapter-ia3", ia3, 111)
    write_virtual(model, out)


def write_llama_classifier(out: Path) -> None:
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(llama_config(num_labels=3))
    base = LlamaForCausalLM.from_pretrained(str(out / "llama"))
    model.model.load_state_dict(base.model.state_dict())
    options = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "task_type": "SEQ_CLS",
        "modules_to_save": ["score"],
    }
    folder = out / "llama-classifier-adapter"
    write_adapter(model, folder, options, 200)
    (folder / "fettle.json").write_text(
        json.dumps({"task": "classification", "labels": ["red", "green", "blue"]})
    )


def write_gpt2(out: Path) -> None:
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=400,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = GPT2LMHeadModel(config)
    save(model, out / "gpt2", "plain")
    options = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["c_attn", "c_proj"],
        "task_type": "CAUSAL_LM",
        "fan_in_fan_out": True,
    }
    write_adapter(model, out / "gpt2-adapter", options, 300)
    write_adapter(model, out / "gpt2-adapter-dora", {**options, "use_dora": True}, 301)
    ia3 = {
        "target_modules": ["c_attn", "mlp.c_proj"],
        "feedforward_modules": ["mlp.c_proj"],
        "task_type": "CAUSAL_LM",
        "fan_in_fan_out": True,
    }
    write_adapter(model, out / "gpt2-adapter-ia3", ia3, 302)
    write_virtual(model, out)


def bert_config(**changes: object) -> BertConfig:
    return BertConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=1, **changes,
    )  # fmt: skip


def write_bert(out: Path) -> None:
    torch.manual_seed(3)
    base = BertModel(bert_config())
    save(base, out / "bert", "encoder")
    options = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["query", "value"],
        "task_type": "SEQ_CLS",
        "modules_to_save": ["classifier"],
    }
    for number, labels in enumerate((["ham", "spam"], ["a", "b", "c"])):
        torch.manual_seed(30 + number)
        model = BertForSequenceClassification.from_pretrained(str(out / "bert"), num_labels=len(labels))
        folder = out / f"bert-adapter-{number}"
        write_adapter(model, folder, options, 400 + number)
        (folder / "fettle.json").write_text(json.dumps({"task": "classification", "labels": labels}))
    torch.manual_seed(40)
    scorer = BertForSequenceClassification.from_pretrained(str(out / "bert"), num_labels=1)
    write_adapter(scorer, out / "bert-scorer", options, 410)
    target = {"mean": 50.0, "std": 8.0}
    (out / "bert-scorer" / "fettle.json").write_text(json.dumps({"task": "regression", "target": target}))


def write_bert_tuned(out: Path) -> None:
    torch.manual_seed(4)
    save(
        BertForSequenceClassification(bert_config(num_labels=2, id2label={0: "no", 1: "yes"})),
        out / "bert-tuned",
        "encoder",
    )


def write_t5(out: Path) -> None:
    torch.manual_seed(5)
    config = T5Config(
        vocab_size=400, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        pad_token_id=1, eos_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    save(model, out / "t5", "seq2seq")
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q", "v", "wo"]}
    write_adapter(model, out / "t5-adapter", options, 500)


def write_bart(out: Path) -> None:
    torch.manual_seed(6)
    config = BartConfig(
        vocab_size=400, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=128,
        pad_token_id=1, bos_token_id=2, eos_token_id=0, decoder_start_token_id=0,
        forced_eos_token_id=None, forced_bos_token_id=None,
    )  # fmt: skip
    save(BartForConditionalGeneration(config), out / "bart", "seq2seq")


WRITERS: dict[str, Callable[[Path], None]] = {
    "llama": write_llama,
    "llama-classifier": write_llama_classifier,
    "gpt2": write_gpt2,
    "bert": write_bert,
    "bert-tuned": write_bert_tuned,
    "t5": write_t5,
    "bart": write_bart,
}


def write_folders(out: Path, names: list[str] | None = None) -> None:
    for name, write in WRITERS.items():
        if not names or name in names:
            write(out)


if __name__ == "__main__":
    write_folders(Path(sys.argv[1]), sys.argv[2:])
