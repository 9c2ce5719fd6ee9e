"""The embedded default data: scenes of real handwritten digits, a pure function of (seed, split, index).

What was chosen, and why:

- **Real scans.** The 1,797 handwritten digits that ship inside scikit-learn: real variation, and no download.
  1,400 of them are for training and the other 397 for testing; no scan is in both, so that test scores speak
  of unseen scans. The textures behind the digits differ between the splits as well.
- **A task that is real but learnable in minutes on a CPU.** 64 x 64 pixels, one to three digits, two sizes,
  five colours. Sizes (16 and 32) and corners are multiples of 16, so that with patches of 16 a small digit is
  exactly one patch and a large one exactly four. This alignment is a help that real photographs do not give;
  `grid=1` takes it away.
- **Questions with one right answer.** Classes and colours are distinct within a scene ("the 7", "the red 7"),
  and centres differ by at least an eighth of the canvas in x ("left of").
- **Sizes worth asking about.** With independent sizes only 29 % of scenes would have a unique smallest digit;
  in `LONE_SMALLEST` of the scenes of several digits exactly one is made smaller than the rest.
- **Wording**: see `scene_text`.

A scene costs about a tenth of a millisecond, so pictures are drawn when read and nothing is stored.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from typing import ClassVar, Iterator, NamedTuple

import numpy as np

from vlm_jax.data import scene_text
from vlm_jax.data.records import Record, Region
from vlm_jax.data.scene_text import Digit

COLORS = {  # bright against the dark canvas, and far apart from each other
    "red": (235, 45, 45),
    "green": (50, 205, 70),
    "blue": (70, 120, 255),
    "yellow": (250, 225, 60),
    "magenta": (235, 70, 225),
}
SIZE_WORDS = {1: ("",), 2: ("small", "large"), 3: ("small", "medium", "large")}
SPLITS = ("train", "test")
SCAN = 8  # pixels, the side of a scan
TRAIN_SCANS = 1_400
LONE_SMALLEST = 0.6
TEXTURES = 8  # coarse noise tiles per split; shifts make each of them many thousand backgrounds

# An independent random stream for each thing drawn, so that asking more questions changes no picture.
PICTURE, TALK, CAPTION, EVALUATION = range(4)

Spot = tuple[int, int, int]  # left, top, side in pixels


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What to draw and what to ask about it. Raises ValueError, naming the key and the remedy."""

    kind: ClassVar[str] = "scenes"
    split: str = "train"  # whose scans: "train" | "test"
    size: int = 1_000_000  # number of scenes
    seed: int = 0
    canvas: int = 64  # pixels, the side of the picture
    digit_sizes: tuple[int, ...] = (16, 32)  # pixels, increasing
    min_digits: int = 1
    max_digits: int = 3
    single_fraction: float = 0.0  # share of scenes with one digit, before the uniform draw of the others
    grid: int = 16  # pixels; corners are multiples of it, 1 places digits freely
    colors: tuple[str, ...] = tuple(COLORS)
    conversations: int = 6  # per record, 0 to 14; beyond 6 lone digits run out of "yes" to ask for
    caption_style: str = "full"  # "full" | "varied", see `scene_text.varied_caption`

    def __post_init__(self) -> None:
        for key in ("digit_sizes", "colors"):  # lists, as a config file may give them, would not hash
            object.__setattr__(self, key, tuple(getattr(self, key)))
        for problem in _problems(self):
            raise ValueError(f"scenes: {problem}")


