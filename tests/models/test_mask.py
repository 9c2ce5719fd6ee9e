"""Masks: the worked examples of the module first, then a brute-force reading of the rule on random rows."""

import itertools

import jax
import numpy as np
import pytest

from vlm_jax.models import mask
from vlm_jax.models.mask import PADDING, SequenceInfo, empty

describe = jax.jit(mask.describe)
build_mask = jax.jit(mask.build_mask, static_argnums=2)
FIELDS = ("positions", "segment_ids", "subsegment_ids", "order", "image_ids")


def picture(info, window=None):
    """The mask of the only row, one string a query: x where it may look."""
    rows = np.asarray(build_mask(info, info, window))[0]
    return ["".join("x" if seen else "." for seen in row) for row in rows]


def row(*values):
    return np.array([values], np.int32)


def brute_force(q, k, window):
    """The rule, read aloud, a pair at a time; q and k are dicts of [b, t] arrays."""
    (batch, targets), sources = q["order"].shape, k["order"].shape[1]
    seen = np.zeros((batch, targets, sources), bool)
    for b, i, j in itertools.product(range(batch), range(targets), range(sources)):
        at_q, at_k = ({name: values[b, n] for name, values in side.items()} for side, n in ((q, i), (k, j)))
        if at_k["segment_ids"] == -1 or at_k["segment_ids"] != at_q["segment_ids"]:
            continue
        if at_k["subsegment_ids"] not in (0, at_q["subsegment_ids"]):
            continue
        one_image = at_k["image_ids"] > 0 and at_k["image_ids"] == at_q["image_ids"]
        if at_k["order"] > at_q["order"] and not one_image:
            continue
        far = window is not None and at_q["positions"] - at_k["positions"] >= window
        if far and at_q["order"] != at_k["order"]:
            continue
        seen[b, i, j] = True
    return seen


# The examples in the module's text.


@pytest.mark.parametrize("mask_ar, order, expected", [
    ((1, 1, 1, 1), (1, 2, 3, 4), ["x...", "xx..", "xxx.", "xxxx"]),  # causal
    ((0, 0, 0, 0), (0, 0, 0, 0), ["xxxx", "xxxx", "xxxx", "xxxx"]),  # bidirectional
    ((0, 0, 1, 1), (0, 0, 1, 2), ["xx..", "xx..", "xxx.", "xxxx"]),  # prefix-LM
])
def test_mask_ar(mask_ar, order, expected):
    info = describe(row(0, 0, 0, 0), mask_ar=row(*mask_ar))
    assert np.array_equal(info.order, [order])
    assert picture(info) == expected


def test_rows_are_causal_unless_told_otherwise():
    info = describe(row(0, 0, 0))
    assert picture(info) == ["x..", "xx.", "xxx"]
    assert picture(describe(row(0, 0, 0), mask_ar=0)) == ["xxx"] * 3


def test_two_answers_share_a_prefix_and_do_not_see_each_other():
    info = describe(row(0, 0, 0, 0, 0, 0), subsegment_ids=row(0, 0, 1, 1, 2, 2))
    assert picture(info) == ["x.....", "xx....", "xxx...", "xxxx..", "xx..x.", "xx..xx"]


# One rule at a time.


def test_packed_examples_do_not_see_each_other():
    assert picture(describe(row(0, 0, 1, 1))) == ["x...", "xx..", "..x.", "..xx"]


def test_branches_belong_to_their_own_segment():
    info = describe(row(0, 0, 1, 1), subsegment_ids=row(0, 1, 0, 1))
    assert picture(info) == ["x...", "xx..", "..x.", "..xx"]


def test_padding_is_seen_by_nobody_and_sees_nothing():
    assert picture(describe(row(PADDING, 0, 0, PADDING))) == ["....", ".x..", ".xx.", "...."]


def test_an_image_sees_itself_both_ways_and_text_stays_causal():
    info = describe(row(0, 0, 0, 0, 0), image_ids=row(0, 1, 1, 2, 0))
    assert picture(info) == ["x....", "xxx..", "xxx..", "xxxx.", "xxxxx"]


def test_equal_image_ids_of_two_segments_are_two_images():
    assert picture(describe(row(0, 0, 1, 1), image_ids=row(1, 1, 1, 1))) == ["xx..", "xx..", "..xx", "..xx"]


