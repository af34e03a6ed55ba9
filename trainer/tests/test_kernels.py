"""Each kernel beside the plain formula it stands for, and whole models beside transformers' own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_step import gradients, make_plain, plain_stepper, prepared
from torch import Tensor, nn
from torch.nn import functional

from fettle_trainer.adapters import LoraLinear, LoraSettings
from fettle_trainer.collate import Batch
from fettle_trainer.device import Compute
from fettle_trainer.kernels import encoder
from fettle_trainer.kernels.attention import QUERIES_AT_ONCE, attend, with_dropout
from fettle_trainer.kernels.embedding import Embedding
from fettle_trainer.kernels.gate import swiglu, swiglu_backward
from fettle_trainer.kernels.head_loss import head_loss
from fettle_trainer.kernels.heads import Heads
from fettle_trainer.kernels.layout import LONGEST_PLAIN, Layout
from fettle_trainer.kernels.norm import Norm
from fettle_trainer.kernels.projection import Projection
from fettle_trainer.packing import IMPLEMENTATION

SHORT = Compute(torch.device("cpu"), torch.bfloat16, "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def both(make: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Same output and same gradients of all inputs."""
    results: list[list[Tensor]] = []
    for function in (make, reference):
        leaves = [one.clone().requires_grad_() for one in inputs]
        output = function(*leaves)
        torch.manual_seed(9)
        (output * torch.randn_like(output)).sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    ours, theirs = results
    assert len(ours) == len(theirs) == len(inputs) + 1
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


def plain_attention(heads: Heads, lengths: Sequence[int], qkv: Tensor, bias: Tensor | None = None) -> Tensor:
    """Row by row, by PyTorch's own function; keys repeated for their group of queries."""
    width = heads.width
    done: list[Tensor] = []
    for row in qkv.split(list(lengths)):
        length = len(row)
        query = row[:, : heads.query * width].view(length, heads.query, width).transpose(0, 1)
        key, value = (
            part.reshape(length, heads.key, width).transpose(0, 1).repeat_interleave(heads.group, 0)
            for part in row[:, heads.query * width :].chunk(2, dim=-1)
        )
        distance = torch.arange(length)[:, None] - torch.arange(length)[None]
        hidden = distance < 0 if heads.causal else torch.zeros(length, length, dtype=torch.bool)
        if heads.window:
            hidden = hidden | (distance >= heads.window)
        mask = torch.zeros(length, length).masked_fill(hidden, float("-inf"))
        if bias is not None:
            mask = mask + bias[:, :length, :length]
        out = functional.scaled_dot_product_attention(query, key, value, mask, scale=heads.scale)
        done.append(out.transpose(0, 1).reshape(length, -1))
    return torch.cat(done)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("keys", [2, 6])
@pytest.mark.parametrize("window", [0, 5, QUERIES_AT_ONCE])
def test_attention_is_each_rows_own(*, causal: bool, keys: int, window: int) -> None:
    if window and not causal:
        return  # a window looks back alone
    torch.manual_seed(0)
    lengths = (3, 1, 17, 2 * QUERIES_AT_ONCE + 5)
    heads = Heads(query=6, key=keys, width=8, causal=causal, scale=0.3, window=window)
    qkv = torch.randn(sum(lengths), (6 + 2 * keys) * 8)
    layout = Layout.of_self(lengths, heads)
    both(
        lambda given: attend([given], layout, heads),
        lambda given: plain_attention(heads, lengths, given),
        [qkv],
    )


@pytest.mark.parametrize("window", [0, 100])
def test_long_rows_go_through_flash_attention(window: int) -> None:
    torch.manual_seed(0)
    lengths = (4, LONGEST_PLAIN + 3)
    heads = Heads(query=4, key=2, width=8, causal=True, scale=0.5, window=window)
    layout = Layout.of_self(lengths, heads)
    both(
        lambda given: attend([given], layout, heads),
        lambda given: plain_attention(heads, lengths, given),
        [torch.randn(sum(lengths), 64)],
    )