class SceneSource:
    """Record `i` is a pure function of (config, i); see the module's docstring for what it holds.

    `meta` has `digits` (dicts of digit, color, size, box in pixels; left to right), `scan_ids` (their indices
    into `sklearn.datasets.load_digits`) and `types` (of each conversation, see `scene_text.conversations`).
    """

    def __init__(self, config: SceneConfig, keep_bad: bool = False) -> None:
        self.config = config  # no scene is ever bad

    def __len__(self) -> int:
        return self.config.size

    def __getitem__(self, index: int) -> Record:
        config = self.config
        rng = self._rng(index, PICTURE)
        scene, rows = _compose(config, rng)
        caption = scene_text.caption(scene)
        if config.caption_style == "varied":
            caption = scene_text.varied_caption(scene, self._rng(index, CAPTION))
        talks, types = (), ()
        if config.conversations:  # the contrastive stage reads captions only, at half the cost
            talks, types = scene_text.conversations(scene, self._rng(index, TALK), config.conversations)
        return Record(
            images=(_paint(config, scene, rows, rng),),
            caption=caption,
            conversations=talks,
            regions=tuple(Region(tuple(x / config.canvas for x in d.box), d.phrase) for d in scene),
            meta={
                "digits": [d._asdict() for d in scene],
                "types": list(types),
                "scan_ids": [int(_scans(config.split).ids[row]) for row in rows],
            },
        )

    def vqa(self, index: int) -> list[tuple[str, str, str]]:
        """For evaluation: one (type, question, answer) of every type that scene `index` allows."""
        scene, _ = _compose(self.config, self._rng(index, PICTURE))
        return scene_text.one_of_each(scene, self._rng(index, EVALUATION))

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        index = operator.index(index)
        if not 0 <= index < self.config.size:
            raise IndexError(f"scenes: index {index} is outside 0..{self.config.size - 1}")
        entropy = (self.config.seed, SPLITS.index(self.config.split), index, stream)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


# Composing: which digits, and where.


def _compose(config: SceneConfig, rng: np.random.Generator) -> tuple[list[Digit], list[int]]:
    """The digits of a scene, left to right, and for each the row of its scan among those of the split."""
    n = config.min_digits + int(rng.random() * (config.max_digits - config.min_digits + 1))
    if rng.random() < config.single_fraction:
        n = 1
    words = dict(zip(config.digit_sizes, SIZE_WORDS[len(config.digit_sizes)]))
    spots = _place(config, _draw_sizes(config.digit_sizes, n, rng), rng)
    classes = rng.permutation(10)[:n].tolist()
    colors = rng.permutation(len(config.colors))[:n].tolist()
    drawn = []
    for (left, top, side), digit, color in zip(spots, classes, colors):
        box = (left, top, left + side, top + side)
        rows = _scans(config.split).rows[digit]
        row = rows[int(rng.random() * len(rows))]
        drawn.append((Digit(digit, config.colors[color], words[side], box), row))
    drawn.sort(key=lambda pair: pair[0].box[0] + pair[0].box[2])
    return [digit for digit, _ in drawn], [row for _, row in drawn]


def _draw_sizes(sizes: tuple[int, ...], n: int, rng: np.random.Generator) -> tuple[int, ...]:
    """`n` sizes in pixels, largest first: the order in which they are easiest to place."""
    lowest, ranks = 0, []
    if n > 1 and len(sizes) > 1 and rng.random() < LONE_SMALLEST:
        ranks = [int(rng.random() * (len(sizes) - 1))]
        lowest = ranks[0] + 1
    ranks += rng.integers(lowest, len(sizes), n - len(ranks)).tolist()
    return tuple(sizes[rank] for rank in sorted(ranks, reverse=True))


def _place(config: SceneConfig, sizes: tuple[int, ...], rng: np.random.Generator) -> tuple[Spot, ...]:
    """Random places for digits of these sizes, found by rejection.

    Three large digits fit on 64 pixels only if they line up, which free places never do: after 50 failures
    come coarser and coarser multiples of the grid, and the packed layout if even they do not help.
    """
    grid = config.grid
    while grid <= max(config.grid, sizes[-1]):
        for _ in range(50):
            if spots := _try_to_place(config.canvas, grid, sizes, rng):
                return spots
        grid *= 2
    return _pack(config.canvas, config.grid, sizes)


