"""Packing: rows are full, nobody sees a neighbour, and loss and gradients are those of one example a row."""

import collections
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.data import mixture, packing
from vlm_jax.data.digest import digest, origins
from vlm_jax.data.images import ImageProcessor
from vlm_jax.data.packing import Recent, Size, block_size, pack, pack_first
from vlm_jax.data.pipeline import DataConfig, RowsConfig, batches, traced
from vlm_jax.data.processor import Processor, ProcessorConfig
from vlm_jax.data.records import Message, Record
from vlm_jax.data.rows import join
from vlm_jax.data.scenes import SceneConfig
from vlm_jax.data.tokenizer import train
from vlm_jax.models import attention, kernels
from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.execution import Execution, executing
from vlm_jax.models.model import ModelConfig, init_params
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.objectives.generative import NextTokenConfig
from vlm_jax.objectives.registry import make_objective

PROCESSOR = Processor(ProcessorConfig(ImageProcessor(8)), train(["a"], 270),
                      types.SimpleNamespace(image_size=8, patch_size=4))  # 4 tokens an image
SOURCE = SceneConfig(size=7)  # stands in for what `talks` puts in its place


def talk(i: int, images: int, branches: int = 1) -> Record:
    """Record i, with answers from short to long."""
    pixels = np.random.default_rng(i).integers(0, 256, (images, 9, 7, 3), np.uint8)
    words = lambda n: (Message("user", "<image>" * images + f"q{i}.{n}"), Message("assistant", "a" * (1 + 7 * i % 31)))
    return Record(tuple(pixels), conversations=tuple(words(n) for n in range(branches)))


@pytest.fixture(autouse=True)
def talks(monkeypatch):
    """50 records with no image, one or two, every fifth with two answers that share its prefix."""
    records = [talk(i, i % 3, 1 + (i % 5 == 0)) for i in range(50)]
    monkeypatch.setattr(mixture, "open_source", lambda config, keep_bad: records)
    monkeypatch.setattr(packing, "SAMPLE", 100)
    return records


def data(arrange, length=128, slots=4, batch=4, block=16, **options):
    return DataConfig(SOURCE, batch, RowsConfig(length, slots, arrange=arrange, block=block), **options)


# The plan.


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_never_overfills_and_uses_each_example_once(seed):
    rng = np.random.default_rng(seed)
    sizes = [Size(int(t), int(s)) for t, s in zip(rng.integers(1, 60, 80), rng.integers(0, 3, 80))]
    rows = pack(sizes, 24, 100, 4)
    assert len(rows) == 24
    assert all(sum(sizes[i].tokens for i in row) <= 100 and sum(sizes[i].slots for i in row) <= 4 for row in rows)
    used = sum(rows, [])
    assert len(used) == len(set(used))
    for left in set(range(80)) - set(used):  # only what fits nowhere is left out
        assert all(sum(sizes[i].tokens for i in row) + sizes[left].tokens > 100
                   or sum(sizes[i].slots for i in row) + sizes[left].slots > 4 for row in rows)


def test_best_fit_by_hand():
    sizes = [Size(5, 1), Size(4, 1), Size(3, 0), Size(2, 0)]
    assert pack(sizes, 2, 8, 1) == [[0, 2], [1, 3]]
    assert pack([Size(2, 1)] * 3, 2, 8, 1) == [[0], [1]]  # no slot for the third, though there is room


def test_what_is_left_out_is_the_last_whatever_its_length():
    rng = np.random.default_rng(0)
    sizes = [Size(int(t), 0) for t in rng.integers(5, 60, 60)]
    kept = sorted(sum(pack_first(sizes, 10, 100, 0), []))
    assert kept == list(range(len(kept))) and 10 < len(kept) < 60
    assert sum(map(len, pack(sizes[:len(kept) + 1], 10, 100, 0))) <= len(kept)  # with one more, not all find room
    assert pack_first(sizes[:12], 10, 100, 0) == pack(sizes[:12], 10, 100, 0)


def llava_like(rng, count):
    """Lengths as in LLaVA's instruction mix: 576 visual tokens for all but 6 %, and words whose number is log-normal."""
    words = np.clip(rng.lognormal(np.log(280), 0.75, count), 20, 1800).astype(int)
    return [Size(int(min(n + 576 * image, 2048)), int(image)) for n, image in zip(words, rng.random(count) > 0.06)]


def test_a_llava_like_mix_fills_95_percent_of_the_slots():
    rng = np.random.default_rng(1)
    examples = block_size(llava_like(rng, 4096), 256, 4096, 8)
    filled = left = 0
    for _ in range(4):
        sizes = llava_like(rng, examples)
        rows = pack_first(sizes, 256, 4096, 8)
        filled += sum(sizes[i].tokens for row in rows for i in row)
        left += examples - sum(map(len, rows))
    assert filled / (4 * 256 * 4096) >= 0.95 and left / (4 * examples) < 0.01


