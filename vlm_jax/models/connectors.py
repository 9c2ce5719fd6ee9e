"""m_gamma: what maps visual features into the decoder's space. A new connector is a class and a line in CONNECTORS."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Float

from vlm_jax.models.layers import Linear, Norm, activation
from vlm_jax.models.qformer import QFormer, QFormerConfig
from vlm_jax.models.reducers import REDUCERS
from vlm_jax.models.vit import Features


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
    """`kind` is a name in CONNECTORS; the sizes F and D come from the parts it joins. `bias` is that of
    the linear layers of "linear", "mlp" and "norm_mlp"; `hidden` the width between the two of "mlp" (None: D).

    `reducer`, a name in REDUCERS, first makes the features fewer: `factor` times fewer rows and columns of the grid.
    `qformer` are the sizes of what "qformer" begins with.
    """

    kind: str = "mlp"
    activation: str = "gelu"
    bias: bool = True
    hidden: int | None = None
    norm_eps: float = 1e-6
    reducer: str | None = None
    factor: int = 1
    qformer: QFormerConfig | None = None

    def __post_init__(self):
        if self.kind not in CONNECTORS:
            raise ValueError(f"Connector '{self.kind}' is unknown; choose one of {', '.join(CONNECTORS)}.")
        if self.reducer is not None and self.reducer not in REDUCERS:
            raise ValueError(f"Reducer '{self.reducer}' is unknown; choose one of {', '.join(REDUCERS)}, or None.")
        if self.factor < 1 or self.reducer is None and self.factor > 1:
            raise ValueError(f"factor {self.factor} must be at least 1, and 1 where there is no reducer.")
        if (self.kind == "qformer") != (self.qformer is not None):
            raise ValueError("connector.qformer and the kind 'qformer' belong together; give both or neither.")


class LinearConnector(nn.Module):
    """One linear layer (LLaVA, arXiv 2304.08485)."""

    config: ConnectorConfig
    width: int

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "b v d"]:
        return Linear(self.width, self.config.bias, name="linear_1")(features.features)


class MlpConnector(nn.Module):
    """Linear, activation, linear (LLaVA 1.5, arXiv 2310.03744: exact gelu)."""

    config: ConnectorConfig
    width: int

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "b v d"]:
        c = self.config
        x = activation(c.activation)(Linear(c.hidden or self.width, c.bias, name="linear_1")(features.features))
        return Linear(self.width, c.bias, name="linear_2")(x)


class NormLinearConnector(nn.Module):
    """Gemma's RMSNorm, then one linear layer without bias (Gemma 3, arXiv 2503.19786)."""

    config: ConnectorConfig
    width: int

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "b v d"]:
        x = Norm("rms_offset", self.config.norm_eps, name="norm")(features.features)
        return Linear(self.width, use_bias=False, name="linear_1")(x)


class NormMlpConnector(nn.Module):
    """LayerNorm, linear, activation, linear (InternVL, arXiv 2404.16821)."""

    config: ConnectorConfig
    width: int

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "b v d"]:
        c = self.config
        x = Norm("layer", c.norm_eps, name="norm")(features.features)
        x = activation(c.activation)(Linear(self.width, c.bias, name="linear_1")(x))
        return Linear(self.width, c.bias, name="linear_2")(x)


class QFormerConnector(nn.Module):
    """A Q-Former and one linear layer (BLIP-2, arXiv 2301.12597); the queries' last states are sown as `queries`."""

    config: ConnectorConfig
    width: int

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "b v d"]:
        x = QFormer(self.config.qformer, name="qformer")(features)
        self.sow("intermediates", "queries", x)
        return Linear(self.width, self.config.bias, name="linear_1")(x)


CONNECTORS = {"linear": LinearConnector, "mlp": MlpConnector, "norm_linear": NormLinearConnector,
              "norm_mlp": NormMlpConnector, "qformer": QFormerConnector}


def connector(config: ConnectorConfig, width: int, **kwargs) -> nn.Module:
    """The connector that gives tokens of `width` = D."""
    return CONNECTORS[config.kind](config, width, **kwargs)
