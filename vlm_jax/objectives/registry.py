"""The objectives by the `kind` a config names them with. A new one is a file and a line here."""

from __future__ import annotations

from vlm_jax.models.model import ModelConfig
from vlm_jax.objectives.base import Objective
from vlm_jax.objectives.contrastive import Contrastive, ContrastiveConfig
from vlm_jax.objectives.generative import NextToken, NextTokenConfig
from vlm_jax.objectives.regions import ContrastiveRegions, RegionsConfig

ObjectiveConfig = ContrastiveConfig | RegionsConfig | NextTokenConfig

OBJECTIVES = {ContrastiveConfig: Contrastive, RegionsConfig: ContrastiveRegions, NextTokenConfig: NextToken}


def make_objective(config: ObjectiveConfig, model: ModelConfig) -> Objective:
    return OBJECTIVES[type(config)](config, model)
