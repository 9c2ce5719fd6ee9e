"""Samplers: which tokens may be drawn, then how often they are."""

import jax
import numpy as np
import pytest

from vlm_jax.inference.samplers import Sampler

PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = np.log(PROBABILITIES).astype(np.float32)[None]


def kept(logits=LOGITS, **options):
    """Ids that each row may draw; the temperature is 1 unless given."""
    filtered = np.asarray(Sampler(**{"temperature": 1.0, **options}).kept(logits))
    rows = [sorted(np.flatnonzero(np.isfinite(row)).tolist()) for row in filtered]
    return rows[0] if len(rows) == 1 else rows


def brute_nucleus(probabilities, p):
    """The likeliest tokens, one after the other, until their mass reaches p."""
    chosen, mass = [], 0.0
    for token in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        chosen.append(token)
        mass += probabilities[token]
        if mass >= p:
            break
    return sorted(chosen)


# What may be drawn.


def test_greedy_takes_the_likeliest_whatever_the_key():
    two = np.concatenate([LOGITS, -LOGITS])
    assert Sampler()(two, jax.random.key(0)).tolist() == Sampler()(two, jax.random.key(1)).tolist() == [1, 2]


@pytest.mark.parametrize("k, expected", [
    (1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (5, [0, 1, 2, 3, 4]), (99, [0, 1, 2, 3, 4]), (0, [0, 1, 2, 3, 4])])
def test_top_k(k, expected):
    assert kept(top_k=k) == expected


@pytest.mark.parametrize("p, expected", [
    (0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 3, 4]), (0.94, [0, 1, 3, 4]),
    (0.96, [0, 1, 2, 3, 4]), (1.0, [0, 1, 2, 3, 4])])
def test_nucleus_includes_the_token_that_crosses(p, expected):
    assert kept(top_p=p) == expected


def test_nucleus_on_random_rows():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(30, 0.3), size=8)
    rows = kept(np.log(probabilities + 1e-9).astype(np.float32), top_p=0.8)
    assert rows == [brute_nucleus(row, 0.8) for row in probabilities]
    assert len({len(row) for row in rows}) > 2


def test_top_k_keeps_k_even_among_equals():
    assert len(kept(np.zeros((1, 5), np.float32), top_k=2)) == 2
    assert kept(np.array([[1, 3, 1, 1, 0]], np.float32), top_k=2)[-1] in (1, 2, 3)
    assert len(kept(np.array([[1, 3, 1, 1, 0]], np.float32), top_k=2)) == 2


def test_temperature_comes_first():
    """Divided by 4, the likeliest token has 0.26 of the mass, not 0.4: a nucleus of 0.39 takes one more."""
    assert kept(top_p=0.39) == [1] and kept(top_p=0.39, temperature=4.0) == [1, 3]
    flat = np.asarray(Sampler(temperature=4.0).kept(LOGITS))
    assert np.allclose(flat, LOGITS / 4)


def test_the_nucleus_is_taken_of_what_top_k_left():
    """Of two tokens the first has 4/7 and reaches 0.55 alone, which it does not among all five (0.4)."""
    assert kept(top_p=0.55) == [1, 3] and kept(top_p=0.55, top_k=2) == [1]
    assert kept(top_p=0.99, top_k=2) == [1, 3]


def test_a_banned_token_stays_banned():
    """Generation bans with -inf: no sampler may bring a token back."""
    logits = LOGITS.copy()
    logits[0, [1, 3]] = -np.inf
    assert kept(logits, top_k=3) == [0, 2, 4] and kept(logits, top_k=5) == [0, 2, 4]
    assert kept(logits, top_p=0.99) == [0, 2, 4]
    assert Sampler()(logits, jax.random.key(0)).tolist() == [4]


# How often it is drawn.


@pytest.mark.parametrize("options, expected", [
    (dict(), PROBABILITIES),
    (dict(temperature=0.5), PROBABILITIES**2 / (PROBABILITIES**2).sum()),
    (dict(top_k=2), np.array([0, 4, 0, 3, 0]) / 7),
    (dict(top_p=0.75), np.array([0, 8, 0, 6, 3]) / 17),
])
def test_frequencies(options, expected):
    """20,000 draws: the standard error of a frequency is below 0.004."""
    draws = Sampler(**{"temperature": 1.0, **options})(np.repeat(LOGITS, 20_000, axis=0), jax.random.key(0))
    frequencies = np.bincount(np.asarray(draws), minlength=5) / 20_000
    assert np.abs(frequencies - expected).max() < 0.015
    assert (frequencies[expected == 0] == 0).all()


def test_draws_are_a_function_of_the_key():
    sampler, rows = Sampler(temperature=1.0), np.repeat(LOGITS, 50, axis=0)
    draw = lambda seed: sampler(rows, jax.random.key(seed)).tolist()
    assert draw(0) == draw(0) != draw(1)


@pytest.mark.parametrize("options, message", [
    (dict(temperature=-0.1), "temperature -0.1 is negative; use 0"),
    (dict(top_k=-1), "top_k -1 is negative; use 0"),
    (dict(top_p=0.0), r"top_p 0.0 is not in \(0, 1\]; use 1"),
    (dict(top_p=1.1), r"top_p 1.1 is not in \(0, 1\]"),
])
def test_settings_that_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)
