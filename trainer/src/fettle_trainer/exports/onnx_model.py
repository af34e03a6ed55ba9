"""A model as one ONNX graph, and asked in onnxruntime.

Inputs are B x L, any batch, any length: `input_ids`, `attention_mask`, and what the task adds.
Output: `logits`.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..collate import Batch
from ..models import Loaded
from ..spec import Task
from ..tensor_files import sync
from .refusal import not_possible

ONNX_FILE = "model.onnx"
_OPSET = 18
# A graph with its weights inside is one message of this length at the most.
_MOST_BYTES = 2**31 - 2**20
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def write_onnx(loaded: Loaded, path: Path) -> None:
    """Raises TrainFailure (`export_not_possible`), OSError."""
    size = sum(weight.numel() * 4 for weight in loaded.model.parameters())
    if size > _MOST_BYTES:
        raise not_possible("onnx", f"its weights take {size / 2**30:.1f} GiB, and one file holds 2")
    names = _inputs(loaded)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7]] * 2)
    examples = {name: ids.clone() if name.endswith("input_ids") else torch.ones_like(ids) for name in names}
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Graph(loaded.model, names).eval(),
                tuple(examples.values()),
                dynamo=True,
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=(tuple(dynamic for _ in names),),
                opset_version=_OPSET,
                verbose=False,
            )
            cast("Any", program).save(str(path), external_data=False)
    except torch.onnx.OnnxExporterError as error:
        kind = loaded.model.config.model_type
        why = str(error).strip().splitlines()[0]
        raise not_possible("onnx", f"torch cannot draw the graph of a {kind!r}: {why}") from error
    sync(path)


def quantize_int8(source: Path, target: Path) -> None:
    """Weights of the matrix products as int8, their inputs as they come. Raises OSError."""
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    # Types of the graph's values are no longer those torch wrote down once a product is replaced.
    quantization.quantize_dynamic(
        str(source),
        str(target),
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
        extra_options={"DefaultTensorType": _float_type(), "MatMulConstBOnly": True},
    )
    sync(target)


def require_onnx() -> None:
    """Raises TrainFailure when the packages are not there."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise not_possible(
            "onnx",
            f"{', '.join(missing)} are not installed beside the trainer",
            "Run `npm install` in Fettle's folder, or start Fettle without --no-setup: its lock names them.",
        )


class OnnxModel:
    """Answers as a Stepper's model does."""

    def __init__(self, path: Path) -> None:
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = {one.name for one in self._session.get_inputs()}

    def run(self, inputs: Mapping[str, npt.NDArray[np.int64]]) -> Tensor:
        given = {name: value for name, value in inputs.items() if name in self._names}
        [logits] = self._session.run(None, given)
        return cast("Tensor", cast("Any", torch).from_numpy(logits))

    def answers(self, batch: Batch, task: Task) -> Tensor:
        """N x V at the batch's gathered positions."""
        logits = self.run(arrays_of(batch))
        return logits if task == "classification" else logits.flatten(0, 1)[batch.gather_N]


def arrays_of(batch: Batch) -> dict[str, npt.NDArray[np.int64]]:
    ids = batch.input_ids
    types = batch.token_type_ids
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids) if batch.attention_mask is None else batch.attention_mask,
        "token_type_ids": torch.zeros_like(ids) if types is None else types,
        "decoder_input_ids": batch.decoder_input_ids,
    }
    return {name: cast("Any", value).numpy() for name, value in given.items() if value is not None}


class _Graph(nn.Module):
    """The model with inputs in a fixed order and one output."""

    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self._names = names
        self._options = {} if names[-1] == "token_type_ids" or not _writes(model) else {"use_cache": False}

    def forward(self, *values: Tensor) -> Tensor:
        given = dict(zip(self._names, values, strict=True))
        return cast("Tensor", self.model(**given, **self._options).logits)


def _writes(model: Any) -> bool:
    return hasattr(model.config, "use_cache") and model.get_output_embeddings() is not None


def _inputs(loaded: Loaded) -> tuple[str, ...]:
    config = loaded.model.config
    if config.is_encoder_decoder:
        return ("input_ids", "attention_mask", "decoder_input_ids")
    if getattr(config, "type_vocab_size", 0) and loaded.family == "encoder" and config.type_vocab_size > 1:
        return ("input_ids", "attention_mask", "token_type_ids")
    return ("input_ids", "attention_mask")


def _float_type() -> int:
    onnx: Any = importlib.import_module("onnx")
    return int(onnx.TensorProto.FLOAT)
