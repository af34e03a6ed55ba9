"""A model as ONNX, and asked in onnxruntime.

    model.onnx            input_ids, attention_mask, token_type_ids where it knows them -> what the task reads
    encoder_model.onnx    input_ids, attention_mask -> last_hidden_state             } of an encoder-decoder
    decoder_model.onnx    input_ids, encoder_hidden_states, encoder_attention_mask -> logits  }

Any batch, any length. Names are those of transformers and of its like for browsers.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..collate import Batch
from ..joint import pooled
from ..models import Loaded
from ..tasks.objective import Reads
from ..tensor_files import sync
from .refusal import not_possible
from .sample import Asking

Arrays = Mapping[str, npt.NDArray[Any]]

_WHOLE = "model.onnx"
_HALVES = ("encoder_model.onnx", "decoder_model.onnx")
_OPSET = 18
# A graph with its weights inside is one message of this length at the most.
_MOST_BYTES = 2**31 - 2**20
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_SETUP = "node scripts/setup.mjs --onnx"
_OUTPUTS: dict[Reads, tuple[str, ...]] = {
    "vocabulary": ("logits",),
    "rows": ("logits",),
    "tokens": ("logits",),
    "spans": ("start_logits", "end_logits"),
    "vectors": ("last_hidden_state",),
}


def require_onnx(needed: Sequence[str] = _NEEDED) -> None:
    """Raises TrainFailure when the packages are not there."""
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise not_possible(
            "onnx",
            f"{', '.join(missing)} is not installed beside the trainer",
            f"Run `{_SETUP}` in Fettle's folder, then export again; what it installs takes 125 MB.",
        )


def write_onnx(loaded: Loaded, folder: Path, reads: Reads) -> None:
    """Raises TrainFailure (`export_not_possible`), OSError."""
    for part in _parts(loaded, reads):
        size = sum(weight.numel() * 4 for weight in part.module.parameters())
        if size > _MOST_BYTES:
            raise not_possible("onnx", f"its weights take {size / 2**30:.1f} GiB, and one file holds 2")
        _write(part, folder / part.file, loaded.model.config.model_type)


def quantize_int8(source: Path, target: Path) -> None:
    """Graphs of one folder into another: weights of matrix products as int8, their inputs as they come.
    Raises OSError."""
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    onnx: Any = importlib.import_module("onnx")
    # Types of the graph's values are no longer those torch wrote down once a product is replaced.
    options = {"DefaultTensorType": int(onnx.TensorProto.FLOAT), "MatMulConstBOnly": True}
    for path in sorted(source.glob("*.onnx")):
        quantization.quantize_dynamic(
            str(path),
            str(target / path.name),
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            # A scale for each column: with one for all, an encoder's answers change several times as much.
            per_channel=True,
            extra_options=options,
        )
        sync(target / path.name)


class OnnxModel:
    """Answers as a Stepper's model does. `bytes`: of its graphs."""

    def __init__(self, folder: Path) -> None:
        names = (_WHOLE,) if (folder / _WHOLE).is_file() else _HALVES
        paths = [folder / name for name in names]
        self.bytes = sum(path.stat().st_size for path in paths)
        self._sessions = [_session(path) for path in paths]

    def run(self, inputs: Arrays) -> list[Tensor]:
        """`inputs` as `arrays_of` has them."""
        found = _asked(self._sessions[0], inputs)
        for decoder in self._sessions[1:]:
            asked = {"input_ids": inputs["decoder_input_ids"], "encoder_hidden_states": found[0]}
            found = _asked(decoder, {**asked, "encoder_attention_mask": inputs["attention_mask"]})
        return [cast("Any", torch).from_numpy(one) for one in found]

    def answers(self, batch: Batch, asking: Asking) -> Tensor:
        """N x V at the batch's gathered positions."""
        found, reads = self.run(arrays_of(batch)), asking.objective.reads
        if reads == "rows":
            return found[0]
        if reads == "vectors":
            return pooled(found[0], batch, asking.pooling)
        answers_BLV = torch.stack(found, dim=-1) if reads == "spans" else found[0]
        return answers_BLV.flatten(0, 1)[batch.gather_N]


