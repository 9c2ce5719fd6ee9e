"""LLaVA 1.0, 1.5 and 1.6 as its own code writes them (arXiv 2304.08485, 2310.03744): one flat config.json, which names the
eyes instead of saying their sizes, and weights that often lack them.

`mm_vision_tower` may be a folder with such eyes (a CLIPModel, or its image tower alone): their sizes are read there, and
their weights where the checkpoint has none of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Callable

from etils import epath

from vlm_jax.data.files import read_json
from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.tokens import AnyRes
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.families import clip, decoder, encoder, llama, mistral
from vlm_jax.weights.huggingface.families.llava import DEFAULTS as LLAVA
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import Weight, linear

KNOWN = {"clip-vit-large-patch14-336": LLAVA["vision_config"],
         "clip-vit-large-patch14": LLAVA["vision_config"] | {"image_size": 224}}
DEFAULTS = dict(mm_projector_type="linear", mm_vision_select_layer=-2, mm_vision_select_feature="patch",
                mm_patch_merge_type="flat", image_aspect_ratio="square")
PROJECTORS = {"linear": "linear", "mlp2x_gelu": "mlp"}
SELECT = {"patch": None, "cls_patch": 0}  # the token whose feature is the first
IMAGE = -200  # stands for an image's tokens in its code
TOWER = "model.vision_tower.vision_tower.vision_model"


def _fill(hf: HfConfig) -> HfConfig:
    return DEFAULTS | {key: value for key, value in hf.items() if value is not None}


def _choice(hf: HfConfig, key: str, known: dict) -> object:
    if hf[key] not in known:
        raise ValueError(f"config.json has {key} '{hf[key]}'; supported are {', '.join(known)}.")
    return known[hf[key]]


def _tower(hf: HfConfig) -> tuple[epath.Path | None, HfConfig]:
    """(the folder that has the eyes, if it is one; their sizes)."""
    name = hf.get("mm_vision_tower") or hf.get("vision_tower") or ""
    folder = epath.Path(name) if name and (epath.Path(name) / "config.json").exists() else None
    if folder is not None:
        said = read_json(folder / "config.json")
        return folder, said.get("vision_config", said)
    if (known := name.rstrip("/").rsplit("/", 1)[-1]) not in KNOWN:
        raise ValueError(f"config.json names the eyes '{name}', whose sizes are not known; set mm_vision_tower to a folder "
                         f"with a CLIP of transformers.")
    return None, KNOWN[known]


def config(language: decoder.Language, hf: HfConfig) -> ModelConfig:
    """The sizes in config.json and in that of the eyes; raises ValueError for options that we cannot honour."""
    hf = _fill(hf)
    vision = dataclasses.replace(
        clip.vision_config(_tower(hf)[1]), feature_layer=hf["mm_vision_select_layer"],
        feature_start=_choice(hf, "mm_vision_select_feature", SELECT))
    layout = _choice(hf, "mm_patch_merge_type", {"flat": None, "spatial_unpad": _anyres})
    return ModelConfig(
        vision=vision, connector=ConnectorConfig(_choice(hf, "mm_projector_type", PROJECTORS)), decoder=language.config(hf),
        layout=None if layout is None else layout(hf, vision))


def _anyres(hf: HfConfig, vision: ViTConfig) -> AnyRes:
    """Here pinpoints are (width, height)."""
    if hf["image_aspect_ratio"] != "anyres":
        raise ValueError(f"config.json has image_aspect_ratio '{hf['image_aspect_ratio']}' with mm_patch_merge_type "
                         f"'spatial_unpad'; only 'anyres' is supported.")
    return AnyRes(vision.image_size, vision.grid[0], tuple((h, w) for w, h in hf["image_grid_pinpoints"]))


def table(config: ModelConfig) -> list[Weight]:
    """In the names of the original code, where an MLP's activation has number 1."""
    layers = {"linear_1": ""} if config.connector.kind == "linear" else {"linear_1": ".0", "linear_2": ".2"}
    projector = [row for name, i in layers.items() for row in linear(f"connector/{name}", f"model.mm_projector{i}")]
    newline = [] if config.layout is None else [Weight("image_newline", "model.image_newline")]
    return [*clip.vision_table(config.vision, theirs=TOWER), *projector, *newline, *decoder.table(config.decoder)]


def rename(name: str) -> str | None:
    short = re.sub(r"^model\.vision_tower\.vision_tower\.(?!vision_model\.)", f"{TOWER}.", name)
    return encoder.passed_over(short) and decoder.rename(short)


def beside(hf: HfConfig, names: set[str]) -> tuple[epath.Path, Callable[[str], str | None]] | None:
    """The folder of the eyes, where the checkpoint has none of its own; raises ValueError where that is none."""
    if any(name.startswith(TOWER) for name in names):
        return None
    folder, _ = _tower(hf)
    if folder is None:
        raise ValueError(f"The checkpoint holds no eyes, and config.json names '{hf['mm_vision_tower']}'; fetch that "
                         f"model and set mm_vision_tower to its folder.")
    return folder, lambda name: _in_tower(clip.VISION_FAMILY.rename(name))


def _in_tower(name: str | None) -> str | None:
    """Of a whole CLIPModel the image tower alone."""
    own = name is not None and re.fullmatch(r"vision_model\.(embeddings|pre_layrnorm|encoder|post_layernorm)\..*", name)
    return f"{TOWER}.{name.removeprefix('vision_model.')}" if own else None


def hf_config(config: ModelConfig) -> HfConfig:
    raise ValueError("LLaVA's own config.json cannot say the sizes of its eyes; take LlavaForConditionalGeneration.")


def family(architecture: str, language: decoder.Language) -> Family:
    return Family(architecture, functools.partial(config, language), hf_config, table, rename,
                  lambda hf: language.fill(hf) | {"image_token_index": IMAGE}, beside)


FAMILY = family("LlavaLlamaForCausalLM", llama.LANGUAGE)
MISTRAL = family("LlavaMistralForCausalLM", mistral.LANGUAGE)
