"""Models from the Hugging Face hub: safetensors, JSON and tokenizer files alone, never code or pickles."""

import os
import shutil
from pathlib import Path
from typing import Any, cast

from fettle_trainer.fetch_folder import is_ready, whole_folder
from fettle_trainer.fetch_model import FetchError, Progress

ALLOWED = [
    "*.safetensors",
    "*.json",
    "tokenizer.model",
    "*.spm",
    "vocab.txt",
    "merges.txt",
    "*.jinja",
    "LICENSE*",
]
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
    if hub_refused():
        raise FetchError(
            "model_unavailable",
            f"{name} is on the Hugging Face hub and HF_HUB_OFFLINE forbids to ask it. Copy the model's "
            "folder (config.json, tokenizer files, *.safetensors) to "
            f"FETTLE_HOME/models/{name.rsplit('/', 1)[1]}, or name it in fettle.yaml under `models:`, "
            "or unset HF_HUB_OFFLINE.",
        )
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    progress(f"downloading {name} from the Hugging Face hub", 0, 0)
    with whole_folder(ready) as folder:
        try:
            cast(Any, huggingface_hub).snapshot_download(
                name,
                allow_patterns=ALLOWED,
                ignore_patterns=IGNORED,
                token=os.environ.get("HF_TOKEN") or None,
                local_dir=folder,
            )
        except GatedRepoError as error:
            raise FetchError(
                "model_unavailable",
                f"{name} is gated: accept its terms on its hub page, then set HF_TOKEN to a token that may "
                "read it.",
            ) from error
        except RepositoryNotFoundError as error:
            raise FetchError(
                "model_not_found", f"The hub has no model {name}, or HF_TOKEN may not see it."
            ) from error
        except (HfHubHTTPError, OSError, RuntimeError) as error:
            raise FetchError(
                "model_unavailable", f"Could not download {name} from the hub: {error}"
            ) from error
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's own notes
        if not is_ready(folder):
            raise FetchError(
                "model_unavailable",
                f"{name} has no config.json with *.safetensors. Pickled weights are never loaded: convert "
                "the model to safetensors and place its folder in FETTLE_HOME/models.",
            )
    return ready
