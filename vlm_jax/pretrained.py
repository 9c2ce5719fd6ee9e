"""A trained model as one object, and the one loader that every verb uses."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Callable, Sequence

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, SingleDeviceSharding

from vlm_jax import config as configs
from vlm_jax.data import tokenizer as tokenizers
from vlm_jax.data.files import read_json
from vlm_jax.data.huggingface import loading as hf_processors
from vlm_jax.data.huggingface.processor import HfProcessor
from vlm_jax.data.processor import Processor
from vlm_jax.data.token_ids import TokenIds
from vlm_jax.data.tokenizer import IMAGE
from vlm_jax.inference import encoders, language, pairs
from vlm_jax.inference.samplers import Sampler
from vlm_jax.models.encoders import encoder
from vlm_jax.models.model import ModelConfig, abstract_params
from vlm_jax.models.tokens import tokens_per_tile
from vlm_jax.models.transformer import Params
from vlm_jax.training.sharding import state_shardings
from vlm_jax.weights.checkpoints import open_existing
from vlm_jax.weights.huggingface import folder, own
from vlm_jax.weights.huggingface.folder import IMPORTED, Placement


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """config: sizes of all parts. params: the whole tree. processor: preprocessing, tokenizer and template.

    ids: the tokens that a generator has to know. files: for a model in Hugging Face format, the folder with what came
    beside its weights.
    """

    config: ModelConfig
    params: Any
    processor: Processor | HfProcessor | None
    ids: TokenIds = TokenIds()
    files: epath.Path | None = None

    @property
    def model(self) -> nn.Module:
        """The assembly that this model is mainly for: the VLM where there is a decoder, else the two towers, else the
        eyes alone (whose parameters are `params["vision"]`)."""
        if self.config.decoder is not None:
            return self.config.vlm()
        return self.config.two_tower() if self.config.text is not None else encoder(self.config.vision)

    def own_processor(self) -> Processor:
        """The processor of a run of ours, which evaluation goes through; raises for published checkpoints."""
        if not isinstance(self.processor, Processor):
            raise ValueError("Evaluation takes a training workdir; talk to a checkpoint in Hugging Face format with "
                             "vlm_jax.chat, or load_pretrained(DIR).generate(**processor(messages=..., images=...)).")
        return self.processor

    def forward(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs, float32, of inputs under Hugging Face's names: see `inference.language`, `pairs`
        and `encoders`."""
        if self.config.decoder is not None:
            return language.outputs(self.config, self.params, inputs, self.ids)
        if self.config.text is not None:
            return pairs.outputs(self.config, self.params, inputs)
        return encoders.outputs(self.config.vision, self.params, inputs)

    def generate(
        self, *, max_new_tokens: int = 16, eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0,
        **inputs: np.ndarray,
    ) -> np.ndarray:
        """New tokens only, int32 [batch, max_new_tokens], of the inputs that `forward` takes; greedy at temperature 0.

        A row ends with an end token and is filled with the pad id, the end id where there is none. Both are the
        model's own unless given; `eos_token_id=()` lets every row run on.
        """
        if self.config.decoder is None:
            raise ValueError("This model encodes and has no decoder to generate text with; call forward, or load a "
                             "language or vision-language model.")
        ids = self.ids
        if eos_token_id is not None:
            ends = (eos_token_id,) if isinstance(eos_token_id, (int, np.integer)) else eos_token_id
            ids = dataclasses.replace(ids, eos=tuple(int(i) for i in ends))
        if pad_token_id is not None:
            ids = dataclasses.replace(ids, pad=int(pad_token_id))
        return language.generate(self.config, self.params, inputs, ids, max_new_tokens=max_new_tokens,
                                 sampler=Sampler(temperature, top_k, top_p), seed=seed)


def processor_for(config: configs.RunConfig, tokenizer: tokenizers.Tokenizer) -> Processor:
    """The processor of a run's model; raises where model and tokenizer do not belong together."""
    model = config.model
    for part in filter(None, (model.text, model.decoder)):
        if len(tokenizer) > part.vocab_size:
            raise ValueError(f"The tokenizer has {len(tokenizer)} ids, the model {part.vocab_size}; "
                             f"raise vocab_size in config.model.")
    if model.decoder and IMAGE not in tokenizer.special:
        raise ValueError("The tokenizer has no image token, which a decoder needs; 'clip' is for contrastive stages "
                         "alone.")
    processor = Processor(config.processor, tokenizer, model,
                          context=model.text.context if model.text else None,
                          vocab_size=model.decoder.vocab_size if model.decoder else 0)
    if config.processor.image.size != (model.vision.image_size,) * 2:
        raise ValueError(f"config.processor.image.size is {config.processor.image.size}, "
                         f"config.model.vision.image_size {model.vision.image_size}; make them equal.")
    if model.text and model.text.end_id != processor.eos_id:
        raise ValueError(f"config.model.text.end_id is {model.text.end_id}, the tokenizer's end token "
                         f"{processor.eos_id}; make them equal.")
    return processor


