"""Scenes: the smallest example in words first, then what must hold for hundreds of drawn scenes."""

import collections
import doctest
import itertools
import pickle

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vlm_jax.data import scene_text
from vlm_jax.data.scene_text import Digit, zero_shot_prompt
from vlm_jax.data.scenes import COLORS, SPLITS, SceneConfig, SceneSource

OPENINGS = {
    "Which digits are": "which",
    "How many": "count",
    "What color": "color",
    "Is there": "presence",
    "What is left": "left_of",
    "Which is larger": "larger",
    "What is the smallest": "smallest",
}
FIVE = dict(max_digits=5, canvas=96)


def kind_of(question):
    return next(kind for opening, kind in OPENINGS.items() if question.startswith(opening))


def asked(record):
    """(question without its image mark, answer) of every turn but the caption's."""
    turns = [turn for talk in record.conversations for turn in zip(talk[::2], talk[1::2])]
    pairs = [(user.text.removeprefix("<image>\n"), assistant.text) for user, assistant in turns]
    return [pair for pair in pairs if pair[0] != "Describe the image."]


def same(a, b):
    images = all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))
    return images and all(
        getattr(a, key) == getattr(b, key) for key in ("caption", "conversations", "regions", "meta")
    )


@pytest.fixture(scope="module")
def records():
    source = SceneSource(SceneConfig(size=2_000))
    return [source[i] for i in range(2_000)]


# A scene in words.


def test_words_of_one_scene():
    scene = [
        Digit(3, "red", "large", (0, 0, 32, 32)),
        Digit(7, "blue", "small", (32, 16, 48, 32)),
        Digit(1, "green", "large", (32, 32, 64, 64)),
    ]
    assert scene_text.caption(scene) == "a large red 3, a small blue 7 and a large green 1"
    assert scene_text.caption(scene[:2]) == "a large red 3 and a small blue 7"
    assert scene_text.caption(scene[:1]) == "a large red 3"
    drawn = [scene_text.questions(scene, np.random.default_rng(i), 12) for i in range(50)]
    answers = {question: answer for _, question, answer in itertools.chain(*drawn)}
    assert answers["Which digits are there?"] == "3, 7 and 1"
    assert answers["How many digits are there?"] == "3"
    assert answers["What color is the 7?"] == "blue"
    assert answers["Is there a 3?"] == "yes" and answers["Is there a 4?"] == "no"
    assert answers["What is left of the 1?"] == "7" and answers["What is left of the 3?"] == "nothing"
    assert answers["Which is larger, the 3 or the 7?"] == "3" == answers["Which is larger, the 7 or the 3?"]
    assert "Which is larger, the 3 or the 1?" not in answers
    assert answers["What is the smallest digit?"] == "7"
    assert doctest.testmod(scene_text) == (0, 2)


def test_a_lone_digit_allows_fourteen_distinct_questions_the_first_six_balanced():
    scene = [Digit(3, "red", "small", (0, 0, 16, 16))]
    for i in range(20):
        six = scene_text.questions(scene, np.random.default_rng(i), 6)
        kinds = [kind for kind, _, _ in six]
        assert sorted(kinds) == ["color", "count", "left_of", "presence", "presence", "which"]
        assert {answer for kind, _, answer in six if kind == "presence"} == {"yes", "no"}
    everything = scene_text.questions(scene, np.random.default_rng(0), 99)
    assert len({q for _, q, _ in everything}) == len(everything) == scene_text.DISTINCT_QUESTIONS


# Purity.


def test_a_record_is_a_function_of_config_and_index():
    config = SceneConfig(size=10)
    ours, theirs = SceneSource(config), SceneSource(SceneConfig(size=20))  # the length does not matter
    forward = [ours[i] for i in range(10)]
    np.random.seed(1)  # and neither does global state
    backward = [theirs[np.int64(i)] for i in reversed(range(10))][::-1]
    for i, (a, b) in enumerate(zip(forward, backward)):
        assert same(a, b) and same(a, ours[i])
        assert ours.vqa(i) == theirs.vqa(i)
    assert same(forward[3], pickle.loads(pickle.dumps(ours))[3])  # as Grain's workers read it
    assert len({r.images[0].tobytes() for r in forward}) == 10
    assert len(ours) == 10 and len(list(ours)) == 10
    for index in (-1, 10):
        with pytest.raises(IndexError, match=r"0\.\.9"):
            ours[index]