def test_an_image_inside_a_branch_stays_hidden_from_the_other_branch():
    info = describe(row(0, 0, 0), subsegment_ids=row(0, 1, 2), image_ids=row(0, 1, 1))
    assert picture(info) == ["x..", "xx.", "x.x"]


def test_a_window_counts_positions_not_slots():
    assert picture(describe(row(0, 0, 0, 0)), window=2) == ["x...", "xx..", ".xx.", "..xx"]
    far = describe(row(0, 0, 0), positions=row(0, 10, 11))
    assert picture(far, window=2) == ["x..", ".x.", ".xx"]


@pytest.mark.parametrize("described, expected", [
    (dict(mask_ar=row(0, 0, 0, 0, 1)), ["xxxx.", "xxxx.", "xxxx.", "xxxx.", "...xx"]),  # PaliGemma 2: the prefix whole
    (dict(image_ids=row(1, 1, 1, 1, 0)), ["xxxx.", "xxxx.", ".xxx.", "..xx.", "...xx"]),  # Gemma 3: ahead, not far back
])
def test_a_window_bounds_how_far_back_an_image_sees_but_not_a_prefix(described, expected):
    assert picture(describe(row(0, 0, 0, 0, 0), **described), window=2) == expected


def test_a_window_does_not_join_the_prefixes_of_two_examples():
    info = describe(row(0, 0, 1, 1), mask_ar=0, positions=row(0, 1, 0, 1))
    assert picture(info, window=1) == ["xx..", "xx..", "..xx", "..xx"]


def test_an_unused_cache_is_all_padding():
    info = empty(2, 3)
    assert not np.asarray(build_mask(describe(np.zeros((2, 4))), info)).any()
    assert all(getattr(info, name).shape == (2, 3) for name in FIELDS)


# describe and write.


@pytest.mark.parametrize("segments, expected", [
    ((0, 0, 0), (0, 1, 2)),
    ((PADDING, PADDING, 0, 0), (0, 0, 0, 1)),  # left padding
    ((0, 0, PADDING, PADDING), (0, 1, 1, 1)),  # right padding: what stands on padding does not matter
    ((PADDING, 0, PADDING, 0), (0, 0, 0, 1)),  # and padding in between
])
def test_positions_number_the_real_tokens(segments, expected):
    positions = np.asarray(describe(row(*segments)).positions)[0]
    real = np.array(segments) != PADDING
    assert np.array_equal(positions[real], np.array(expected)[real])
    assert (positions >= 0).all()


def test_given_positions_stand():
    assert np.array_equal(describe(row(0, 0, 0), positions=row(7, 3, 3)).positions, row(7, 3, 3))


def test_every_field_is_int32():
    ones = np.ones((1, 3), np.int8)
    info = describe(np.zeros((1, 3), np.int64), mask_ar=ones.astype(bool), image_ids=ones)
    assert {getattr(info, name).dtype.name for name in FIELDS} == {"int32"}


def test_write_replaces_a_stretch_of_every_field():
    old, new = empty(2, 5), SequenceInfo(*(np.full((2, 2), i + 1, np.int32) for i in range(5)))
    written = old.write(new, np.int32(2))
    for number, name in enumerate(FIELDS, start=1):
        expected = np.array(getattr(old, name))
        expected[:, 2:4] = getattr(new, name)
        assert np.array_equal(getattr(written, name), expected), name
        assert getattr(new, name)[0, 0] == number


# The whole rule.


@pytest.mark.parametrize("window", [None, 3])
def test_random_rows_follow_the_rule(window):
    rng = np.random.default_rng(0)
    draw = lambda low, high, tokens: rng.integers(low, high, (16, tokens)).astype(np.int32)
    side = lambda n: dict(positions=draw(0, 8, n), segment_ids=draw(-1, 2, n), subsegment_ids=draw(0, 3, n),
                          order=draw(0, 4, n), image_ids=draw(0, 3, n))
    q, k = side(7), side(9)
    seen = build_mask(SequenceInfo(**q), SequenceInfo(**k), window)
    expected = brute_force(q, k, window)
    assert expected.any() and not expected.all()
    assert np.array_equal(seen, expected)