# The rows.


def test_two_rows_joined_by_hand():
    say = lambda text, images: Record(tuple(np.full((images, 8, 8, 3), 255, np.uint8)), conversations=(
        (Message("user", "<image>" * images + "q"), Message("assistant", text)),))
    first, second = PROCESSOR.row(say("a", 1), 26, 1), PROCESSOR.row(say("b", 2), 30, 2)  # as long as they need to be
    assert first["segment_ids"].tolist() == [0] * 26 and second["segment_ids"].tolist() == [0] * 30
    row = join([first, second], 60, PROCESSOR.blank(4), 4)
    assert row["segment_ids"].tolist() == [0] * 26 + [1] * 30 + [-1] * 4
    assert row["positions"][:56].tolist() == [*range(26), *range(30)]
    assert row["tokens"][26:56].tolist() == second["tokens"].tolist()
    assert [i for i in row["image_index"] if i >= 0] == list(range(12))
    assert (row["images"].reshape(4, -1) != 0).any(axis=1).tolist() == [True, True, True, False]
    with pytest.raises(ValueError, match="no room for 56"):
        join([first, second], 55, PROCESSOR.blank(4), 4)
    with pytest.raises(ValueError, match="or for 3 images"):
        join([first, second], 60, PROCESSOR.blank(2), 4)


def test_a_row_can_be_taken_apart_again(talks):
    """Every example of every packed row is, token by token, the row that it would have had for itself."""
    config, seen = data("packed"), collections.Counter()
    pipeline = traced(config, PROCESSOR, 3)
    for step in range(8):
        batch = pipeline[step]
        for b in range(4):
            row = {name: value[b] for name, value in batch.items()}
            slot = 0
            for segment, (_, index) in enumerate(place for place in row["origin"].tolist() if place[0] >= 0):
                seen[index] += 1
                record = talks[index]
                at = row["segment_ids"] == segment
                own = PROCESSOR.row(record, int(at.sum()), len(record.images))
                assert (own["segment_ids"] == 0).all()
                for name in ("tokens", "targets", "positions", "subsegment_ids", "loss_weights"):
                    assert np.array_equal(row[name][at], own[name])
                moved = np.where(own["image_index"] >= 0, own["image_index"] + 4 * slot, -1)
                assert np.array_equal(row["image_index"][at], moved)
                for image in own.get("images", ()):
                    assert np.array_equal(row["images"][slot], image)
                    slot += 1
            assert not row["images"][slot:].any()
    assert len(seen) == 50 and max(seen.values()) - min(seen.values()) <= 2
    filled = np.mean([(pipeline[step]["segment_ids"] >= 0).mean() for step in range(8)])
    assert filled > 0.85  # single rows fill half of it
    assert np.mean([(b["segment_ids"] >= 0).mean() for b in batches(data("single"), PROCESSOR, 3, 0, 8)]) < 0.5


def test_rows_by_length_are_as_long_as_they_must_be(talks):
    pipeline = traced(data("by_length", block=48), PROCESSOR, 3)
    lengths, epoch = [], []
    for step in range(12):
        batch = pipeline[step]
        longest = (batch["segment_ids"] >= 0).sum(axis=1).max()
        length = batch["tokens"].shape[1]
        assert length == 32 * -(-longest // 32) and batch["images"].shape == (4, 4, 8, 8, 3)
        lengths.append(length)
        epoch += batch["origin"][:, 1].tolist()
    assert len(set(epoch[:48])) == 48 and len(set(lengths)) > 1
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)


@pytest.mark.parametrize("arrange", ["packed", "by_length"])
def test_planned_rows_are_a_function_of_the_step(arrange):
    config = data(arrange, block=8)
    whole = origins(config, PROCESSOR, 5, 0, 10)
    for hosts, stop in ((1, 3), (2, 7), (4, 5)):
        parts = [origins(config, PROCESSOR, 5, *span, hosts) for span in ((0, stop), (stop, 10))]
        assert np.array_equal(np.concatenate(parts), whole)
    assert digest(config, PROCESSOR, 6, 3, 6) != digest(config, PROCESSOR, 5, 3, 6)


def test_planned_rows_are_the_same_from_worker_processes():
    config = data("packed", block=8)
    assert digest(config, PROCESSOR, 5, 3, 6, workers=2) == digest(config, PROCESSOR, 5, 3, 6)


