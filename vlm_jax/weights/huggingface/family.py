"""What a family of published checkpoints is: a mapping of configs and a weight table, both read in two directions."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable

from etils import epath

from vlm_jax.models.model import ModelConfig
from vlm_jax.weights.huggingface.table import Weight

HfConfig = dict[str, Any]
Rename = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True)
class Family:
    """architecture: the class of transformers that owns such checkpoints (`architectures` in config.json).

    config: config.json, in any spelling, to our sizes. hf_config: our sizes to what config.json says of them.
    table: the rows of the weight table for a model of these sizes, in the names of the hub's files.
    rename: an older or newer name of a tensor to the name in the table; None for a buffer that is no parameter.
    text: the part of config.json that speaks of language, class defaults filled in.
    beside: of config.json and the names that the folder holds, another folder that completes them and what its tensors
    are called here (None: not at all); None where nothing is missing.
    """

    architecture: str
    config: Callable[[HfConfig], ModelConfig]
    hf_config: Callable[[ModelConfig], HfConfig]
    table: Callable[[ModelConfig], list[Weight]]
    rename: Callable[[str], str | None] = lambda name: name
    text: Callable[[HfConfig], HfConfig] = lambda hf: hf
    beside: Callable[[HfConfig, set[str]], tuple[epath.Path, Rename] | None] = lambda hf, names: None