def load_pretrained(path: epath.PathLike, dtype: str | None = "float32", mesh: Mesh | None = None) -> Pretrained:
    """Opens a training workdir, a folder in Hugging Face layout, or what `vlm_jax.convert import` made of one.

    Parameters come in `dtype` (None: as they are stored), on the first device, or sharded over `mesh` as training
    shards them (`training.mesh.make_mesh`); of a workdir, the newest checkpoint's. Raises FileNotFoundError or
    ValueError, in one sentence, where something is missing, damaged or not supported.
    """
    path = epath.Path(path)
    place = _on_first_device if mesh is None else functools.partial(state_shardings, mesh=mesh)
    if (path / IMPORTED).is_dir():
        return _published(path / IMPORTED, lambda config: _newest(path, config, dtype, place))
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"{path}/config.json does not exist; give the workdir of a training run, or a folder in "
                                f"Hugging Face layout.")
    values = read_json(path / "config.json")
    if "model" not in values:
        return _published(path, lambda config: folder.load_params(path, config, dtype, place))
    config = configs.resolve(values)
    processor = processor_for(config, tokenizers.load(path / "tokenizer.json"))
    ids = TokenIds(processor.tokenizer.special.get(IMAGE), (processor.end_id,), processor.pad_id, processor.banned_ids)
    return Pretrained(config.model, _newest(path, config.model, dtype, place), processor, ids)


def load_processor(path: epath.PathLike) -> Processor | HfProcessor:
    """The processor alone of what `load_pretrained` opens, or of a folder with only tokenizer or preprocessor files.

    Raises FileNotFoundError or ValueError where there is none, or one that is damaged or unknown.
    """
    path = epath.Path(path)
    if (path / IMPORTED).is_dir():
        return hf_processors.load(path / IMPORTED)
    config = path / "config.json"
    if config.exists() and "model" in read_json(config):
        return processor_for(configs.resolve(read_json(config)), tokenizers.load(path / "tokenizer.json"))
    return hf_processors.load(path)


def _published(files: epath.Path, params: Callable[[ModelConfig], Params]) -> Pretrained:
    config = folder.load_config(files)
    try:
        processor = hf_processors.load(files)
    except FileNotFoundError:  # weights alone
        processor = None
    return Pretrained(_with_layout(config, processor), params(config), processor, folder.token_ids(files), files)


def _with_layout(config: ModelConfig, processor: HfProcessor | None) -> ModelConfig:
    """The config with what only preprocessor_config.json says of how images become visual tokens."""
    if config.vision is None or processor is None or processor.image_processor is None:
        return config
    layout = processor.image_processor.model_layout(config.layout, tokens_per_tile(config))
    return dataclasses.replace(config, layout=layout)


def _on_first_device(params: Params) -> Any:
    return jax.tree.map(lambda _: SingleDeviceSharding(jax.local_devices()[0]), params)


def _newest(workdir: epath.Path, config: ModelConfig, dtype: str | None, place: Placement) -> Params:
    """The parameters of the newest checkpoint."""
    checkpoints, number = open_existing(workdir)
    with checkpoints:
        wanted = abstract_params(config) if dtype else checkpoints.shapes(number)
        as_wanted = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding)
        return checkpoints.params(number, jax.tree.map(as_wanted, wanted, place(wanted)))


def save_pretrained(pt: Pretrained, path: epath.PathLike) -> None:
    """Writes a folder in Hugging Face layout, in the dtype of the parameters, which transformers loads as its own.

    What came from such a folder goes back with all that stood beside its weights. A model of a training workdir
    becomes a LlavaForConditionalGeneration (its text tower and projections, which that class lacks, are left out).
    Raises ValueError for a model that no class of transformers can be.
    """
    path = epath.Path(path)
    if pt.files is not None:
        folder.save_again(path, pt.files, pt.config, pt.params)
    else:
        own.save(path, pt.config, pt.params, pt.processor)
