"""Classification heads over one shared trunk.

The trunk runs once over a batch in which every row may belong to another adapter; then each adapter's head
reads the rows that are its own. A head is the model's own ForSequenceClassification class with the trunk
replaced by what the trunk has already answered, so pooling and layers are those of training.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from .serve_adapters import Adapter
from .serve_artefact import Artefact
from .serve_models import ServedModel
from .serve_refusal import ServeRefusal


class Answered(nn.Module):
    """Stands where the trunk stood and gives the answer it was handed."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Any = None

    def forward(self, *_args: object, **_options: object) -> Any:
        return self.output


class Head:
    """One classifier. `labels` in the order of the logits; `several`: a text may have any number of them."""

    def __init__(
        self, model: Any, labels: tuple[str, ...], *, is_decoder: bool, several: bool = False
    ) -> None:
        self.labels = labels
        self.several = several
        self._model = model
        self._finds_last_by_padding = is_decoder
        if is_decoder:
            model.config = copy.deepcopy(model.config)
            model.config.get_text_config().pad_token_id = 1
        self._answered = Answered()
        setattr(model, model.base_model_prefix, self._answered)

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        return torch.sigmoid(logits_BV) if self.several else torch.softmax(logits_BV, dim=-1)

    def logits(self, ids_BT: Tensor, mask_BT: Tensor, trunk_output: Any) -> Tensor:
        """B x number of labels, from the trunk's output for the same rows."""
        self._answered.output = trunk_output
        if self._finds_last_by_padding:
            # A decoder's head reads the last token that is not the padding id. A text may end with that very
            # id (EOS that pads), so the head is shown which tokens are real instead of the tokens.
            ids_BT = 1 - mask_BT
        try:
            return self._model(input_ids=ids_BT, attention_mask=mask_BT).logits
        finally:
            self._answered.output = None


def own_head(served: ServedModel) -> Head | None:
    """The head that came with a tuned folder."""
    if served.own_head is None:
        return None
    model = copy.copy(served.own_head)
    # A shallow copy shares the weights; its own module table keeps the original whole.
    model._modules = dict(served.own_head._modules)
    labels = _labels(served.artefact.labels, served.own_head, str(served.folder))
    several = model.config.problem_type == "multi_label_classification"
    return Head(model, labels, is_decoder=served.family == "decoder", several=several)


def adapter_head(served: ServedModel, adapter: Adapter, artefact: Artefact) -> Head:
    """The head an adapter brought along. ServeRefusal when it brought none, or not all of it."""
    labels = artefact.labels
    outputs = [tensor for name, tensor in adapter.head.items() if name.endswith("weight")]
    if not outputs:
        raise ServeRefusal(
            "unsupported_parameter",
            f"Adapter {adapter.path} has no classification head: it was not trained to classify. "
            "Use it to generate.",
        )
    config = copy.deepcopy(served.trunk.config)
    config.num_labels = len(labels) if labels is not None else outputs[-1].shape[0]
    with torch.device("meta"):
        loader: Any = AutoModelForSequenceClassification
        model = loader.from_config(config)
    setattr(model, model.base_model_prefix, nn.Identity())
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    given = {name: tensor.shape for name, tensor in adapter.head.items()}
    untrained = served.unset - {
        f"{module}.{part}" for module, parts in adapter.saved.items() for part in parts
    }
    if expected != given or untrained:
        raise ServeRefusal(
            "inference_failed",
            f"Adapter {adapter.path}: its classification head does not fit {served.folder}. Expected "
            f"{_shapes(expected)}, found {_shapes(given)}"
            + (f"; neither holds {', '.join(sorted(untrained))}" if untrained else "")
            + ". Serve it over the base model it was trained on.",
        )
    model.load_state_dict(adapter.head, assign=True)
    model.eval()
    several = artefact.task == "multilabel_classification"
    named = _labels(labels, model, adapter.path)
    return Head(model, named, is_decoder=served.family == "decoder", several=several)


def _labels(stated: tuple[str, ...] | None, model: Any, where: str) -> tuple[str, ...]:
    num_labels = int(model.config.num_labels)
    names = cast(dict[int, str], model.config.id2label)
    labels = stated if stated is not None else tuple(names[index] for index in range(num_labels))
    if len(labels) != num_labels:
        raise ServeRefusal(
            "inference_failed",
            f"{where}: fettle.json names {len(labels)} labels, the head has {num_labels}. "
            "Put the original file back.",
        )
    return labels


def _shapes(tensors: dict[str, torch.Size]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in sorted(tensors.items())) or "nothing"


def rows_of_output(output: Any, rows: Tensor) -> Any:
    """The same model output for these rows alone."""
    picked: dict[str, Any] = {}
    for name, value in output.items():
        if isinstance(value, Tensor):
            picked[name] = value.index_select(0, rows)
    return type(output)(**picked)