def arrays_of(batch: Batch) -> dict[str, npt.NDArray[np.int64]]:
    ids, types = batch.input_ids, batch.token_type_ids
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids) if batch.attention_mask is None else batch.attention_mask,
        "token_type_ids": torch.zeros_like(ids) if types is None else types,
        "decoder_input_ids": batch.decoder_input_ids,
    }
    return {name: cast("Any", value).numpy() for name, value in given.items() if value is not None}


def _session(path: Path) -> Any:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _asked(session: Any, inputs: Arrays) -> list[npt.NDArray[Any]]:
    known = {one.name for one in session.get_inputs()}
    return session.run(None, {name: value for name, value in inputs.items() if name in known})


# ---------------------------------------------------------------- drawing


@dataclass(frozen=True, slots=True)
class _Part:
    """One graph: its inputs, with examples, and its outputs."""

    file: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


class _Graph(nn.Module):
    """A model with inputs and outputs in a fixed order."""

    def __init__(self, model: Any, inputs: Sequence[str], outputs: Sequence[str], **options: Any) -> None:
        super().__init__()
        self.model = model
        self._inputs, self._outputs, self._options = tuple(inputs), tuple(outputs), options

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self._inputs, values, strict=True)), **self._options)
        return tuple(cast("Tensor", getattr(output, name)) for name in self._outputs)


class _Decoder(nn.Module):
    """Of an encoder-decoder, with its head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, hidden_BLE: Tensor, mask_BL: Tensor) -> Tensor:
        output = self.model(
            decoder_input_ids=input_ids,
            encoder_outputs=(hidden_BLE,),
            attention_mask=mask_BL,
            use_cache=False,
        )
        return cast("Tensor", output.logits)


def _parts(loaded: Loaded, reads: Reads) -> list[_Part]:
    model = loaded.model
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7]] * 2)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        return _halves(model, inputs)
    is_encoder = loaded.family == "encoder"
    if is_encoder and getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    options = {} if is_encoder else {"use_cache": False}
    outputs = _OUTPUTS[reads]
    return [_Part(_WHOLE, _Graph(model, list(inputs), outputs, **options), inputs, outputs)]


def _halves(model: Any, inputs: dict[str, Tensor]) -> list[_Part]:
    # What a T5 adds to its attention has no other form that torch can draw. Each half has its own config.
    for part in (model, model.get_encoder(), model.get_decoder()):
        part.set_attn_implementation("eager")
    hidden = ("last_hidden_state",)
    asked = {
        # Of another length than what is read, so that the two are not taken for one.
        "input_ids": torch.tensor([[1, 2, 3]] * 2),
        "encoder_hidden_states": torch.zeros(2, inputs["input_ids"].shape[1], model.config.hidden_size),
        "encoder_attention_mask": inputs["attention_mask"],
    }
    return [
        _Part(_HALVES[0], _Graph(model.get_encoder(), list(inputs), hidden), inputs, hidden),
        _Part(_HALVES[1], _Decoder(model), asked, ("logits",)),
    ]


def _write(part: _Part, path: Path, kind: str) -> None:
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes: Any = tuple(dynamic for _ in part.inputs)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            program = cast("Any", torch.onnx).export(
                part.module.eval(),
                tuple(part.inputs.values()),
                dynamo=True,
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                # Inputs that come as one tuple have their shapes in one too.
                dynamic_shapes=(shapes,) if isinstance(part.module, _Graph) else shapes,
                opset_version=_OPSET,
                verbose=False,
            )
            program.save(str(path), external_data=False)
    except torch.onnx.OnnxExporterError as error:
        why = str(error).strip().splitlines()[0]
        raise not_possible("onnx", f"torch cannot draw the graph of a {kind!r}: {why}") from error
    sync(path)