def _try_to_place(
    canvas: int, grid: int, sizes: tuple[int, ...], rng: np.random.Generator
) -> tuple[Spot, ...] | None:
    """One digit after the other, eight tries each; None where one of them finds no room."""
    spots: tuple[Spot, ...] = ()
    for side in sizes:
        places = (canvas - side) // grid + 1
        for u, v in rng.random((8, 2)).tolist():
            spot = int(u * places) * grid, int(v * places) * grid, side
            if _fits(spot, spots, canvas):
                spots += (spot,)
                break
        else:
            return None
    return spots


def _fits(spot: Spot, others: tuple[Spot, ...], canvas: int) -> bool:
    """No overlap with the others, and a centre at least canvas / 8 away from theirs in x."""
    x, y, side = spot
    for x2, y2, side2 in others:
        if abs(2 * x + side - 2 * x2 - side2) * 4 < canvas:
            return False
        if x < x2 + side2 and x2 < x + side and y < y2 + side2 and y2 < y + side:
            return False
    return True


@functools.lru_cache(maxsize=None)
def _pack(canvas: int, grid: int, sizes: tuple[int, ...]) -> tuple[Spot, ...] | None:
    """The first layout that fits, by backtracking column by column; None if there is none.

    Gives up, with None, after 100,000 places tried: on a fine grid the proof that nothing fits would take
    forever, and whatever fits only so tightly leaves no variety to learn from.
    """
    tried = itertools.count()

    def extend(spots: tuple[Spot, ...]) -> tuple[Spot, ...] | None:
        if len(spots) == len(sizes):
            return spots
        side = sizes[len(spots)]
        for left, top in itertools.product(range(0, canvas - side + 1, grid), repeat=2):
            if next(tried) > 100_000:
                return None
            spot = (left, top, side)
            if _fits(spot, spots, canvas) and (done := extend((*spots, spot))):
                return done
        return None

    return extend(())


# Painting.


def _paint(config: SceneConfig, scene: list[Digit], rows: list[int], rng: np.random.Generator) -> np.ndarray:
    """canvas x canvas x 3, uint8: coloured digits on dark noise, the scan's ink being the opacity."""
    side = config.canvas
    coarse, fine = _textures(config.split, side)
    tile, y, x, y2, x2 = (rng.random(5) * (TEXTURES, side, side, side, side)).astype(int).tolist()
    image = coarse[tile, y : y + side, x : x + side] + fine[y2 : y2 + side, x2 : x2 + side]
    for digit, row in zip(scene, rows):
        left, top, right, bottom = digit.box
        alpha = _alphas(config.split, digit.width)[row]
        patch = image[top:bottom, left:right]
        patch[:] = patch + alpha * (np.float32(COLORS[digit.color]) - patch)
    return image


class Scans(NamedTuple):
    """The scans of one split, n of them."""

    ids: np.ndarray  # [n] indices into scikit-learn's set
    ink: np.ndarray  # [n, 8, 8] float32, 0 (paper) to 1
    rows: list[list[int]]  # for each of the ten classes the rows of `ink` that show it


@functools.lru_cache(maxsize=None)
def _scans(split: str) -> Scans:
    """`RandomState`: NumPy promises never to change what it draws, and a scan must never change sides."""
    from sklearn.datasets import load_digits  # here: only users of scenes owe the second it takes

    data = load_digits()
    order = np.random.RandomState(0).permutation(len(data.target))
    ids = order[:TRAIN_SCANS] if split == "train" else order[TRAIN_SCANS:]
    ink = (data.images[ids] / 16).astype(np.float32)
    return Scans(ids, ink, [np.flatnonzero(data.target[ids] == digit).tolist() for digit in range(10)])


@functools.lru_cache(maxsize=None)
def _alphas(split: str, side: int) -> np.ndarray:
    """Every scan of the split at one size: [n, side, side, 1] float32 in 0..1 (7 MB at 32 pixels)."""
    resize = _bilinear(SCAN, side)
    return (resize @ _scans(split).ink @ resize.T)[..., None]