def test_seed_and_split_change_scenes_and_talk_does_not_change_pictures():
    first = SceneSource(SceneConfig())[0]
    assert not same(first, SceneSource(SceneConfig(seed=1))[0])
    assert not same(first, SceneSource(SceneConfig(split="test"))[0])
    silent = SceneSource(SceneConfig(conversations=0, caption_style="varied"))[0]
    assert np.array_equal(first.images[0], silent.images[0]) and silent.conversations == ()


def test_splits_share_no_scan_and_both_show_all_classes():
    target, used = load_digits().target, {}
    for split in SPLITS:
        source = SceneSource(SceneConfig(split=split, min_digits=3, conversations=0))
        metas = [source[i].meta for i in range(1_500)]
        used[split] = {scan for meta in metas for scan in meta["scan_ids"]}
        assert {target[scan] for scan in used[split]} == set(range(10))
        for meta in metas:
            assert [d["digit"] for d in meta["digits"]] == target[meta["scan_ids"]].tolist()
    assert not used["train"] & used["test"]
    assert len(used["test"]) == 397 and 1_200 < len(used["train"]) <= 1_400


# The picture.


@pytest.mark.parametrize(
    "options",
    [{}, {"grid": 1}, {"canvas": 128}, FIVE, FIVE | dict(grid=1, min_digits=5, digit_sizes=(12, 20, 32))],
    ids=str,
)
def test_digits_lie_apart_on_the_grid_and_inside(options):
    config = SceneConfig(conversations=0, **options)
    source = SceneSource(config)
    for i in range(200):
        record = source[i]
        image, digits = record.images[0], record.meta["digits"]
        assert image.shape == (config.canvas, config.canvas, 3) and image.dtype == np.uint8
        assert config.min_digits <= len(digits) <= config.max_digits
        for key in ("digit", "color"):
            assert len({d[key] for d in digits}) == len(digits)
        covered = np.zeros(image.shape[:2], int)
        for d in digits:
            left, top, right, bottom = d["box"]
            assert 0 <= left < right <= config.canvas and 0 <= top < bottom <= config.canvas
            assert left % config.grid == top % config.grid == 0
            assert right - left == bottom - top in config.digit_sizes
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1
        centres = [(d["box"][0] + d["box"][2]) / 2 for d in digits]
        assert centres == sorted(centres) and np.diff(centres).min(initial=99) >= config.canvas / 8


def test_regions_hold_the_ink_and_nothing_else_does(records):
    for record in records[:300]:
        image, digits = record.images[0].astype(int), record.meta["digits"]
        outside = np.ones(image.shape[:2], bool)
        for region, d in zip(record.regions, digits, strict=True):
            left, top, right, bottom = (round(64 * x) for x in region.box)
            assert (left, top, right, bottom) == d["box"]
            assert region.phrase == f"{d['size']} {d['color']} {d['digit']}"
            outside[top:bottom, left:right] = False
            patch = image[top:bottom, left:right].reshape(-1, 3)
            distance = {name: np.abs(patch - rgb).sum(-1).min() for name, rgb in COLORS.items()}
            assert min(distance, key=distance.get) == d["color"] and distance[d["color"]] < 90
            assert 0.05 < np.mean(patch.max(-1) > 115) < 0.9  # brighter than any canvas
        assert image[outside].max() < 116


def test_every_count_size_color_and_class_is_drawn(records):
    digits = [d for record in records for d in record.meta["digits"]]
    assert {len(record.meta["digits"]) for record in records} == {1, 2, 3}
    for key, values in {"digit": range(10), "color": COLORS, "size": ("small", "large")}.items():
        shares = collections.Counter(d[key] for d in digits)
        assert set(shares) == set(values) and min(shares.values()) > 0.7 * len(digits) / len(shares)


def test_single_fraction():
    source = SceneSource(SceneConfig(min_digits=2, single_fraction=0.5, conversations=0))
    counts = collections.Counter(len(source[i].meta["digits"]) for i in range(1_000))
    assert counts[1] == pytest.approx(500, abs=60) and counts[2] == pytest.approx(250, abs=60)


