"""Heads over one shared trunk: classifiers, and those that score a text or each of its tokens.

The trunk runs once over a batch in which every row may belong to another adapter; then each adapter's head
reads the rows that are its own. A head is the model's own class (ForSequenceClassification, say) with the
trunk replaced by what the trunk has already answered, so pooling and layers are those of training.
"""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

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


# How what a classifier says becomes probabilities, by task; heads of other tasks are read as they are.
_PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "classification": lambda logits_BV: torch.softmax(logits_BV, dim=-1),
    "multilabel_classification": torch.sigmoid,
}
_CLASS_OF_TASK = {
    "token_classification": "TokenClassification",
    "question_answering": "QuestionAnswering",
}


class Head:
    """`labels` of a classifier, in the order of the logits; else empty. `by_token`: it answers each token."""

    def __init__(self, model: Any, labels: tuple[str, ...], *, task: str, is_decoder: bool) -> None:
        self.labels = labels
        self.classifies = task in _PROBABILITIES
        self.by_token = task in _CLASS_OF_TASK
        self._task = task
        self._model = model
        self._finds_last_by_padding = is_decoder
        if is_decoder:
            model.config = copy.deepcopy(model.config)
            model.config.get_text_config().pad_token_id = 1
        self._answered = Answered()
        setattr(model, model.base_model_prefix, self._answered)

    def answers(self, logits: Tensor) -> Tensor:
        """Probabilities of a classifier, else the logits."""
        return _PROBABILITIES[self._task](logits) if self.classifies else logits

    def logits(self, ids_BT: Tensor, mask_BT: Tensor, trunk_output: Any) -> Tensor:
        """B x outputs, or B x T x outputs, from the trunk's output for the same rows."""
        self._answered.output = trunk_output
        if self._finds_last_by_padding:
            # A decoder's head reads the last token that is not the padding id. A text may end with that very
            # id (EOS that pads), so the head is shown which tokens are real instead of the tokens.
            ids_BT = 1 - mask_BT
        try:
            said = self._model(input_ids=ids_BT, attention_mask=mask_BT)
            if self._task == "question_answering":
                return torch.stack([said.start_logits, said.end_logits], dim=-1)
            return said.logits
        finally:
            self._answered.output = None


def own_head(served: ServedModel) -> Head | None:
    """The head that came with a tuned folder."""
    if served.own_head is None:
        return None
    model = copy.copy(served.own_head)
    # A shallow copy shares the weights; its own module table keeps the original whole.
    model._modules = dict(served.own_head._modules)
    several = model.config.problem_type == "multi_label_classification"
    task = served.artefact.task or ("multilabel_classification" if several else "classification")
    labels = _labels(served.artefact.labels, model, str(served.folder)) if task in _PROBABILITIES else ()
    return Head(model, labels, task=task, is_decoder=served.family == "decoder")


def adapter_head(served: ServedModel, adapter: Adapter, artefact: Artefact) -> Head:
    """The head an adapter brought along. ServeRefusal when it brought none, or not all of it."""
    labels, task = artefact.labels, artefact.task or "classification"
    outputs = [tensor for name, tensor in adapter.head.items() if name.endswith("weight")]
    if not outputs:
        raise ServeRefusal(
            "unsupported_parameter",
            f"Adapter {adapter.path} has no head: it was not trained to classify or to predict. "
            "Use it to generate or to embed.",
        )
    config = copy.deepcopy(served.trunk.config)
    named = labels is not None and task in _PROBABILITIES
    config.num_labels = len(labels) if labels is not None and named else outputs[-1].shape[0]
    with torch.device("meta"):
        loader: Any = getattr(
            transformers, f"AutoModelFor{_CLASS_OF_TASK.get(task, 'SequenceClassification')}"
        )
        model = loader.from_config(config)
    setattr(model, model.base_model_prefix, nn.Identity())
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    given = {name: tensor.shape for name, tensor in adapter.head.items()}
    untrained = served.unset - {
        f"{module}.{part}" for module, parts in adapter.saved.items() for part in parts
    }
    # A head that reads each token asks no pooler.
    untrained = set[str]() if task in _CLASS_OF_TASK else untrained
    if expected != given or untrained:
        raise ServeRefusal(
            "inference_failed",
            f"Adapter {adapter.path}: its head does not fit {served.folder}. Expected "
            f"{_shapes(expected)}, found {_shapes(given)}"
            + (f"; neither holds {', '.join(sorted(untrained))}" if untrained else "")
            + ". Serve it over the base model it was trained on.",
        )
    model.load_state_dict(adapter.head, assign=True)
    model.eval()
    names = _labels(labels, model, adapter.path) if task in _PROBABILITIES else ()
    return Head(model, names, task=task, is_decoder=served.family == "decoder")


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