@functools.lru_cache(maxsize=None)
def _textures(split: str, canvas: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of twice the canvas, to cut windows from: coarse [n, h, w, 3] and fine [h, w, 3], uint8.

    Their sum stays below 116, so that it cannot overflow and the digits are brighter than the canvas.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((SPLITS.index(split), canvas))))
    resize = _bilinear(9, 2 * canvas)
    grey, tint = rng.random((TEXTURES, 1, 9, 9)), rng.random((TEXTURES, 3, 9, 9))
    coarse = resize @ (60 * grey + 30 * tint) @ resize.T
    fine = rng.integers(0, 26, (2 * canvas, 2 * canvas, 3))
    return np.moveaxis(coarse, 1, -1).astype(np.uint8, order="C"), fine.astype(np.uint8)


def _bilinear(old: int, new: int) -> np.ndarray:
    """[new, old] float32: the matrix that resizes one axis bilinearly, pixel centres aligned, edges held."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old))).astype(np.float32)


# Checking a configuration.


def _problems(c: SceneConfig) -> Iterator[str]:
    """One sentence for everything wrong with a configuration; a check may rely on those before it."""
    if c.split not in SPLITS:
        yield f"split={c.split!r} is unknown; use one of {', '.join(SPLITS)}"
    if c.caption_style not in ("full", "varied"):
        yield f"caption_style={c.caption_style!r} is unknown; use full or varied"
    if c.size < 1:
        yield f"size={c.size} leaves no scene; use at least 1"
    if c.seed < 0:
        yield f"seed={c.seed} is negative; use 0 or more"
    if not 0 <= c.single_fraction <= 1:
        yield f"single_fraction={c.single_fraction} is not a share; use a value between 0 and 1"
    if not 0 <= c.conversations <= scene_text.DISTINCT_QUESTIONS:
        yield f"conversations={c.conversations} cannot all differ; use 0 to {scene_text.DISTINCT_QUESTIONS}"
    if unknown := [name for name in c.colors if name not in COLORS]:
        yield f"colors has {unknown[0]!r}, which is unknown; use names among {', '.join(COLORS)}"
    if len(set(c.colors)) < len(c.colors):
        yield "colors has a name twice; list every colour once"
    if not 1 <= c.min_digits <= c.max_digits <= 5:
        yield f"min_digits={c.min_digits}, max_digits={c.max_digits} is no range; use 1 <= min <= max <= 5"
    if c.max_digits > len(c.colors):
        yield f"max_digits={c.max_digits} exceeds the {len(c.colors)} colors; list more or lower max_digits"
    yield from _problems_of_space(c)


def _problems_of_space(c: SceneConfig) -> Iterator[str]:
    if len(c.digit_sizes) not in SIZE_WORDS:
        yield f"digit_sizes={c.digit_sizes} has no words for its sizes; list one, two or three"
    if list(c.digit_sizes) != sorted(set(c.digit_sizes)) or c.digit_sizes[0] < SCAN:
        yield f"digit_sizes={c.digit_sizes} must increase from at least {SCAN} pixels, the size of a scan"
    if c.grid < 1 or c.canvas < 1 or c.canvas % c.grid:
        yield f"grid={c.grid} does not divide canvas={c.canvas}; use a divisor, or 1 to place freely"
    if c.digit_sizes[-1] > c.canvas:
        yield f"digit_sizes={c.digit_sizes} exceed canvas={c.canvas}; enlarge canvas or drop the large sizes"
    for sizes in itertools.combinations_with_replacement(reversed(c.digit_sizes), c.max_digits):
        if not _pack(c.canvas, c.grid, sizes):
            yield (
                f"max_digits={c.max_digits} of sizes {sizes} do not fit on canvas={c.canvas} with "
                f"grid={c.grid}; enlarge canvas, or lower max_digits, digit_sizes or grid"
            )
