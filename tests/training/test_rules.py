"""Rules on parameter paths, on a tree of four leaves."""

import re

import pytest

from vlm_jax.training.rules import flatten, match, unflatten

PATHS = ["connector/linear_1/kernel", "decoder/blocks/attn/q/kernel", "decoder/embedding", "logit_scale"]


def test_the_first_rule_that_matches_wins():
    rules = [("decoder/blocks/.*", 1), ("decoder/.*", 2), (".*/kernel", 3), (".*", None)]
    assert match(rules, PATHS) == {
        "connector/linear_1/kernel": 3, "decoder/blocks/attn/q/kernel": 1, "decoder/embedding": 2,
        "logit_scale": None}
    assert match([(".*", 4), ("decoder/.*", 2)], PATHS) == dict.fromkeys(PATHS, 4)


def test_a_rule_must_match_the_whole_path():
    """"decoder" is not a prefix that means everything below it: that would also freeze "decoder_2"."""
    with pytest.raises(ValueError, match="'decoder' matches no parameter"):
        match([("decoder", 1), (".*", None)], PATHS)
    with pytest.raises(ValueError, match="'embedding' matches no parameter"):
        match([("embedding", 1), (".*", None)], PATHS)


def test_every_parameter_must_be_covered():
    with pytest.raises(ValueError, match=re.escape("No rule covers the parameter 'logit_scale'")):
        match([("(connector|decoder)/.*", 1)], PATHS)
    with pytest.raises(ValueError, match="No rule covers"):
        match([], PATHS)
    assert match([], []) == {}


def test_a_mistyped_rule_is_an_error_that_tells_what_there_is():
    says = "'conector/.*' matches no parameter; the tree has connector, decoder, logit_scale"
    with pytest.raises(ValueError, match=says):
        match([("conector/.*", 1), (".*", None)], PATHS)


def test_a_rule_that_others_come_before_and_a_last_catch_all_are_no_mistakes():
    assert match([("decoder/.*", 1), ("decoder/embedding", 2), (".*", None)], PATHS)["decoder/embedding"] == 1
    assert match([("(connector|decoder)/.*", 1), ("logit_scale", 2), (".*", None)], PATHS)["logit_scale"] == 2


def test_a_pattern_that_is_no_regular_expression_is_named():
    pattern = "(decoder/.*"
    with pytest.raises(ValueError, match=re.escape(pattern)):
        match([(pattern, 1), (".*", None)], PATHS)


def test_flat_trees_are_in_path_order_and_come_back():
    tree = {"decoder": {"z": 1, "blocks": {"q": 2}}, "connector": {"b": 3, "a": 4}, "logit_scale": 5}
    flat = flatten(tree)
    assert list(flat) == ["connector/a", "connector/b", "decoder/blocks/q", "decoder/z", "logit_scale"]
    assert unflatten(flat) == tree
