"""Rows of a known length for the trainer bench: made of a tokenizer's own words, from a seed."""

import math
import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RowLengths:
    """Log-normal token counts: `mean` and `most` in tokens, `spread` is the sigma of the logarithm."""

    mean: float
    spread: float
    least: int
    most: int

    def draw(self, dice: random.Random) -> int:
        length = math.exp(dice.gauss(math.log(self.mean) - self.spread**2 / 2, self.spread))
        return max(self.least, min(self.most, round(length)))


def whole_words(tokenizer: Any, count: int) -> list[str]:
    """Words that are one token each, so that a text's length in tokens is known as it is written."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words: list[str] = []
    for token, _ in vocabulary:
        word = tokenizer.convert_tokens_to_string([token]).strip()
        if word.isascii() and word.isalpha() and word.islower() and len(word) > 2:
            ids = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
            if len(ids) == 1 and word not in words[-1:]:
                words.append(word)
        if len(words) == count:
            break
    return words


def chat_rows(words: list[str], lengths: RowLengths, dice: random.Random) -> Any:
    """Endless chat rows. The user's share is about 45 %; the answer is the question's words in another order,
    so that there is something to learn."""
    line = 0
    while True:
        line += 1
        length = max(8, lengths.draw(dice) - 30)  # the template's own tokens
        asked = [dice.choice(words) for _ in range(max(3, round(length * 0.45)))]
        answer = [asked[-1 - index % len(asked)] for index in range(max(3, length - len(asked)))]
        messages = [
            {"role": "user", "content": " ".join(asked)},
            {"role": "assistant", "content": " ".join(answer)},
        ]
        yield {"line": line, "messages": messages}


def classification_rows(words: list[str], lengths: RowLengths, dice: random.Random) -> Any:
    """Endless rows of four classes; a class owns a quarter of the words and half of its rows' words."""
    line = 0
    quarter = len(words) // 4
    while True:
        line += 1
        label = dice.randrange(4)
        own = words[label * quarter : (label + 1) * quarter]
        count = max(3, lengths.draw(dice) - 2)
        text = " ".join(dice.choice(own if dice.random() < 0.5 else words) for _ in range(count))
        yield {"line": line, "text": text, "label": f"class {label}"}


def embedding_rows(words: list[str], both: tuple[RowLengths, RowLengths], dice: random.Random) -> Any:
    """Endless pairs of an anchor and another text: half the words of both are of a dozen that the row owns,
    so that they can be told from the other rows'."""
    line = 0
    while True:
        line += 1
        own = dice.sample(words, 12)
        anchor, positive = (
            " ".join(
                dice.choice(own if dice.random() < 0.5 else words) for _ in range(max(3, one.draw(dice) - 2))
            )
            for one in both
        )
        yield {"line": line, "anchor": anchor, "positive": positive}


def pair_rows(words: list[str], both: tuple[RowLengths, RowLengths], dice: random.Random) -> Any:
    """Endless pairs: what is to be written repeats the source's words from its end."""
    line = 0
    while True:
        line += 1
        source = [dice.choice(words) for _ in range(max(2, both[0].draw(dice) - 1))]
        target = [source[-1 - index % len(source)] for index in range(max(2, both[1].draw(dice) - 1))]
        yield {"line": line, "prompt": " ".join(source), "completion": " ".join(target)}
