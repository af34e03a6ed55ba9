"""Held-out rows: a tenth, whole groups, each class in its share, the same for the same seed."""

import hashlib
from collections import Counter, defaultdict

from .data import TokenRows
from .tensor_files import integers

SHARE = 0.1
# Evaluation is an overhead: more rows than this tell little more.
MOST_ROWS = 1000
FEWEST_ROWS = 10


def hold_out(rows: TokenRows, seed: int) -> tuple[list[int], list[int]]:
    """(training rows, validation rows) as indices. No validation rows when there are fewer than 10 rows or
    two groups: all are needed to learn from."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(integers(rows.groups)):
        members[group].append(index)
    if len(rows) < FEWEST_ROWS or len(members) < 2:
        return list(range(len(rows))), []
    labels = integers(rows.labels)
    strata: dict[int, list[int]] = defaultdict(list)
    for group, inside in members.items():
        commonest = Counter(labels[index] for index in inside).most_common(1)[0][0]
        strata[commonest].append(group)
    share = min(SHARE, MOST_ROWS / len(rows))
    held: set[int] = set()
    for groups in strata.values():
        held |= _held_of(groups, members, share=share, seed=seed)
    if not held or len(held) == len(members):
        first = min(members, key=lambda group: _order(group, seed))
        held = {first}
    validation = sorted(index for group in held for index in members[group])
    training = sorted(index for group in members.keys() - held for index in members[group])
    return training, validation


def _held_of(groups: list[int], members: dict[int, list[int]], *, share: float, seed: int) -> set[int]:
    """Groups of one stratum in an order that only the seed decides, until the share is reached. A group that
    would overshoot the share more than it fills it is passed over."""
    wanted = share * sum(len(members[group]) for group in groups)
    held: set[int] = set()
    count = 0
    for group in sorted(groups, key=lambda group: _order(group, seed)):
        size = len(members[group])
        if count + size / 2 <= wanted and len(held) + 1 < len(groups):
            held.add(group)
            count += size
    return held


def _order(group: int, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{group}".encode()).digest()
