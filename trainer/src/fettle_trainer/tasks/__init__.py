"""The tasks by name."""

from ..spec import Task
from .answers import Answers
from .chat import Chat
from .classification import Classification
from .embedding import Embedding
from .entities import Entities
from .multilabel import Multilabel
from .objective import Objective
from .preference import Preference
from .pretraining import Pretraining
from .ranking import Ranking
from .regression import Regression
from .seq2seq import Seq2Seq

_OBJECTIVES: dict[Task, Objective] = {
    "chat": Chat(),
    "classification": Classification(),
    "seq2seq": Seq2Seq(),
    "multilabel_classification": Multilabel(),
    "regression": Regression(),
    "ranking": Ranking(),
    "token_classification": Entities(),
    "question_answering": Answers(),
    "embedding": Embedding(),
    "preference": Preference(),
    "pretraining": Pretraining(),
}


def objective_of(task: Task) -> Objective:
    return _OBJECTIVES[task]
