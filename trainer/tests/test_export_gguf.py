"""GGUF: another reader of what was written answers the same, for every kind of model it holds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from fettle_trainer.artefact import load_artefact
from fettle_trainer.exports.compare import measure
from fettle_trainer.exports.gguf_model import check_gguf, write_gguf
from fettle_trainer.exports.gguf_tokenizer import gguf_tokenizer
from fettle_trainer.exports.write import Request, export_model
from fettle_trainer.failure import TrainFailure
from fettle_trainer.prompt import PromptEncoder

KINDS = ["llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "gpt2"]


def decoder(folder: Path, kind: str) -> Path:
    """With rows that fill blocks of 32, so that everything is quantised."""
    tokenizer = tiny.make_tokenizer()
    ids = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0, "vocab_size": len(tokenizer)}
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    wide = {**ids, **shape, "num_key_value_heads": 2, "max_position_embeddings": 256}
    configs: dict[str, Any] = {
        "llama": lambda: transformers.LlamaConfig(**wide, rope_theta=5000.0),
        "mistral": lambda: transformers.MistralConfig(**wide, sliding_window=None, head_dim=16),
        "qwen2": lambda: transformers.Qwen2Config(**wide),
        "qwen3": lambda: transformers.Qwen3Config(**wide, head_dim=32, tie_word_embeddings=True),
        "gemma3": lambda: transformers.Gemma3TextConfig(
            **{**wide, "num_hidden_layers": 6}, head_dim=16, query_pre_attn_scalar=16, sliding_window=8
        ),
        "phi3": lambda: transformers.Phi3Config(**wide),
        "gpt2": lambda: transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=256, **ids),
    }
    made = tiny.build(transformers.AutoModelForCausalLM, configs[kind]())
    with torch.no_grad():  # norms and biases that are all alike would hide one left out
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tiny.save(made, tokenizer, folder)
    facts = {"task": "chat", "family": "decoder", "labels": None, "method": "full", "max_length": 256}
    facts |= {"stop_token_ids": [3], "base_model": "tiny"}
    (folder / "fettle.json").write_text(json.dumps(facts))
    return folder


def export(source: Path, out: Path, **asked: Any) -> dict[str, Any]:
    values = {"run": None, "name": "ft:tiny", "form": "gguf", "quantize": None, "prune": 0.0, **asked}
    return export_model(
        Request(source=source, base=source, out=out, **values), lambda _: None, compare=measure
    )


@pytest.mark.parametrize("kind", KINDS)
def test_another_reader_answers_the_same(kind: str, tmp_path: Path) -> None:
    report = export(decoder(tmp_path / "model", kind), tmp_path / "out")
    assert report["after"]["max_abs_diff"] < 1e-3
    assert report["after"]["agreement"] > 0.97
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "Modelfile",
        "README.md",
        "export.json",
        "model.gguf",
    ]
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(("quantize", "share"), [("q8_0", 0.6), ("q4_0", 0.4)])
def test_quantised_the_reader_gets_what_was_stored_and_the_loss_of_quality_is_told(
    quantize: str, share: float, tmp_path: Path
) -> None:
    model = decoder(tmp_path / "model", "llama")
    whole = export(model, tmp_path / "f16")
    report = export(model, tmp_path / "out", quantize=quantize)
    # Compared with the weights as stored, it is exact; compared with the tuned model, it is not.
    assert report["after"]["max_abs_diff"] < 1e-3
    assert report["after"]["loss"] != pytest.approx(report["before"]["loss"], abs=1e-6)
    assert 0.3 < report["after"]["agreement"] <= whole["after"]["agreement"]
    assert (tmp_path / "out" / "model.gguf").stat().st_size < share * (
        tmp_path / "f16" / "model.gguf"
    ).stat().st_size + 20_000
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert kinds == {"F32", "Q8_0", *([] if quantize == "q8_0" else ["Q4_0"])}


AS_INSTALLED = """
import re, sys
from importlib.metadata import packages_distributions
from pathlib import Path
folder, *locks = map(Path, sys.argv[1:])
plain = lambda name: re.sub("[-_.]+", "-", name).lower()
locked = {plain(name) for lock in locks for name in re.findall("(?m)^([\\w.-]+)==", lock.read_text())}
for module, names in packages_distributions().items():
    if not locked & {plain(name) for name in names}:
        sys.modules.setdefault(module, None)
from fettle_trainer.fetch_gguf import dequantise
dequantise(folder / "model.gguf", folder / "model")
"""


def test_one_is_read_with_what_users_install(tmp_path: Path) -> None:
    """Tests have more packages than users: what transformers asks for once must be in the users' list."""
    export(decoder(tmp_path / "model", "llama"), tmp_path / "out", quantize="q8_0")
    trainer = Path(__file__).parents[1]
    locks = [str(trainer / f"requirements{kind}.lock") for kind in ("", "-cpu")]
    command = [sys.executable, "-c", AS_INSTALLED, str(tmp_path / "out"), *locks]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(trainer / "src")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


def test_a_file_with_one_weight_changed_is_no_export(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "model", "llama")
    loaded = load_artefact(folder, folder, torch.float32)
    path = tmp_path / "model.gguf"
    write_gguf(loaded, path, name="m", quantize="q8_0", stop_ids=[3])
    assert check_gguf(loaded, path) <= 1
    tensor = next(one for one in gguf.GGUFReader(path).tensors if one.name == "blk.1.ffn_down.weight")
    content = np.memmap(path, dtype=np.uint8, mode="r+")
    content[int(tensor.data_offset) + 5] ^= 0x40
    content.flush()
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_down\.weight differs"):
        check_gguf(loaded, path)


