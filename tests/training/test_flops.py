"""Model FLOPs against published counts, against XLA's own, and by hand; and what a log line makes of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.encoders import encoder
from vlm_jax.models.mask import describe
from vlm_jax.models.model import ModelConfig, abstract_params
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.training import clock as clocks
from vlm_jax.training.clock import Clock
from vlm_jax.training.flops import Row, part_flops, step_flops, workload
from vlm_jax.training.rules import flatten
from vlm_jax.weights.huggingface.presets import preset

EYES = TransformerConfig(layers=3, width=128, heads=4, mlp_width=256)
BLOCKS = TransformerConfig(layers=2, width=128, heads=4, kv_heads=2, mlp_width=192, norm="rms", gated_mlp=True,
                           attention_bias=False, mlp_bias=False, rope_theta=1e4)
VLM = ModelConfig(ViTConfig(64, 8, EYES, feature_layer=-2), connector=ConnectorConfig("mlp"),
                  decoder=DecoderConfig(512, BLOCKS))
PARAMS = abstract_params(VLM)
shaped = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
ROWS = {"tokens": shaped(2, 160, dtype=jnp.int32), "images": shaped(2, 1, 64, 64, 3)}


@pytest.mark.parametrize("name, image, both", [
    ("clip-vit-large-patch14", 162, 175),
    pytest.param("siglip-base-patch16-224", None, 46.4, marks=pytest.mark.long),
    pytest.param("siglip-so400m-patch14-384", None, 723, marks=pytest.mark.long)])
def test_published_counts(name, image, both):
    """GFLOPs forward of one pair, from open_clip's model_profile.csv, which counts causal rows whole."""
    config = preset(name)
    params = abstract_params(config)
    batch = {"text": shaped(1, config.text.context, dtype=jnp.int32), "images": shaped(
        1, config.vision.image_size, config.vision.image_size, 3)}
    assert step_flops(config, params, batch, []) == pytest.approx(both * 1e9, rel=0.005)
    assert step_flops(config, params, batch, list(flatten(params))) == 3 * step_flops(config, params, batch, [])
    if image:
        row = workload(config, params, batch)["vision"]
        assert part_flops(config, "vision", row, flatten(params), []) == pytest.approx(image * 1e9, rel=0.005)


def counted(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def test_xlas_own_count():
    """Of each tower alone, unrolled, forwards; XLA counts norms and activations too, and causal rows whole."""
    wide = dict(width=256, mlp_width=1024, heads=2)
    eyes = dataclasses.replace(VLM.vision, transformer=dataclasses.replace(EYES, **wide))
    decoder = DecoderConfig(512, dataclasses.replace(BLOCKS, **wide))
    config = dataclasses.replace(VLM, vision=eyes, decoder=decoder)
    params = abstract_params(config)
    see = lambda p, x: encoder(eyes).apply({"params": p}, x).last
    say = lambda p, t: ModelConfig(decoder=decoder).vlm().apply({"params": {"decoder": p}}, t, describe(t * 0))
    for part, function, given, row in [("vision", see, shaped(2, 64, 64, 3), Row(2, 65)),
                                       ("decoder", say, shaped(2, 160, dtype=jnp.int32), Row(2, 160))]:
        mine = part_flops(config, part, row, flatten(params), [])
        assert mine == pytest.approx(counted(function, params[part], given), rel=0.05), part


def test_a_row_by_hand():
    """2 x weights x tokens, and 4 x width x pairs a layer; features of the layer before the last need two of three."""
    eye_tokens, patches, tokens = 2 * 65, 2 * 64, 2 * 160
    block = 4 * 128 * 128 + 2 * 128 * 256
    vision = 2 * (3 * 8 * 8 * 128 + 2 * block) * eye_tokens + 2 * 4 * 128 * 65**2 * 2
    connector = 2 * (2 * 128 * 128) * patches
    layer = 128 * (128 + 64 + 64 + 128) + 3 * 128 * 192
    decoder = 2 * (2 * layer + 128 * 512) * tokens + 2 * 4 * 128 * 160**2 / 2 * 2
    count = lambda *trained: step_flops(VLM, PARAMS, ROWS, [path for path in flatten(PARAMS) if path.startswith(trained)])
    assert count("nothing") == vision + connector + decoder
    assert count("connector/") == vision + 3 * connector + 2 * decoder  # align: the decoder is frozen, not stopped
    assert count("connector/", "decoder/") == vision + 3 * connector + 3 * decoder
    assert count("decoder/") == vision + connector + 3 * decoder
    assert count("vision/") == 3 * vision + 2 * connector + 2 * decoder


def test_adapters_leave_their_decoder_at_two():
    lora = ["decoder/blocks/attn/q/lora_a", "decoder/blocks/attn/q/lora_b"]
    adapters = flatten(PARAMS) | {lora[0]: shaped(2, 128, 4), lora[1]: shaped(2, 4, 128)}
    row = workload(VLM, PARAMS, ROWS)["decoder"]
    frozen = part_flops(VLM, "decoder", row, flatten(PARAMS), [])
    small = 2 * (2 * 128 * 4 * 2) * 320
    assert part_flops(VLM, "decoder", row, adapters, lora) == 2 * frozen + 3 * small


def test_windows_tied_embeddings_and_text_alone():
    decoder = DecoderConfig(512, dataclasses.replace(BLOCKS, window=(10, None)), tie_embeddings=True)
    config = ModelConfig(decoder=decoder)
    text = {"tokens": ROWS["tokens"]}
    untied = ModelConfig(decoder=dataclasses.replace(decoder, tie_embeddings=False))
    tied, loose = (step_flops(c, abstract_params(c), text, []) for c in (config, untied))
    assert tied == loose
    whole = ModelConfig(decoder=dataclasses.replace(VLM.decoder))
    assert step_flops(whole, abstract_params(whole), text, []) - loose == 4 * 128 * (160**2 / 2 - 160 * 10) * 2


def test_mfu_and_tokens_of_a_log_line(monkeypatch):
    """Two steps of a global batch of 4 in 2 seconds, of which this host sees 2 rows."""
    now = iter([0.0] + [0.0] * 4 + [2.0])
    monkeypatch.setattr(clocks.time, "monotonic", lambda: next(now))
    rows = {"segment_ids": np.array([[0, 0, 0, -1], [0, 1, -1, -1]])}
    clock = Clock(4, flops=lambda batch: 50.0, peak=1000.0)
    clock.next(iter([rows])), clock.next(iter([rows]))
    figures = clock.lap()
    assert figures["mfu"] == 2 * (50 * 2) / 2 / 1000
    assert figures["tokens_per_s"] == 2 * 16 / 2 and figures["real_tokens_per_s"] == 2 * 10 / 2
    assert figures["utilisation"] == 5 / 8 and figures["memory_gib"] > 0.01


def test_an_unknown_peak_has_no_mfu():
    clock = Clock(2, flops=lambda batch: 50.0, peak=None)
    text = {"text": np.array([[1, 5, 2, 0], [1, 2, 0, 0]])}
    clock.padding = 0
    clock.next(iter([text]))
    figures = clock.lap()
    assert figures["mfu"] is None and figures["utilisation"] == 5 / 8
