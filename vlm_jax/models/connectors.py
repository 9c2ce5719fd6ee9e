"""m_gamma: what maps visual features into the decoder's space. A new connector is a class and a line in CONNECTORS."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Float

from vlm_jax.models.layers import Linear, activation
from vlm_jax.models.vit import Features


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
    """`kind` is a name in CONNECTORS; the sizes F and D come from the parts it joins."""

    kind: str = "mlp"
    activation: str = "gelu"

    def __post_init__(self):
        if self.kind not in CONNECTORS:
            raise ValueError(f"Connector '{self.kind}' is unknown; choose one of {', '.join(CONNECTORS)}.")


class LinearConnector(nn.Module):
    """One linear layer (LLaVA, arXiv 2304.08485)."""

    config: ConnectorConfig
    width: int

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "b v d"]:
        return Linear(self.width, name="linear_1")(features.features)


class MlpConnector(nn.Module):
    """Linear, activation, linear (LLaVA 1.5, arXiv 2310.03744: exact gelu)."""

    config: ConnectorConfig
    width: int

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "b v d"]:
        x = activation(self.config.activation)(Linear(self.width, name="linear_1")(features.features))
        return Linear(self.width, name="linear_2")(x)


CONNECTORS = {"linear": LinearConnector, "mlp": MlpConnector}


def connector(config: ConnectorConfig, width: int, **kwargs) -> nn.Module:
    """The connector that gives tokens of `width` = D."""
    return CONNECTORS[config.kind](config, width, **kwargs)
