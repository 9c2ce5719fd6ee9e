"""Rows: one written out by hand, then every rule derived again, the slow way, for random conversations."""

import numpy as np
import pytest

from vlm_jax.data.rows import IGNORED, Tokens, build_row, fit, shared_prefix

IMAGE = 9


def tokens(ids, loss=(), image=()):
    """A conversation; `loss` and `image` list places, image tokens are numbered in order."""
    flags, index = np.zeros(len(ids), np.int32), np.full(len(ids), -1, np.int32)
    flags[list(loss)], index[list(image)] = 1, np.arange(len(image))
    return Tokens(np.array(ids, np.int32), flags, index)


def random_conversations(rng, count):
    """Conversations about one image that begin alike for a while, each with one to three learnt stretches."""
    common = list(rng.integers(10, 14, rng.integers(1, 6)))
    visual = int(rng.integers(0, 4))
    talks = []
    for _ in range(count):
        ids = [1, *[IMAGE] * visual, *common, *rng.integers(10, 14, rng.integers(1, 8))]
        loss = []
        for _ in range(rng.integers(1, 4)):
            answer = list(rng.integers(10, 14, rng.integers(1, 4)))
            loss += range(len(ids), len(ids) + len(answer))
            ids += [*answer, *rng.integers(10, 14, rng.integers(0, 3))]
        talks.append(tokens(ids, loss, range(1, 1 + visual)))
    return talks


def branches(row):
    """The rows' conversations read back: for each, the indices of its tokens in the row, prefix included."""
    real = row["segment_ids"] == 0
    ids = row["subsegment_ids"]
    prefix = np.flatnonzero(real & (ids == 0))
    found = sorted(set(ids[real]) - {0})
    return [np.concatenate([prefix, np.flatnonzero(real & (ids == b))]) for b in found] or [prefix]


# Written by hand.


def test_one_conversation():
    #                  <s> img img  Q  :  A </s>  Q  :  A </s>
    row = build_row([tokens([1, 9, 9, 10, 11, 12, 2, 13, 11, 14, 2], [5, 6, 9, 10], [1, 2])], 14)
    assert {name: value.tolist() for name, value in row.items()} == {
        "tokens":         [1, 9, 9, 10, 11, 12, 2, 13, 11, 14, 2, 0, 0, 0],
        "targets":        [9, 9, 10, 11, 12, 2, 13, 11, 14, 2, 0, 0, 0, 0],
        "loss_weights":   [0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0],
        "positions":      [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0, 0],
        "segment_ids":    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1],
        "subsegment_ids": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        "image_index":    [-1, 0, 1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1],
    }
    assert {value.dtype for name, value in row.items() if name != "loss_weights"} == {np.dtype(np.int32)}
    assert row["loss_weights"].dtype == np.float32


def test_two_conversations_share_what_they_begin_with():
    #       <s> img  Q  :  A </s>             <s> img  Q' Q'  :  A </s>
    talks = [tokens([1, 9, 10, 11, 12, 2], [4, 5], [1]), tokens([1, 9, 13, 14, 11, 15, 2], [5, 6], [1])]
    assert shared_prefix(talks) == 2
    row = build_row(talks, 13)
    assert {name: value.tolist() for name, value in row.items()} == {
        #                 prefix  first branch   second branch
        "tokens":         [1, 9,  10, 11, 12, 2,  13, 14, 11, 15, 2,  0, 0],
        "targets":        [9, 0,  11, 12, 2, 0,   14, 11, 15, 2, 0,   0, 0],
        "loss_weights":   [0, 0,  0, 1, 1, 0,     0, 0, 1, 1, 0,      0, 0],
        "positions":      [0, 1,  2, 3, 4, 5,     2, 3, 4, 5, 6,      0, 0],
        "segment_ids":    [0, 0,  0, 0, 0, 0,     0, 0, 0, 0, 0,      -1, -1],
        "subsegment_ids": [0, 0,  1, 1, 1, 1,     2, 2, 2, 2, 2,      0, 0],
        "image_index":    [-1, 0, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1],
    }


# The shared prefix.


def test_the_token_before_an_answer_stays_in_its_branch():
    """Two answers to one question: the last shared token has two targets, so each branch has its own."""
    talks = [tokens([1, 10, 11, 12], [3]), tokens([1, 10, 11, 13], [3])]
    assert shared_prefix(talks) == 2
    row = build_row(talks, 6)
    assert row["tokens"].tolist() == [1, 10, 11, 12, 11, 13]
    assert row["targets"].tolist() == [10, IGNORED, 12, IGNORED, 13, IGNORED]