def test_metadata_says_how_prompts_are_made_and_where_answers_end(tmp_path: Path) -> None:
    export(decoder(tmp_path / "model", "llama"), tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    told = {name: field.contents() for name, field in reader.fields.items()}
    assert told["general.architecture"] == "llama"
    assert told["llama.rope.freq_base"] == 5000
    assert told["llama.context_length"] == 256
    assert told["tokenizer.ggml.pre"] == "gpt-2"
    assert told["tokenizer.ggml.eos_token_id"] == 3
    assert told["tokenizer.chat_template"] == tiny.CHATML
    assert told["tokenizer.ggml.add_bos_token"] is False
    assert told["tokenizer.ggml.tokens"][2] == "<|im_start|>"
    assert told["tokenizer.ggml.token_type"][2:5] == [3, 3, 2]
    assert told["general.name"] == "ft:tiny"


# ---------------------------------------------------------------- tokenizers


def encoder_of(core: Tokenizer, **tokens: str) -> PromptEncoder:
    return PromptEncoder(transformers.PreTrainedTokenizerFast(tokenizer_object=core, **tokens))


def of_bytes(pre_tokenizer: Any, normalizer: Any = None) -> PromptEncoder:
    core = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    core.pre_tokenizer = pre_tokenizer
    core.decoder = decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
    return encoder_of(core, eos_token="</s>")


QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PLAIN = pre_tokenizers.ByteLevel(add_prefix_space=False)


def cut(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        (PLAIN, "gpt-2"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), PLAIN]), "smollm"),
        (cut(QWEN), "qwen2"),
        (cut(QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), "llama-bpe"),
    ],
)
def test_a_way_to_cut_text_has_its_name(pre_tokenizer: Any, name: str) -> None:
    found = gguf_tokenizer(of_bytes(pre_tokenizer, normalizers.NFC()), 6)
    assert (found.model, found.pre, found.merges) == ("gpt2", name, ["a b"])
    assert found.tokens == ["a", "b", "ab", "</s>", "[PAD4]", "[PAD5]"]
    assert found.types == [1, 1, 1, 3, 5, 5]


@pytest.mark.parametrize(
    ("prompts", "why"),
    [
        (lambda: of_bytes(cut(r"\w+")), "no name"),
        (lambda: of_bytes(PLAIN, normalizers.Lowercase()), "Lowercase"),
        (lambda: of_bytes(pre_tokenizers.Whitespace()), "falls? back|fall back"),
        (lambda: encoder_of(Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))), "WordPiece"),
    ],
)
def test_other_tokenizers_are_refused_with_the_reason(prompts: Any, why: str) -> None:
    with pytest.raises(TrainFailure, match=why) as caught:
        gguf_tokenizer(prompts(), 6)
    assert caught.value.code == "export_not_possible"


def test_a_token_beyond_the_embedding_is_refused() -> None:
    with pytest.raises(TrainFailure, match="id 3"):
        gguf_tokenizer(of_bytes(PLAIN), 3)


def test_sentencepiece_has_scores_in_the_order_of_its_merges() -> None:
    vocab = {"<unk>": 0, "<0x41>": 1, "▁": 2, "a": 3, "b": 4, "ab": 5, "▁ab": 6}
    core = Tokenizer(models.BPE(vocab, [("a", "b"), ("▁", "ab")], unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    found = gguf_tokenizer(encoder_of(core, unk_token="<unk>"), 7)
    assert (found.model, found.adds_space) == ("llama", True)
    assert found.types == [2, 6, 1, 1, 1, 1, 1]
    assert found.scores == [0, 0, 0, 0, 0, 0, -1]


# ---------------------------------------------------------------- refusals


def changed(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.mark.parametrize(
    ("kind", "values", "asked", "why"),
    [
        ("llama", {"hidden_act": "relu"}, {}, "relu"),
        (
            "qwen2",
            {
                "layer_types": ["full_attention", "sliding_attention"],
                "sliding_window": 8,
                "use_sliding_window": True,
            },
            {},
            "sliding",
        ),
        ("gemma3", {"query_pre_attn_scalar": 256}, {}, "width of its heads"),
        ("llama", {}, {"quantize": "int8"}, "no int8"),
        ("llama", {}, {"prune": 1.0}, "prune is 1.0"),
        ("llama", {}, {"form": "safetensors", "prune": 0.5}, "apart from its base"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_nothing_is_left(
    kind: str, values: dict[str, Any], asked: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainFailure, match=why):
        export(changed(decoder(tmp_path / "model", kind), **values), tmp_path / "out", **asked)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_that_answers_as_another_model_is_taken_back(tmp_path: Path) -> None:
    model = decoder(tmp_path / "model", "llama")

    def spoilt(form: Any, folder: Path, *, base: Path, probe: Path) -> Any:
        other = decoder(tmp_path / "other", "llama")
        loaded = load_artefact(other, other, torch.float32)
        with torch.no_grad():
            loaded.model.model.norm.weight.mul_(1.5)
        write_gguf(loaded, folder / "model.gguf", name="m", quantize="f16", stop_ids=[3])
        return measure(form, folder, base=base, probe=probe)

    request = Request(model, model, None, "m", "gguf", None, 0.0, tmp_path / "out")
    with pytest.raises(TrainFailure, match="differ by") as caught:
        export_model(request, lambda _: None, compare=spoilt)
    assert caught.value.code == "artefact_mismatch"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]