def test_words_for_one_and_three_sizes():
    plain = SceneSource(SceneConfig(digit_sizes=(16,), max_digits=1))[0]
    (d,) = plain.meta["digits"]
    assert plain.caption == f"a {d['color']} {d['digit']}"
    three = SceneSource(SceneConfig(digit_sizes=(8, 16, 24), grid=8))
    sizes = {(d["size"], d["box"][2] - d["box"][0]) for i in range(50) for d in three[i].meta["digits"]}
    assert sizes == {("small", 8), ("medium", 16), ("large", 24)}


# What is said.


def expected(question, digits):
    """The answer found again from `meta`, the slow and plain way."""
    kind, named = kind_of(question), [int(c) for c in question if c.isdigit()]
    width = {d["digit"]: d["box"][2] - d["box"][0] for d in digits}
    centre = {d["digit"]: (d["box"][0] + d["box"][2]) / 2 for d in digits}
    if kind == "which":
        *head, last = [str(d) for d in sorted(centre, key=centre.get)]
        return ", ".join(head) + " and " + last if head else last
    if kind == "count":
        return str(len(digits))
    if kind == "color":
        return {d["digit"]: d["color"] for d in digits}[named[0]]
    if kind == "presence":
        return "yes" if named[0] in centre else "no"
    if kind == "left_of":
        left = [d for d in centre if centre[d] < centre[named[0]]]
        return str(max(left, key=centre.get)) if left else "nothing"
    if kind == "larger":
        assert width[named[0]] != width[named[1]]
        return str(max(named, key=width.get))
    smallest = [d for d in width if width[d] == min(width.values())]
    assert len(smallest) == 1 and len(digits) > 1
    return str(smallest[0])


@pytest.mark.parametrize("options", [{}, FIVE], ids=str)
def test_answers_and_captions_agree_with_the_scene(options):
    source = SceneSource(SceneConfig(**options))
    for i in range(500):
        record, vqa = source[i], source.vqa(i)
        digits = record.meta["digits"]
        for question, answer in asked(record) + [(q, a) for _, q, a in vqa]:
            assert answer == expected(question, digits)
        widths = sorted(d["box"][2] - d["box"][0] for d in digits)
        askable = list(scene_text.TYPES[:5]) + ["larger"] * (widths[0] < widths[-1])
        askable += ["smallest"] * (len(widths) > 1 and widths[0] < widths[1])
        assert [kind for kind, _, _ in vqa] == askable == [kind_of(q) for _, q, _ in vqa]
        ordered = sorted(digits, key=lambda d: d["box"][0] + d["box"][2])
        items = [f"a {d['size']} {d['color']} {d['digit']}" for d in ordered]
        assert record.caption == " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def test_shares_and_priors_of_the_questions(records):
    answers = collections.defaultdict(list)
    for record in records:
        for question, answer in asked(record):
            answers[kind_of(question)].append((answer, len(record.meta["digits"])))
    total = sum(map(len, answers.values()))
    assert set(answers) == set(scene_text.TYPES)
    assert min(len(of_type) for of_type in answers.values()) > 0.07 * total  # asked for: 0.05
    yes = [answer == "yes" for answer, _ in answers["presence"]]
    assert np.mean(yes) == pytest.approx(0.5, abs=0.03)
    nothing = [answer == "nothing" for answer, digits in answers["left_of"] if digits > 1]
    assert np.mean(nothing) < 1 / 3
    for kind in ("which", "smallest", "larger"):
        assert collections.Counter(answers[kind]).most_common(1)[0][1] < 0.2 * len(answers[kind])


def test_the_larger_digit_is_mentioned_first_half_of_the_time(records):
    pairs = [(q, a) for record in records for q, a in asked(record) if kind_of(q) == "larger"]
    assert np.mean([f"the {a} or" in q for q, a in pairs]) == pytest.approx(0.5, abs=0.06)


