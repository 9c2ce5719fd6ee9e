"""What the tests of weight families share: random checkpoints on disk, and torch's layers once more in plain NumPy."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy.special import erf

from vlm_jax.models.model import abstract_params
from vlm_jax.weights.huggingface import safetensors
from vlm_jax.weights.huggingface.table import export_params, import_params

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
FOLDERS = sorted(file.parent for file in FIXTURES.glob("*/reference.npz"))

ACTIVATIONS = {
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu": lambda x: x * (1 + erf(x / 2**0.5)) / 2,
    "gelu_pytorch_tanh": lambda x: x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
}


@dataclasses.dataclass
class Torch:
    """A checkpoint's tensors by their names in the file, and what torch would compute with them, in float64."""

    tensors: dict
    eps: float
    activation: str

    def linear(self, name, x):
        bias = self.tensors.get(f"{name}.bias", 0)
        return x @ self.tensors[f"{name}.weight"].astype(float).T + bias

    def norm(self, name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.eps)
        return x * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def mlp(self, name, x):
        return self.linear(f"{name}.fc2", ACTIVATIONS[self.activation](self.linear(f"{name}.fc1", x)))

    def attend(self, q, k, v, heads, mask=None):
        """[b, t, w] each, head by head; `mask` [b or 1, t, s] is true where a query sees a key."""
        out, dim = np.zeros_like(q), q.shape[-1] // heads
        for part in (slice(i * dim, (i + 1) * dim) for i in range(heads)):
            scores = q[..., part] @ k[..., part].transpose(0, 2, 1) / dim**0.5
            scores = np.where(True if mask is None else mask, scores, -1e9)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[..., part] = weights / weights.sum(-1, keepdims=True) @ v[..., part]
        return out

    def encoder(self, name, x, layers, heads, mask=None):
        for i in range(layers):
            layer = f"{name}.encoder.layers.{i}"
            y = self.norm(f"{layer}.layer_norm1", x)
            q, k, v = (self.linear(f"{layer}.self_attn.{part}_proj", y) for part in "qkv")
            x = x + self.linear(f"{layer}.self_attn.out_proj", self.attend(q, k, v, heads, mask))
            x = x + self.mlp(f"{layer}.mlp", self.norm(f"{layer}.layer_norm2", x))
        return x

    def patches(self, name, pixels):
        """The strided convolution of embeddings.patch_embedding on [b, 3, h, w], patch by patch."""
        kernel = self.tensors[f"{name}.weight"].astype(float)
        size = kernel.shape[-1]
        rows = [np.einsum("bchw,ochw->bo", pixels[:, :, y : y + size, x : x + size], kernel)
                for y in range(0, pixels.shape[2] - size + 1, size) for x in range(0, pixels.shape[3] - size + 1, size)]
        return np.stack(rows, axis=1) + self.tensors.get(f"{name}.bias", 0)


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def published(request):
    """The folder of each tiny checkpoint that transformers wrote, with its reference outputs."""
    return request.param


@pytest.fixture
def fixtures():
    return FIXTURES


@pytest.fixture(scope="session")
def torch():
    return Torch


@pytest.fixture(scope="session")
def checkpoint():
    """(family, config, folder) -> (our parameters, the same as {torch name: tensor}) of a checkpoint written there."""

    def write(family, config, folder):
        rng = np.random.default_rng(0)
        flat = {name: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
                for name, leaf in flatten_dict(abstract_params(config), sep="/").items()}
        tensors = dict(export_params(family.table(config), flat))
        safetensors.write(folder, tensors.items())
        return unflatten_dict(flat, sep="/"), tensors

    return write


@pytest.fixture(scope="session")
def reimport():
    """(family, config, folder) -> the parameters that the files of the folder hold."""

    def read(family, config, folder):
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
                    for name, leaf in flatten_dict(abstract_params(config), sep="/").items()}
        reader = safetensors.Reader(folder, family.rename)
        return unflatten_dict(import_params(family.table(config), reader, abstract), sep="/")

    return read
