"""The tasks by name."""

from ..spec import Task
from .chat import Chat
from .classification import Classification
from .objective import Objective
from .preference import Preference
from .pretraining import Pretraining
from .seq2seq import Seq2Seq

_OBJECTIVES: dict[Task, Objective] = {
    "chat": Chat(),
    "classification": Classification(),
    "seq2seq": Seq2Seq(),
    "preference": Preference(),
    "pretraining": Pretraining(),
}


def objective_of(task: Task) -> Objective:
    return _OBJECTIVES[task]
