"""One tiny random model of each family, with the family's own tokenizer class and its own manners."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny import CHATML, CORPUS, GEMMA, build, make_tokenizer, make_wordpiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

# No pad token of its own, `</s>` after each answer, BOS by the template: Mistral's way.
MISTRAL = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{- raise_exception('no system role') -}}{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{- '[INST] ' + message['content'] + ' [/INST]' -}}"
    "{%- else -%}{{- ' ' + message['content'] + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)
# An answer ends with `<|end|>`, which is not the tokenizer's EOS: Phi-3's way.
PHI = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}"
)
WORDS = sorted({word for line in CORPUS for word in line.split() if word.isalpha() and word.isascii()})
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SEQ2SEQ = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "d_model": 32,
    "max_position_embeddings": 96,
}


@dataclass(frozen=True, slots=True)
class Kind:
    """`family`: as in a spec. `method`: the one its training test uses."""

    family: str
    method: str
    tokenizer: Callable[[], Any]
    config: Callable[[int], Any]


def unigram(special: list[str]) -> list[tuple[str, float]]:
    """Pieces and scores, as in a SentencePiece model."""
    words = [("▁" + word, -1.0 - index / 100) for index, word in enumerate(WORDS)]
    return [*((one, 0.0) for one in special), *words, ("▁", -5.0), *((letter, -8.0) for letter in LETTERS)]


def merged(special: list[str], *, bytes_: bool) -> dict[str, Any]:
    """Vocabulary and merges of a BPE: over bytes, or over characters with `▁` for a space."""
    core = Tokenizer(models.BPE())
    letters = [*LETTERS, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ.,:[]/\n"]
    core.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False) if bytes_ else pre_tokenizers.Metaspace()
    )
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if bytes_ else letters,
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    made = json.loads(core.to_str())["model"]
    return {"vocab": made["vocab"], "merges": [tuple(pair) for pair in made["merges"]]}


def gpt2_tokenizer() -> Any:
    return transformers.GPT2Tokenizer(**merged(["<|endoftext|>"], bytes_=True))


def qwen_tokenizer() -> Any:
    tokenizer = transformers.Qwen2Tokenizer(
        **merged(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], bytes_=True), eos_token="<|im_end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def sentencepiece_tokenizer(template: str, marks: list[str], **options: Any) -> Any:
    made = merged(["<unk>", "<s>", "</s>", *marks], bytes_=False)
    tokenizer = transformers.LlamaTokenizer(**made, **options)
    if marks:
        tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = template
    return tokenizer


def phi_tokenizer() -> Any:
    marks = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    return sentencepiece_tokenizer(PHI, marks, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def gemma_tokenizer() -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|im_start|>", "<|im_end|>"]
    tokenizer = transformers.GemmaTokenizer(**merged(special, bytes_=False))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = GEMMA
    return tokenizer


def roberta_tokenizer() -> Any:
    return transformers.RobertaTokenizer(**merged(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], bytes_=True))


def pegasus_tokenizer() -> Any:
    unknown = [f"<unk_{number}>" for number in range(2, 103)]
    special = ["<pad>", "</s>", "<mask_1>", "<mask_2>", *unknown, "<unk>"]
    return transformers.PegasusTokenizer(vocab=unigram(special))


def mbart_tokenizer() -> Any:
    vocab = unigram(["<s>", "<pad>", "</s>", "<unk>"])
    return transformers.MBartTokenizer(vocab=vocab, src_lang="en_XX", tgt_lang="ro_RO")


def decoder(config: Any, tokenizer: Callable[[], Any], method: str = "lora", **more: Any) -> Kind:
    shape = {**WIDE, "num_key_value_heads": 2, "max_position_embeddings": 256, **more}
    return Kind("decoder", method, tokenizer, lambda size: config(**shape, vocab_size=size))


def encoder(config: Any, tokenizer: Callable[[], Any], method: str = "lora", **more: Any) -> Kind:
    return Kind("encoder", method, tokenizer, lambda size: config(**{**WIDE, **more}, vocab_size=size))


def seq2seq(config: Any, tokenizer: Callable[[], Any], method: str = "lora", **more: Any) -> Kind:
    return Kind("seq2seq", method, tokenizer, lambda size: config(**more, vocab_size=size))


T5_SHAPE = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
ROBERTA_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
KINDS: dict[str, Kind] = {
    "gpt2": Kind(
        "decoder",
        "full",
        gpt2_tokenizer,
        lambda size: transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=256, vocab_size=size
        ),
    ),
    "llama": decoder(
        transformers.LlamaConfig, lambda: make_tokenizer(adds_bos=True), bos_token_id=1, eos_token_id=3
    ),
    "mistral": decoder(
        transformers.MistralConfig, lambda: sentencepiece_tokenizer(MISTRAL, []), "full", sliding_window=16
    ),
    "qwen2": decoder(transformers.Qwen2Config, qwen_tokenizer),
    "qwen3": decoder(transformers.Qwen3Config, qwen_tokenizer, "full", head_dim=8),
    "gemma3": decoder(
        transformers.Gemma3TextConfig,
        gemma_tokenizer,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi3": decoder(transformers.Phi3Config, phi_tokenizer, pad_token_id=3, eos_token_id=3),
    "bert": encoder(transformers.BertConfig, make_wordpiece, "full", max_position_embeddings=64),
    "distilbert": Kind(
        "encoder",
        "lora",
        make_wordpiece,
        lambda size: transformers.DistilBertConfig(
            dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=size, max_position_embeddings=64
        ),
    ),
    "electra": encoder(
        transformers.ElectraConfig, make_wordpiece, "full", embedding_size=16, max_position_embeddings=64
    ),
    "roberta": encoder(
        transformers.RobertaConfig, roberta_tokenizer, max_position_embeddings=66, **ROBERTA_IDS
    ),
    "xlm-roberta": encoder(
        transformers.XLMRobertaConfig,
        lambda: transformers.XLMRobertaTokenizer(vocab=unigram(["<s>", "<pad>", "</s>", "<unk>"])),
        "full",
        max_position_embeddings=66,
        **ROBERTA_IDS,
    ),
    "deberta-v2": encoder(
        transformers.DebertaV2Config,
        lambda: transformers.DebertaV2Tokenizer(
            vocab=unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"]), unk_id=3
        ),
        "full",
        max_position_embeddings=64,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
    ),
    "modernbert": encoder(
        transformers.ModernBertConfig,
        make_wordpiece,
        max_position_embeddings=64,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
        local_attention=8,
    ),
    "t5": seq2seq(transformers.T5Config, lambda: t5_tokenizer(4), "full", **T5_SHAPE),
    "mt5": seq2seq(
        transformers.MT5Config, lambda: t5_tokenizer(0), **T5_SHAPE, feed_forward_proj="gated-gelu"
    ),
    "bart": seq2seq(
        transformers.BartConfig,
        roberta_tokenizer,
        **SEQ2SEQ,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    ),
    # As facebook/mbart-large-cc25: where an answer starts is said by the tokenizer's target language alone.
    "mbart": seq2seq(
        transformers.MBartConfig,
        mbart_tokenizer,
        "full",
        **SEQ2SEQ,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    ),
    "marian": seq2seq(
        transformers.MarianConfig,
        lambda: make_tokenizer(None, adds_eos=True),
        "full",
        **SEQ2SEQ,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
        forced_eos_token_id=3,
    ),
    "pegasus": seq2seq(
        transformers.PegasusConfig,
        pegasus_tokenizer,
        **SEQ2SEQ,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=1,
    ),
}
LOADERS = {
    "decoder": transformers.AutoModelForCausalLM,
    "encoder": transformers.AutoModel,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}


def t5_tokenizer(sentinels: int) -> Any:
    return transformers.T5Tokenizer(vocab=unigram(["<pad>", "</s>", "<unk>"]), extra_ids=sentinels)


def make_family(folder: Path, name: str) -> Path:
    """Model and tokenizer, saved as a hub would have them."""
    kind = KINDS[name]
    tokenizer = kind.tokenizer()
    model = build(LOADERS[kind.family], kind.config(len(tokenizer)))
    # As in tiny.save: weights so small that no mask would show.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 and name not in ("t5", "mt5"):
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
