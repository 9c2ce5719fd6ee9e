"""Batches of one size, and embeddings that refuse to be scored when they mean nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.data.records import Record
from vlm_jax.evals.embed import captioned, embed_images, embed_texts, fingerprint, in_batches


def test_every_batch_has_the_same_size_and_says_how_much_of_it_is_real():
    assert list(in_batches(range(5), 2)) == [([0, 1], 2), ([2, 3], 2), ([4, 4], 1)]
    assert list(in_batches([7], 3)) == [([7, 7, 7], 1)]
    assert list(in_batches([], 3)) == []


def test_an_embedding_does_not_depend_on_its_batch(tiny, scenes):
    model, images = tiny.config.two_tower(), [scenes[i].images[0] for i in range(5)]
    together = embed_images(model, tiny.params, tiny.processor, images, batch=5)
    apart = embed_images(model, tiny.params, tiny.processor, iter(images), batch=2)
    assert together.shape == (5, 16)
    np.testing.assert_allclose(together, apart, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    texts = ["a 3", "a red 3", "a large blue 7"]
    np.testing.assert_allclose(embed_texts(model, tiny.params, tiny.processor, texts, batch=128),
                               embed_texts(model, tiny.params, tiny.processor, texts, batch=2), atol=1e-5)


def test_embeddings_that_mean_nothing_are_refused(tiny, scenes):
    model, images = tiny.config.two_tower(), [scenes[i].images[0] for i in range(3)]
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), tiny.params)
    with pytest.raises(ValueError, match="image embeddings hold NaN"):
        embed_images(model, broken, tiny.processor, images, batch=3)
    collapsed = tiny.params | {"vision_projection": {"kernel": jnp.zeros((32, 16))}}
    with pytest.raises(ValueError, match="All 3 image embeddings are equal"):
        embed_images(model, collapsed, tiny.processor, images, batch=3)
    assert embed_images(model, collapsed, tiny.processor, images[:1], batch=1).shape == (1, 16)


def test_images_are_equal_by_shape_and_pixels():
    black = np.zeros((2, 3, 3), np.uint8)
    assert fingerprint(black) == fingerprint(black.copy())
    assert fingerprint(black) != fingerprint(black.reshape(3, 2, 3))
    assert fingerprint(black) != fingerprint(black + 1)


def test_a_record_without_a_caption_is_named():
    with pytest.raises(ValueError, match="record, id 7: it has no image or no caption"):
        captioned(Record((np.zeros((2, 2, 3), np.uint8),), meta={"id": 7}))
