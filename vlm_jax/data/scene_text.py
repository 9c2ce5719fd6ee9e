"""What is said about a scene of digits: captions, questions with answers, conversations.

A scene is a sequence of `Digit`, left to right by centre. Digits of a scene differ in class, so "the 7" names
one of them. Every question type has one wording, so that a small model spends itself on looking and not on
paraphrase, and short answers without a final period, so that exact match is a fair score.

    >>> scene = [Digit(3, "red", "large", (0, 0, 32, 32)), Digit(7, "blue", "small", (48, 16, 64, 32))]
    >>> caption(scene)
    'a large red 3 and a small blue 7'

    which     Which digits are there?                3 and 7      always; left to right
    count     How many digits are there?             2            always
    color     What color is the 7?                   blue         always
    presence  Is there a 4?                          no           always; yes and no equally often
    left_of   What is left of the 7?                 3            always; the nearest, or "nothing"
    larger    Which is larger, the 7 or the 3?       3            where two sizes differ
    smallest  What is the smallest digit?            7            where one is smaller than all others
"""

from __future__ import annotations

import itertools
from typing import Callable, NamedTuple, Sequence, TypeVar

import numpy as np

from vlm_jax.data.records import IMAGE_MARK, Conversation, Message

LEFTMOST_SHARE = 0.25  # how often `left_of` asks about the leftmost of several digits: "nothing"
DESCRIBE = "Describe the image."

QA = tuple[str, str]  # question, answer
T = TypeVar("T")


class Digit(NamedTuple):
    """One digit of a scene. The box is square and covers the whole scan, its dark border included."""

    digit: int
    color: str
    size: str  # "small" | "medium" | "large"; "" where the configuration has a single size
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels

    @property
    def width(self) -> int:
        return self.box[2] - self.box[0]

    @property
    def phrase(self) -> str:
        """'large red 3': names this digit among those of its scene."""
        return " ".join(filter(None, (self.size, self.color, str(self.digit))))


Scene = Sequence[Digit]


def zero_shot_prompt(digit: int) -> str:
    """The caption that stands for a class: 'a 3'. `varied_caption` makes it part of what is trained on."""
    return f"a {digit}"


def caption(scene: Scene) -> str:
    """Everything there is, left to right: 'a large red 3, a small blue 7 and a small green 1'."""
    return _listed([f"a {d.phrase}" for d in scene])


def varied_caption(scene: Scene, rng: np.random.Generator) -> str:
    """The full caption; for a lone digit 'a 3' half of the time and 'a red 3' a quarter of the time."""
    if len(scene) > 1:
        return caption(scene)
    (d,) = scene
    short = zero_shot_prompt(d.digit)
    return (short, short, f"a {d.color} {d.digit}", caption(scene))[int(rng.random() * 4)]


# One function per type: every question of the type that the scene allows, in the order in which to ask them.
# The order is random and carries the balance of the answers; an empty list: the type is not askable here.


def _which(scene: Scene, rng: np.random.Generator) -> list[QA]:
    return [("Which digits are there?", _listed([str(d.digit) for d in scene]))]


def _count(scene: Scene, rng: np.random.Generator) -> list[QA]:
    return [("How many digits are there?", str(len(scene)))]


def _color(scene: Scene, rng: np.random.Generator) -> list[QA]:
    return [(f"What color is the {d.digit}?", d.color) for d in _shuffled(scene, rng)]


def _presence(scene: Scene, rng: np.random.Generator) -> list[QA]:
    """Yes and no alternate from a random start: the first one or two questions are fair in any scene."""
    present = {d.digit for d in scene}
    by_answer = [
        [(f"Is there a {d}?", "yes") for d in _shuffled(sorted(present), rng)],
        [(f"Is there a {d}?", "no") for d in _shuffled([d for d in range(10) if d not in present], rng)],
    ]
    turns = itertools.zip_longest(*_shuffled(by_answer, rng))
    return [qa for turn in turns for qa in turn if qa is not None]


def _left_of(scene: Scene, rng: np.random.Generator) -> list[QA]:
    neighbours = ["nothing", *(str(d.digit) for d in scene)]
    leftmost, *others = [(f"What is left of the {d.digit}?", left) for d, left in zip(scene, neighbours)]
    others = _shuffled(others, rng)
    if rng.random() < LEFTMOST_SHARE:
        return [leftmost, *others]
    return [*others, leftmost]


