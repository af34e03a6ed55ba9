"""Keeps transformers from loading what training and serving never use: a second or two at each start."""

import sys
from typing import cast

# transformers imports each of these as soon as it finds it installed (baselines and benchmarks need some).
_UNUSED = (
    "accelerate",
    "datasets",
    "librosa",
    "pandas",
    "peft",
    "scipy",
    "sklearn",
    "tensorflow",
    "torchvision",
)


def hide_unused_packages() -> None:
    """At the start of a process of our own, before transformers is imported. What is loaded stays."""
    known = cast("dict[str, object]", sys.modules)
    for name in _UNUSED:
        # None is Python's own way to say: there is no such package.
        known.setdefault(name, None)