def test_six_conversations_with_one_mark_each(records):
    turns = collections.Counter()
    for record in records:
        talks, types = record.conversations, record.meta["types"]
        assert len(talks) == len(types) == 6 and types[:2] == ["caption", "conversation"]
        assert [m.text for m in talks[0]] == ["<image>\nDescribe the image.", record.caption]
        for talk in talks:
            assert [m.role for m in talk] == ["user", "assistant"] * (len(talk) // 2)
            assert talk[0].text.startswith("<image>\n")
            assert sum(m.text.count("<image>") for m in talk) == 1
            assert not any(m.text.endswith(".") for m in talk[1::2])
        turns[len(talks[1]) // 2] += 1
        assert all(len(talk) == 2 for talk in talks[2:])
        assert types[2:] == [kind_of(q) for q, _ in asked(record)[-4:]]
        questions = [q for q, _ in asked(record)]
        assert len(set(questions)) == len(questions)
    assert set(turns) == {2, 3} and min(turns.values()) > 500


@pytest.mark.parametrize("count", [0, 1, 2, 3, 14])
def test_any_number_of_conversations(count):
    source = SceneSource(SceneConfig(conversations=count))
    for i in range(30):
        record = source[i]
        assert len(record.conversations) == len(record.meta["types"]) == count
        assert ("caption" in record.meta["types"]) == ("conversation" in record.meta["types"]) == (count >= 3)
        questions = [q for q, _ in asked(record)]
        assert len(set(questions)) == len(questions)


def test_varied_captions_put_the_zero_shot_prompt_in_distribution():
    assert zero_shot_prompt(3) == "a 3"
    varied = SceneSource(SceneConfig(caption_style="varied", conversations=3))
    words = collections.Counter()
    for i in range(1_500):
        record = varied[i]
        digits = record.meta["digits"]
        if len(digits) > 1:
            assert record.caption == record.conversations[0][1].text
            continue
        d = digits[0]
        short, full = zero_shot_prompt(d["digit"]), f"a {d['size']} {d['color']} {d['digit']}"
        assert record.caption in (short, f"a {d['color']} {d['digit']}", full)
        assert record.conversations[0][1].text == full
        words[len(record.caption.split())] += 1
    shares = np.array([words[n] for n in (2, 3, 4)]) / words.total()
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.07)


# Configurations.


def test_five_digits_are_drawn():
    source = SceneSource(SceneConfig(**FIVE, conversations=0))
    assert {len(source[i].meta["digits"]) for i in range(60)} == {1, 2, 3, 4, 5}


def test_a_list_from_a_config_file_is_as_good_as_a_tuple():
    config = SceneConfig(digit_sizes=[16, 32], colors=["red", "green", "blue"])
    assert config.digit_sizes == (16, 32) and hash(config)
    digits = itertools.chain(*(SceneSource(config)[i].meta["digits"] for i in range(20)))
    assert {d["color"] for d in digits} == {"red", "green", "blue"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "val"}, "split='val' is unknown; use one of train, test"),
        ({"caption_style": "short"}, "caption_style='short' is unknown; use full or varied"),
        ({"size": 0}, "size=0 leaves no scene"),
        ({"seed": -1}, "seed=-1 is negative"),
        ({"single_fraction": 1.5}, "single_fraction=1.5 .* between 0 and 1"),
        ({"conversations": 15}, "conversations=15 .* use 0 to 14"),
        ({"colors": ("red", "teal")}, "colors has 'teal'.* red, green, blue, yellow, magenta"),
        ({"colors": ("red", "red", "blue")}, "colors has a name twice"),
        ({"colors": ("red", "blue")}, "max_digits=3 exceeds the 2 colors"),
        ({"max_digits": 6}, "min_digits=1, max_digits=6 .* max <= 5"),
        ({"min_digits": 4}, "min_digits=4, max_digits=3"),
        ({"min_digits": 0}, "min_digits=0"),
        ({"digit_sizes": ()}, "digit_sizes=.* list one, two or three"),
        ({"digit_sizes": (8, 16, 24, 32)}, "digit_sizes=.* list one, two or three"),
        ({"digit_sizes": (32, 16)}, "digit_sizes=.* must increase"),
        ({"digit_sizes": (4, 16)}, "digit_sizes=.* at least 8"),
        ({"grid": 24}, "grid=24 does not divide canvas=64"),
        ({"grid": 0}, "grid=0 does not divide"),
        ({"canvas": 16}, r"digit_sizes=\(16, 32\) exceed canvas=16; enlarge canvas"),
        ({"max_digits": 4}, "max_digits=4 .*do not fit on canvas=64 with grid=16; enlarge canvas"),
        ({"max_digits": 5, "grid": 1}, "max_digits=5 .*do not fit"),
    ],
    ids=str,
)
def test_a_bad_configuration_says_which_key_and_what_to_do(options, message):
    with pytest.raises(ValueError, match=f"^scenes: {message}") as error:
        SceneConfig(**options)
    assert "\n" not in str(error.value)
