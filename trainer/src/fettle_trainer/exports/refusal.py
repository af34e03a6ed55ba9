"""What a format cannot hold."""

from ..failure import TrainFailure


def not_possible(form: str, why: str, hint: str = "") -> TrainFailure:
    return TrainFailure(
        "export_not_possible",
        f"The model cannot be written as {form}: {why}.",
        hint or "Choose another format; `merged` takes every model.",
    )
