"""Models from the Hugging Face hub: safetensors, JSON and tokenizer files alone, never code or pickles."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

from fettle_trainer.fetch_folder import is_ready, whole_folder
from fettle_trainer.fetch_model import FetchError, Progress

WEIGHTS_AND_CONFIG = ["*.safetensors", "*.json", "*.jinja", "LICENSE*"]
TOKENIZERS = ["tokenizer.model", "*.spm", "vocab.txt", "merges.txt"]
IGNORED = ["onnx/*", "openvino/*", "original/*", "coreml/*"]


def hub_refused() -> bool:
    """True when HF_HUB_OFFLINE asks to stay off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "TRUE", "YES", "ON"}


def prepare_from_hub(name: str, cache: Path, progress: Progress) -> Path:
    """The ready folder of the hub model ``org/name`` in the cache, downloaded when it is not there.

    ``HF_TOKEN`` is sent when set. Raises FetchError.
    """
    ready = cache / "models" / f"hub--{name.replace('/', '--')}"
    if is_ready(ready):
        return ready
    refuse_when_offline(name)
    import huggingface_hub

    progress(f"downloading {name} from the Hugging Face hub", 0, 0)
    with whole_folder(ready) as folder:
        try:
            cast(Any, huggingface_hub).snapshot_download(
                name,
                allow_patterns=WEIGHTS_AND_CONFIG + TOKENIZERS,
                ignore_patterns=IGNORED,
                token=os.environ.get("HF_TOKEN") or None,
                local_dir=folder,
            )
        except Exception as error:  # the hub client lets its HTTP library's own errors through
            raise hub_failure(name, error) from error
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's own notes
        if not is_ready(folder):
            raise FetchError(
                "model_unavailable",
                f"{name} has no config.json with *.safetensors. Pickled weights are never loaded: convert "
                "the model to safetensors and place its folder in FETTLE_HOME/models.",
            )
    return ready


def describe_hub(name: str) -> dict[str, Any]:
    """``config`` (its config.json), ``num_parameters`` and ``licence`` of a hub model, without its weights.

    The last two are None when the hub does not know. Raises FetchError as ``prepare_from_hub`` does.
    """
    refuse_when_offline(name)
    import huggingface_hub

    token = os.environ.get("HF_TOKEN") or None
    hub = cast(Any, huggingface_hub)
    try:
        # The first question is asked once, so that a machine without network is told so at once.
        about = hub.HfApi(token=token).model_info(name, expand=["safetensors", "cardData"], timeout=20)
        config = json.loads(Path(hub.hf_hub_download(name, "config.json", token=token)).read_text("utf-8"))
    except Exception as error:  # the hub client lets its HTTP library's own errors through
        raise hub_failure(name, error) from error
    return {
        "config": config,
        "num_parameters": about.safetensors.total if about.safetensors else None,
        "licence": about.card_data.get("license") if about.card_data else None,
    }


def refuse_when_offline(name: str) -> None:
    """Raises FetchError with the way to go on without the hub."""
    if hub_refused():
        raise FetchError(
            "model_unavailable",
            f"{name} is on the Hugging Face hub and HF_HUB_OFFLINE forbids to ask it. Copy the model's "
            "folder (config.json, tokenizer files, *.safetensors) to "
            f"FETTLE_HOME/models/{name.rsplit('/', 1)[1]}, or name it in fettle.yaml under `models:`, "
            "or unset HF_HUB_OFFLINE.",
        )


def hub_failure(name: str, error: Exception) -> FetchError:
    """What a failure of the hub client means to the reader."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        message = (
            f"{name} is gated: accept its terms on the hub, then set HF_TOKEN to a token that may read it."
        )
        return FetchError("model_unavailable", message)
    if isinstance(error, RepositoryNotFoundError):
        message = f"The hub has no model {name}, or HF_TOKEN may not see it."
        return FetchError("model_not_found", message)
    why = f"{type(error).__name__}: {error}"
    return FetchError("model_unavailable", f"Could not get {name} from the hub. {why}. Check the network.")
