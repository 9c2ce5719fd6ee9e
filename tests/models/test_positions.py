"""Resized position embeddings, held against what torch 2.13's `interpolate` gives."""

import numpy as np
import pytest

from vlm_jax.models import positions

# torch.nn.functional.interpolate(identity table, align_corners=False), by mode and antialias: rows of the new grid
TORCH = {
    ("bicubic", 3, 5): [
        [1.096, -0.096, 0], [0.612, 0.46, -0.072], [0, 1, 0], [-0.072, 0.46, 0.612], [0, -0.096, 1.096]],
    ("bicubic", 5, 3): [[0.68519, 0.37037, -0.05556, 0, 0], [0, 0, 1, 0, 0], [0, 0, -0.05556, 0.37037, 0.68518]],
    ("bicubic_antialias", 3, 5): [
        [1.07547, -0.07547, 0], [0.64925, 0.39552, -0.04478], [0, 1, 0], [-0.04478, 0.39552, 0.64925],
        [0, -0.07547, 1.07547]],
    ("bicubic_antialias", 5, 3): [
        [0.58462, 0.44615, 0, -0.03077, 0], [-0.03721, 0.24651, 0.5814, 0.24651, -0.03721],
        [0, -0.03077, 0, 0.44615, 0.58462]],
    ("bilinear_antialias", 3, 5): [[1, 0, 0], [0.6, 0.4, 0], [0, 1, 0], [0, 0.4, 0.6], [0, 0, 1]],
    ("bilinear_antialias", 5, 3): [
        [0.57143, 0.42857, 0, 0, 0], [0, 0.22222, 0.55556, 0.22222, 0], [0, 0, 0, 0.42857, 0.57143]],
}


@pytest.mark.parametrize("method, source, size", TORCH)
def test_weights_are_torchs(method, source, size):
    ours = positions.weights(np.arange(size), size, source, method)
    np.testing.assert_allclose(ours, TORCH[method, source, size], atol=1e-5)


def test_rows_and_columns_are_resized_on_their_own():
    """3 x 5 places for 5 x 3 patches: each axis by its own matrix."""
    table = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    expected = np.einsum("ri,cj,ijd->rcd", TORCH["bicubic", 3, 5], TORCH["bicubic", 5, 3], table)
    np.testing.assert_allclose(positions.resized(table, 5, 3, "bicubic"), expected, atol=1e-4)
    np.testing.assert_array_equal(positions.resized(table, 3, 5, "bicubic"), table)


def test_rows_of_grids_of_several_sizes_at_once():
    """Row 1 of 5 and row 2 of 3, of a table of 3 rows."""
    ours = positions.weights(np.array([1, 2]), np.array([5, 3]), 3, "bilinear_antialias")
    np.testing.assert_allclose(ours, [[0.6, 0.4, 0], [0, 0, 1]], atol=1e-6)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="Resizing 'nearest' is unknown; choose one of bicubic"):
        positions.checked("nearest")