def test_attention_turns_queries_and_keys() -> None:
    torch.manual_seed(0)
    lengths = (5, 9)
    heads = Heads(query=4, key=2, width=8, causal=True, scale=0.4)
    positions = torch.cat([torch.arange(length) for length in lengths])
    angles = positions[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03])[None]
    angles = torch.cat([angles, angles], dim=-1)
    cos, sin = angles.cos(), angles.sin()
    layout = Layout.of_self(lengths, heads).turned(cos, sin, torch.float32)

    def reference(qkv: Tensor) -> Tensor:
        turned, value = qkv[:, : 6 * 8].view(-1, 6, 8), qkv[:, 6 * 8 :]
        half = torch.cat([-turned[..., 4:], turned[..., :4]], dim=-1)
        turned = turned * cos[:, None] + half * sin[:, None]
        return plain_attention(heads, lengths, torch.cat([turned.flatten(1), value], dim=-1))

    both(lambda given: attend([given], layout, heads), reference, [torch.randn(14, 64)])


def test_attention_lays_a_bias_over_the_scores() -> None:
    torch.manual_seed(0)
    lengths = (5, 12, 7)
    heads = Heads(query=3, key=3, width=8, causal=False, scale=1.0)
    layout = Layout.of_self(lengths, heads)
    both(
        lambda given, bias: attend([given], layout, heads, bias=bias),
        lambda given, bias: plain_attention(heads, lengths, given, bias),
        [torch.randn(24, 72), torch.randn(3, layout.longest, layout.longest)],
    )