def test_prefixes_of_little_in_common():
    a = tokens([1, 10, 11, 12], [3])
    assert shared_prefix([a]) == 0  # nobody to share with
    assert shared_prefix([a, tokens([2, 10, 11, 12], [3])]) == 0
    assert shared_prefix([a, tokens([1, 10, 11, 12], [1])]) == 0  # learnt from the second token on
    assert shared_prefix([a, tokens([1, 10], [0])]) == 0  # the first token learnt: never in a prefix
    assert shared_prefix([a, tokens([1, 10])]) == 2  # nothing learnt: all of it may be shared
    assert shared_prefix([a, a, tokens([1, 13, 11, 12], [3])]) == 1


def test_the_same_ids_with_other_visual_tokens_are_not_the_same():
    first, second = tokens([1, 9, 10, 11], [3], [1]), tokens([1, 9, 10, 11], [3])
    assert shared_prefix([first, second]) == 1


# Every rule, for random conversations.


@pytest.mark.parametrize("seed", range(40))
def test_a_row_holds_every_conversation_whole(seed):
    rng = np.random.default_rng(seed)
    talks = random_conversations(rng, int(rng.integers(1, 5)))
    length = sum(map(len, talks)) + int(rng.integers(0, 5))
    row = build_row(talks, length)
    assert {value.shape for value in row.values()} == {(length,)}
    assert len(branches(row)) == len(talks)

    predicted = np.zeros(length, bool)
    for talk, places in zip(talks, branches(row)):
        assert row["tokens"][places].tolist() == talk.ids.tolist()
        assert row["image_index"][places].tolist() == talk.image_index.tolist()
        assert row["positions"][places].tolist() == list(range(len(talk)))
        # What is learnt of this conversation is the next token of this conversation, and all of it is.
        for at, following in zip(places, range(1, len(talk))):
            if row["loss_weights"][at]:
                assert row["targets"][at] == talk.ids[following]
        learnt = [following for at, following in zip(places, range(1, len(talk))) if row["loss_weights"][at]]
        assert learnt == np.flatnonzero(talk.loss).tolist()
        predicted[places[:-1]] = True
    assert row["loss_weights"].sum() == sum(talk.loss.sum() for talk in talks)
    assert not row["loss_weights"][~predicted].any()
    padding = row["segment_ids"] == -1
    assert not row["tokens"][padding].any() and (row["image_index"][padding] == -1).all()


@pytest.mark.parametrize("seed", range(40))
def test_the_shared_prefix_is_the_longest_that_is_allowed(seed):
    rng = np.random.default_rng(seed)
    talks = random_conversations(rng, int(rng.integers(2, 5)))

    def allowed(n):
        alike = all(t.ids[:n].tolist() == talks[0].ids[:n].tolist() for t in talks)
        same_image = all(t.image_index[:n].tolist() == talks[0].image_index[:n].tolist() for t in talks)
        return alike and same_image and all(n < np.flatnonzero(t.loss)[0] for t in talks)

    assert shared_prefix(talks) == max(n for n in range(min(map(len, talks))) if allowed(n))


# Rows too short.


def test_what_does_not_fit_is_left_out_and_what_comes_later_may_still_fit():
    short, long = tokens([1, 10, 11, 2], [2, 3]), tokens([1, *[12] * 9, 2], [9, 10])
    assert fit([short, long, short], 7, "x") == [short, short]  # 1 shared, 3 each
    assert fit([long, short], 6, "x") == [short]
    assert fit([short, long], 14, "x") == [short, long]


def test_only_where_nothing_fits_is_the_first_cut_short():
    long = tokens([1, 9, 9, *range(10, 18), 2], range(4, 12), [1, 2])
    (cut,) = fit([long, long], 6, "x")
    assert cut.ids.tolist() == [1, 9, 9, 10, 11, 12] and cut.loss.tolist() == [0, 0, 0, 0, 1, 1]
    assert build_row([cut], 6)["loss_weights"].sum() == 2


def test_an_image_is_never_cut():
    talk = tokens([1, 9, 9, 9, 10, 11, 2], [5, 6], [1, 2, 3])
    assert len(fit([talk], 4, "x")[0]) == 4  # no word left, but the image is whole
    says = "photo 7: its images take 3 visual tokens, a row holds 3 tokens.*length"
    with pytest.raises(ValueError, match=says):
        fit([talk], 3, "photo 7")


@pytest.mark.parametrize("seed", range(40))
def test_what_fits_fits(seed):
    rng = np.random.default_rng(seed)
    talks = random_conversations(rng, int(rng.integers(1, 6)))
    length = int(rng.integers(5, sum(map(len, talks)) + 2))
    kept = fit(talks, length, "x")
    row = build_row(kept, length)  # would raise if it were too short
    assert row["loss_weights"].sum() == sum(talk.loss.sum() for talk in kept)
    if len(kept) > 1:
        assert all(any(k is t for t in talks) for k in kept)  # only whole conversations
