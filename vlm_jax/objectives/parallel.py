"""The contrastive losses over the rows of several devices, none of which holds the [n, n] table of all pairs.

    softmax   a device compares its rows with all columns: features are gathered, logits are [n / devices, n]
    sigmoid   texts travel round the ring of devices, and a device holds its rows times one chunk, [n / devices]^2

Both equal the dense forms of `pairs.py`, gradients included. `ids` [n, k] says who belongs together: rows with
equal ids are positives of each other. Rows lie on the devices in order, as a batch does; what is returned is summed over
all of them: (loss, images whose best text is a right one).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.objectives.pairs import pair_logits, same_text, sigmoid_loss

Result = tuple[Float[Array, ""], Float[Array, ""]]


def _over(axes: tuple[str, ...], local, rows: tuple[Array, ...], scalars: tuple[Array, ...]) -> Result:
    """local(*rows, *scalars) on each device's share of the rows; the results are summed."""
    total = lambda *args: lax.psum(local(*args), axes)
    specs = (jax.P(axes),) * len(rows) + (jax.P(),) * len(scalars)
    return jax.shard_map(total, in_specs=specs, out_specs=jax.P())(*rows, *scalars)


def softmax_rows(
    zimg: Float[Array, "n e"], ztxt: Float[Array, "n e"], scale: Float[Array, ""], ids: Int[Array, "n k"],
    valid: Bool[Array, "n"], axes: tuple[str, ...],
) -> Result:
    """`pairs.softmax_loss`, split along the mesh axes `axes`: local rows against gathered columns, both ways."""

    def side(z, others, scale, ids, valid, other_ids, other_valid):
        both = valid[:, None] & other_valid
        logits = jnp.where(both, pair_logits(z, others, scale, 0.0), jnp.finfo(jnp.float32).min)
        target = (same_text(ids, other_ids) & both).astype(jnp.float32)
        target = target / jnp.maximum(target.sum(1, keepdims=True), 1)
        best = jnp.take_along_axis(target, jnp.argmax(logits, axis=1)[:, None], axis=1)
        loss = jnp.where(valid, -(target * jax.nn.log_softmax(logits, axis=1)).sum(1), 0.0)
        return loss.sum() / 2, (best > 0).sum().astype(jnp.float32)

    def local(zimg, ztxt, ids, valid, scale):
        all_img, all_txt, *who = (lax.all_gather(x, axes, tiled=True) for x in (zimg, ztxt, ids, valid))
        rows, hits = side(zimg, all_txt, scale, ids, valid, *who)
        columns, _ = side(ztxt, all_img, scale, ids, valid, *who)
        return rows + columns, hits

    return _over(axes, local, (zimg, ztxt, ids, valid), (scale,))


def sigmoid_ring(
    zimg: Float[Array, "n e"], ztxt: Float[Array, "n e"], scale: Float[Array, ""], bias: Float[Array, ""],
    ids: Int[Array, "n k"], axes: tuple[str, ...],
) -> Result:
    """`pairs.sigmoid_loss`, split along the mesh axes `axes`."""

    def local(zimg, ztxt, ids, scale, bias):
        here = lambda x: lax.pcast(x, axes, to="varying")  # its transpose adds up what each device finds for x
        return _ring(zimg, ztxt, here(scale), here(bias), ids, axes)

    return _over(axes, local, (zimg, ztxt, ids), (scale, bias))


def _chunk(zimg, ztxt, scale, bias, ids, other_ids):
    return sigmoid_loss(zimg, ztxt, scale, bias, same_text(ids, other_ids))


def _round(axes: tuple[str, ...], visit, carry, travelling):
    """visit(carry, travelling) -> both, once for each device's share, which comes home at the end."""
    count = lax.axis_size(axes)
    onward = [(i, (i + 1) % count) for i in range(count)]

    def step(state, _):
        carry, travelling = visit(*state)
        return (carry, jax.tree.map(lambda x: lax.ppermute(x, axes, onward), travelling)), None

    return lax.scan(step, (carry, travelling), length=count)[0]


def _each(value: Any, shape: tuple[int, ...], axes: tuple[str, ...]) -> Array:
    """A constant that every device has for itself, to add its own to."""
    return lax.pcast(jnp.full(shape, value), axes, to="varying")


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _ring(zimg, ztxt, scale, bias, ids, axes) -> Result:
    """One device's rows against all texts. The backward pass sends the texts round once more, each with its gradient,
    and computes every chunk again: nothing of a chunk is kept, and no device ever has all features."""

    def visit(carry, travelling):
        (loss, best, right), (texts, text_ids) = carry, travelling
        similarity = pair_logits(zimg, texts, 1.0, 0.0)
        top = jnp.argmax(similarity, axis=1)[:, None]
        value = jnp.take_along_axis(similarity, top, axis=1)[:, 0]
        positive = jnp.take_along_axis(same_text(ids, text_ids), top, axis=1)[:, 0]
        better = value > best
        loss = loss + _chunk(zimg, texts, scale, bias, ids, text_ids)
        return (loss, jnp.where(better, value, best), jnp.where(better, positive, right)), travelling

    rows = zimg.shape[:1]
    start = (_each(0.0, (), axes), _each(-jnp.inf, rows, axes), _each(False, rows, axes))
    (loss, _, right), _ = _round(axes, visit, start, (ztxt, ids))
    return loss, right.sum().astype(jnp.float32)


def _ring_forward(zimg, ztxt, scale, bias, ids, axes):
    return _ring(zimg, ztxt, scale, bias, ids, axes), (zimg, ztxt, scale, bias, ids)


def _ring_backward(axes, saved, cotangents):
    zimg, ztxt, scale, bias, ids = saved

    def visit(carry, travelling):
        texts, text_ids, dtexts = travelling
        chunk = lambda *args: _chunk(*args, ids, text_ids)
        dimg, dtxt, *rest = jax.vjp(chunk, zimg, texts, scale, bias)[1](cotangents[0])
        return jax.tree.map(jnp.add, carry, (dimg, *rest)), (texts, text_ids, dtexts + dtxt)

    zeros = lambda x: _each(0.0, x.shape, axes)
    start = (zeros(zimg), zeros(scale), zeros(bias))
    (dimg, dscale, dbias), (_, _, dtxt) = _round(axes, visit, start, (ztxt, ids, zeros(ztxt)))
    return dimg, dtxt, dscale, dbias, None


_ring.defvjp(_ring_forward, _ring_backward)