@pytest.mark.parametrize(
    ("lengths", "sources"),
    [
        ((3, 5), (7, 2)),
        # What fills one side up to a multiple of 32 when the other has that many tokens already.
        ((3, 5, 0), (7, 2, 20)),
        ((3, 5, 20), (7, 2, 0)),
    ],
)
def test_rows_look_at_their_own_source(lengths: tuple[int, ...], sources: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    heads = Heads(query=2, key=2, width=4, causal=False, scale=1.0)
    layout = Layout.of_other(lengths, sources, heads)

    def reference(query: Tensor, key_value: Tensor) -> Tensor:
        done: list[Tensor] = []
        for asked, seen in zip(query.split(lengths), key_value.split(sources), strict=True):
            if not len(asked) or not len(seen):
                done.append(torch.zeros_like(asked))
                continue
            parts = [one.reshape(len(one), 2, 4).transpose(0, 1) for one in (asked, *seen.chunk(2, dim=-1))]
            out = functional.scaled_dot_product_attention(*parts, scale=1.0)
            done.append(out.transpose(0, 1).reshape(len(asked), -1))
        return torch.cat(done)

    both(
        lambda query, key_value: attend([query, key_value], layout, heads),
        reference,
        [torch.randn(sum(lengths), 8), torch.randn(sum(sources), 16)],
    )


def test_attention_drops_weights_and_keeps_their_mean() -> None:
    lengths = (40,)
    heads = Heads(query=2, key=2, width=4, causal=False, scale=0.0, dropout=0.25)
    layout = Layout.of_self(lengths, heads)
    qkv = torch.ones(40, 24, requires_grad=True)
    torch.manual_seed(0)
    out = attend([qkv], layout, heads)
    assert out.std() > 0.01  # equal weights of equal values: only dropout can make a difference
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    out.sum().backward()
    assert qkv.grad is not None
    # With no scale the scores are constant, so the gradient of the values is the sum of what was kept.
    assert qkv.grad[:, 16:].sum().item() == pytest.approx(out.sum().item(), rel=1e-4)
    torch.testing.assert_close(attend([qkv], layout, with_dropout(heads, 0.0)), torch.ones(40, 8))


def lora(inputs: int, outputs: int, rank: int) -> LoraLinear:
    settings = LoraSettings(r=rank, alpha=2 * rank, dropout=0.0, targets=None, modules_to_save=())
    layer = LoraLinear(nn.Linear(inputs, outputs), settings, torch.Generator())
    nn.init.normal_(layer.lora_B)
    return layer


def test_layers_with_one_input_are_one_product() -> None:
    torch.manual_seed(0)
    layers = [lora(6, 5, 2), nn.Linear(6, 3, bias=False), lora(6, 4, 3)]
    x = torch.randn(7, 6)
    leaves = [p for layer in layers for p in layer.parameters()]
    results: list[list[Tensor]] = []
    projection = Projection(layers, torch.float32)
    for function in (projection, lambda given: torch.cat([layer(given) for layer in layers], dim=-1)):
        for leaf in leaves:
            leaf.grad = None
        given = x.clone().requires_grad_()
        output = function(given)
        (output * torch.arange(output.numel()).view_as(output)).sum().backward()
        results.append([output.detach(), given.grad, *(leaf.grad for leaf in leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_fused_optimisers_step_reaches_the_next_product() -> None:
    """Fused AdamW does not count versions: nothing but `refresh` can tell."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    projection = Projection([layer], torch.bfloat16)
    x = torch.randn(4, 8).bfloat16()
    before = projection(x).detach().clone()
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    projection(x).sum().backward()
    optimiser.step()
    projection.refresh()
    after = projection(x)
    assert not torch.equal(after, before)
    expected = functional.linear(x, layer.weight.bfloat16(), layer.bias.bfloat16())
    torch.testing.assert_close(after, expected)


def test_rms_norm() -> None:
    torch.manual_seed(0)
    norm = nn.Module()
    norm.weight = nn.Parameter(torch.randn(8))
    norm.variance_epsilon = 1e-5

    def reference(x: Tensor) -> Tensor:
        return functional.rms_norm(x, (8,), norm.weight, 1e-5)

    both(Norm(norm, torch.float32), reference, [torch.randn(5, 8)])
    results: list[Tensor] = []
    for function in (Norm(norm, torch.float32), reference):
        norm.weight.grad = None
        function(torch.arange(40.0).view(5, 8)).square().sum().backward()
        results.append(norm.weight.grad.clone())
    torch.testing.assert_close(results[0], results[1])


def test_swiglu() -> None:
    torch.manual_seed(0)
    gate, up, grad = (
        torch.randn(5, 8, requires_grad=True),
        torch.randn(5, 8, requires_grad=True),
        torch.randn(5, 8),
    )
    made, opened = swiglu(gate.detach(), up.detach())
    expected = functional.silu(gate) * up
    expected.backward(grad)
    torch.testing.assert_close(made, expected.detach())
    found = swiglu_backward(grad, gate.detach(), up_TF=up.detach(), opened_TF=opened)
    torch.testing.assert_close(found, (gate.grad, up.grad))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [0, 1, 100])
def test_head_loss(smoothing: float, targets: int) -> None:
    torch.manual_seed(0)
    head = nn.Linear(4, 1_000_000 if targets == 100 else 40, bias=False)  # the larger one goes in groups
    wanted = torch.randint(0, len(head.weight), (targets,))
    projection = Projection([head], torch.float32)

    def plain(hidden: Tensor) -> Tensor:
        return functional.cross_entropy(head(hidden), wanted, reduction="sum", label_smoothing=smoothing)

    results: list[list[Tensor]] = []
    torch.manual_seed(1)
    given = torch.randn(targets, 4)
    for function in (lambda one: head_loss(one, wanted, projection, smoothing=smoothing)[0], plain):
        head.weight.grad = None
        projection.refresh()
        hidden = given.clone().requires_grad_()
        for _ in range(2):  # micro-batches add up
            (function(hidden) / 3).backward()
        results.append([hidden.grad, head.weight.grad.clone()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_head_loss_counts_what_the_model_would_write() -> None:
    """Of equally likely tokens it writes one: the others are not right, as evaluation has it too."""
    torch.manual_seed(0)
    head = nn.Linear(4, 40, bias=False)
    hidden = torch.cat([torch.randn(9, 4), torch.zeros(3, 4)])
    written = head(hidden).argmax(dim=-1)
    wanted = torch.where(torch.arange(12) % 3 == 0, written, (written + 1) % 40)
    _, correct = head_loss(hidden, wanted, Projection([head], torch.float32))
    assert int(correct) == 4


def test_embedding_adds_its_rows_gradients() -> None:
    """Over two optimiser steps, two micro-batches each; nothing of the first is left in the second."""
    torch.manual_seed(0)
    module = nn.Embedding(9, 3, padding_idx=2)
    fast = Embedding(module, is_tied=False)
    for step in range(2):
        micro = [torch.randint(0, 9, (2, 4)) for _ in range(2)]
        weights = torch.randn(2, 2, 4, 3)
        found: list[Tensor] = []
        for lookup in (fast, module):
            module.weight.grad = None
            fast.refresh()
            for ids, factor in zip(micro, weights, strict=True):
                (lookup(ids) * factor).sum().backward()
            assert module.weight.grad is not None
            found.append(module.weight.grad.clone())
        torch.testing.assert_close(*found, msg=f"step {step}")


KINDS = ["llama", "qwen3", "bert", "t5"]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_models_gradients_are_transformers_own(folder: Path, kind: str, method: str) -> None:
    loaded, rows, stepper = prepared(folder, kind, method)
    assert loaded.kernels is not None
    for name, parameter in loaded.trainable().items():
        if name.endswith("lora_B"):
            torch.manual_seed(len(name))
            nn.init.normal_(parameter, std=0.02)
    micro = [[0, 1, 2], [3, 4]]
    gradients(stepper, rows, [[5, 6]])  # whose gradients must be gone
    ours = gradients(stepper, rows, micro)
    theirs = gradients(plain_stepper(loaded, stepper.task), rows, micro)
    assert ours.keys() == theirs.keys() == loaded.trainable().keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_stays_near_fp32(folder: Path, kind: str, method: str) -> None:
    """A frozen base in bf16 once made the check fail in silence: it ran without autocast."""
    loaded, rows, stepper = prepared(folder, kind, method, compute=SHORT)
    assert loaded.kernels is not None
    assert stepper.dtype == torch.bfloat16
    ours = gradients(stepper, rows, [[0, 1, 2, 3]])
    make_plain(loaded)
    exact, _, plain = prepared(folder, kind, method)
    theirs = gradients(plain, rows, [[0, 1, 2, 3]])
    assert ours.keys() == theirs.keys() == exact.trainable().keys()
    joined = [torch.cat([found[name].flatten() for name in theirs]) for found in (ours, theirs)]
    error: Any = (joined[0] - joined[1]).norm() / joined[1].norm()
    assert error < 0.05


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_dropout_inside_the_stack_is_drawn_anew_and_from_the_seed(folder: Path, kind: str) -> None:
    loaded, rows, stepper = prepared(folder, kind)
    loaded.set_training()
    drops = [module for module in loaded.model.modules() if isinstance(module, nn.Dropout)]
    still = [stepper.train_step(rows, [[0, 1, 2]], lambda _: None)[0] for _ in range(2)]
    assert still[0] == still[1]
    for module in drops:
        module.p = 0.3
    torch.manual_seed(1)
    first, second = (stepper.train_step(rows, [[0, 1, 2]], lambda _: None)[0] for _ in range(2))
    torch.manual_seed(1)
    again = stepper.train_step(rows, [[0, 1, 2]], lambda _: None)[0]
    assert first == again
    assert first != second


def test_a_fresh_process_uses_them(folder: Path) -> None:
    """They were refused in every process in which nothing had told transformers of our attention before."""
    from transformers import AttentionInterface

    known: dict[str, Any] = AttentionInterface._global_mapping
    known.pop(IMPLEMENTATION, None)
    assert prepared(folder, "llama")[0].kernels is not None


def test_a_run_says_why_there_are_none(folder: Path) -> None:
    loaded, _, _ = prepared(folder, "llama", "lora", hyperparameters__lora_dropout=0.1)
    assert loaded.kernels is None
    assert "lora_dropout 0 is faster" in loaded.layers
    assert "fused layers for gpt2" in prepared(folder, "gpt2")[0].layers


@pytest.mark.parametrize("kind", ["llama", "qwen2", "bert"])
def test_answers_that_nobody_reads_are_left_out(folder: Path, kind: str) -> None:
    loaded, rows, stepper = prepared(folder, kind, "full")
    assert loaded.kernels is not None
    chosen = [[0, 1, 2]]
    narrow = gradients(stepper, rows, chosen)
    seen: list[Tensor | None] = []
    reads = loaded.kernels.reads

    def all_of_them(batch: Batch) -> None:
        seen.append(reads(batch))

    loaded.kernels.reads = all_of_them
    wide = gradients(stepper, rows, chosen)
    assert seen[0] is not None
    for name, gradient in narrow.items():
        torch.testing.assert_close(gradient, wide[name], rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "XLMRoberta", "Camembert", "Electra"])
def test_a_head_known_to_read_first_tokens_reads_nothing_else(kind: str) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8}
    config = getattr(transformers, f"{kind}Config")(num_hidden_layers=1, **sizes)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    assert encoder.reads_first_tokens(model)
    hidden = torch.randn(2, 5, 16)
    read = getattr(model.base_model, "pooler", None) or model.classifier
    torch.testing.assert_close(read(hidden), read(hidden[:, :1]))