def _larger(scene: Scene, rng: np.random.Generator) -> list[QA]:
    """Each pair of unlike sizes once, its two digits mentioned in random order."""
    pairs = [pair for pair in itertools.combinations(scene, 2) if pair[0].width != pair[1].width]
    asked = []
    for pair in _shuffled(pairs, rng):
        first, second = _shuffled(pair, rng)
        answer = str(max(pair, key=lambda d: d.width).digit)
        asked.append((f"Which is larger, the {first.digit} or the {second.digit}?", answer))
    return asked


def _smallest(scene: Scene, rng: np.random.Generator) -> list[QA]:
    least = min(d.width for d in scene)
    smallest = [d for d in scene if d.width == least]
    if len(scene) < 2 or len(smallest) > 1:
        return []
    return [("What is the smallest digit?", str(smallest[0].digit))]


QUESTIONS: dict[str, Callable[[Scene, np.random.Generator], list[QA]]] = {
    "which": _which,
    "count": _count,
    "color": _color,
    "presence": _presence,
    "left_of": _left_of,
    "larger": _larger,
    "smallest": _smallest,
}
TYPES = tuple(QUESTIONS)
RARE = ("larger", "smallest")  # not askable in every scene, hence asked first in those where they are
DISTINCT_QUESTIONS = 14  # what a lone digit, the poorest scene, allows: 10 presence, one of 4 other types


def one_of_each(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(type, question, answer) for every type that the scene allows, in the order of `TYPES`."""
    options = ((kind, ask(scene, rng)) for kind, ask in QUESTIONS.items())
    return [(kind, *asked[0]) for kind, asked in options if asked]


def questions(scene: Scene, rng: np.random.Generator, count: int) -> list[tuple[str, str, str]]:
    """`count` (type, question, answer) with distinct questions, in random order.

    Drawn in rounds: the first question of every askable type, then the second of those that have one, and so
    on; within a round the rare types come first. A lone digit allows six with fair presence answers (one yes,
    one no) and `DISTINCT_QUESTIONS` in all.
    """
    options = {kind: ask(scene, rng) for kind, ask in QUESTIONS.items()}
    drawn: list[tuple[str, str, str]] = []
    for nth in itertools.count():
        kinds = [kind for kind in TYPES if len(options[kind]) > nth]
        if len(drawn) >= count or not kinds:
            return _shuffled(drawn[:count], rng)
        kinds = sorted(_shuffled(kinds, rng), key=lambda kind: kind not in RARE)
        drawn += [(kind, *options[kind][nth]) for kind in kinds]


def conversations(
    scene: Scene, rng: np.random.Generator, count: int
) -> tuple[tuple[Conversation, ...], tuple[str, ...]]:
    """`count` conversations and what each is: "caption", "conversation" (several turns) or a question type.

    From three on, the first asks for the caption and the second has two or three turns (two about a lone
    digit, which gives less to talk about); all others, and all of fewer than three, ask one question.
    """
    kinds, talks, turns = [], [], 0
    if count >= 3:
        turns = 2 if len(scene) == 1 else 2 + int(rng.random() * 2)
        kinds, count = ["caption", "conversation"], count - 2
    asked = questions(scene, rng, count + turns)
    if turns:
        talks = [_talk([(DESCRIBE, caption(scene))]), _talk([(q, a) for _, q, a in asked[:turns]])]
    kinds += [kind for kind, _, _ in asked[turns:]]
    talks += [_talk([(q, a)]) for _, q, a in asked[turns:]]
    return tuple(talks), tuple(kinds)


def _talk(turns: Sequence[QA]) -> Conversation:
    """A conversation about one image, whose mark stands in the first user message only."""
    messages = [m for q, a in turns for m in (Message("user", q), Message("assistant", a))]
    messages[0] = Message("user", f"{IMAGE_MARK}\n{turns[0][0]}")
    return tuple(messages)


def _listed(items: Sequence[str]) -> str:
    """'3', '3 and 5', '3, 5 and 7'."""
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last


def _shuffled(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    """A copy in random order."""
    copy = list(items)
    rng.shuffle(copy)  # type: ignore[arg-type]  # any mutable sequence will do
    return copy