def test_a_bad_image_gives_its_seat_to_one_that_fits(talks, monkeypatch):
    whole = origins(data("packed"), PROCESSOR, 3, 0, 8)

    class Broken(tuple):
        def __iter__(self):
            raise ValueError("image 31 is damaged")

    talks[31] = Record(Broken(talks[31].images), conversations=talks[31].conversations)
    found = origins(data("packed", bad_share=0.1), PROCESSOR, 3, 0, 8)
    moved = (whole != found).any(axis=-1)
    assert moved.sum() == (whole[..., 1] == 31).sum() >= 1  # its own seats, and no other
    width = lambda index: len(PROCESSOR.conversation(talks[index].conversations[0]).ids)
    for index in found[moved][:, 1]:
        assert index != 31 and width(index) <= width(31) and len(talks[index].images) <= 1
    with pytest.raises(ValueError, match="image 31 is damaged"):
        list(batches(data("packed"), PROCESSOR, 3, 0, 8))


def test_only_the_last_plans_are_kept():
    recent, made = Recent(), []
    for block in (0, 1, 0, 2, 3, 4, 0):
        recent.get(block, lambda block: made.append(block))
    assert made == [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize("options, message", [
    (dict(arrange="tight"), "arrange 'tight' is unknown; choose 'single', 'packed' or 'by_length'"),
    (dict(block=0), "block is 0; it must be 1 or more")])
def test_unknown_arrangements_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RowsConfig(64, **options)


# Loss and gradients.


@pytest.fixture(scope="module")
def model():
    blocks = TransformerConfig(layers=1, width=16, heads=2, mlp_width=32, norm="rms", rope_theta=10_000.0, kv_heads=1)
    eyes = ViTConfig(image_size=8, patch_size=4, transformer=TransformerConfig(layers=1, width=8, heads=2, mlp_width=16))
    config = ModelConfig(vision=eyes, connector=ConnectorConfig(), decoder=DecoderConfig(270, blocks))
    return config, jax.jit(lambda: init_params(config, jax.random.key(0)))()


KERNELS = {  # as they run without their device
    "splash": (functools.partial(kernels.splash, interpret=True), kernels.splash_refusal),
    "cudnn": (functools.partial(kernels.cudnn, implementation="xla"), lambda *_: None)}


def summed(model, rows):
    """Sum of the loss over some rows, their weights, and the gradient of the sum."""
    config, params = model
    objective = make_objective(NextTokenConfig(), config)
    batch = {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0] if name != "origin"}

    def loss(params):
        sums, weights = objective(params, batch, jax.random.key(0))
        return sums["next_token"], weights["next_token"]

    (value, weight), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, weight, gradient


def test_packed_training_equals_unpacked_training(model, talks):
    """The same examples, packed by three or four with branches and images among them, and each in a row for itself."""
    batch = traced(data("packed"), PROCESSOR, 3)[0]
    packed = [{name: value[b] for name, value in batch.items()} for b in range(4)]
    indices = [index for part, index in batch["origin"].reshape(-1, 2).tolist() if part >= 0]
    assert len(indices) >= 8 and any(len(talks[i].conversations) > 1 for i in indices)
    alone = [PROCESSOR.row(talks[i], 128, 4) for i in indices]
    one, other = summed(model, packed), summed(model, alone)
    assert one[1] == other[1] > 0
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(other[2]))
    for a, b in zip(jax.tree.leaves(one[2]), jax.tree.leaves(other[2])):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * scale)
    # And it is the segments that keep the examples apart: as one segment they are something else.
    leaking = [dict(row, segment_ids=np.minimum(row["segment_ids"], 0)) for row in packed]
    assert abs(summed(model, leaking)[0] / other[0] - 1) > 1e-4


@pytest.mark.parametrize("kernel", KERNELS)
def test_packed_equals_unpacked_with_fused_attention(model, talks, monkeypatch, kernel):
    monkeypatch.setattr(attention, "FUSED", KERNELS)
    monkeypatch.setattr(attention, "BEST", {"cpu": kernel})
    talks[:] = [talk(i, i % 3) for i in range(50)]
    batch = next(batches(DataConfig(SOURCE, 4, RowsConfig(128, 4, arrange="packed", block=16, branches=False)),
                         PROCESSOR, 3, 0, 1))
    indices = [i for i in origins(data("packed"), PROCESSOR, 3, 0, 1)[..., 1].ravel().tolist() if i >= 0]
    packed = [{name: value[b] for name, value in batch.items()} for b in range(4)]
    alone = [PROCESSOR.row(talks[i], 128, 4) for i in indices]
    alone = [{name: row[name] for name in packed[0]} for row in alone]
    with executing(Execution(attention=kernel)):
        one = summed(model, packed)
    other = summed(model, alone)
    assert one[1] == other[1] > 0
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(other[2]))
    for a, b in zip(jax.tree.leaves(one[2]), jax.tree.leaves(other[2])):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale)
