"""A trained model as one object, and the one loader that every verb uses."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from etils import epath

from vlm_jax import config as configs
from vlm_jax.data import tokenizer as tokenizers
from vlm_jax.data.processor import Processor
from vlm_jax.models.model import ModelConfig, abstract_params
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vlm import VLM
from vlm_jax.weights.checkpoints import open_existing, read_json


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """config: sizes of all parts. params: the whole tree. processor: preprocessing, tokenizer and template."""

    config: ModelConfig
    params: Any
    processor: Processor

    @property
    def model(self) -> VLM | TwoTower:
        """The assembly that this model is mainly for: the VLM where there is a decoder, else the two towers."""
        return self.config.vlm() if self.config.decoder is not None else self.config.two_tower()


def processor_for(config: configs.RunConfig, tokenizer: tokenizers.Tokenizer) -> Processor:
    """The processor of a run's model; raises where model and tokenizer do not belong together."""
    model = config.model
    for part in filter(None, (model.text, model.decoder)):
        if len(tokenizer) > part.vocab_size:
            raise ValueError(f"The tokenizer has {len(tokenizer)} ids, the model {part.vocab_size}; "
                             f"raise vocab_size in config.model.")
    processor = Processor(config.processor, tokenizer, model.vision, model.text.context if model.text else None)
    if config.processor.image.size != (model.vision.image_size,) * 2:
        raise ValueError(f"config.processor.image.size is {config.processor.image.size}, "
                         f"config.model.vision.image_size {model.vision.image_size}; make them equal.")
    if model.text and model.text.end_id != processor.eos_id:
        raise ValueError(f"config.model.text.end_id is {model.text.end_id}, the tokenizer's end token "
                         f"{processor.eos_id}; make them equal.")
    return processor


def load_pretrained(path: epath.PathLike) -> Pretrained:
    """Opens a training workdir: config.json, tokenizer.json and the newest checkpoint's parameters, in float32.

    Raises FileNotFoundError or ValueError, in one sentence, where something is missing or damaged.
    """
    path = epath.Path(path)
    config = configs.resolve(read_json(path / "config.json"))
    processor = processor_for(config, tokenizers.load(path / "tokenizer.json"))
    checkpoints, number = open_existing(path)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
                            abstract_params(config.model))
    with checkpoints:
        return Pretrained(config.model, checkpoints.params(number, abstract), processor)
