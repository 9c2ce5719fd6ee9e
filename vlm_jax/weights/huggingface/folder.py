"""A folder in Hugging Face layout as a whole: sizes, parameters and token ids out of it, and back into it."""

from __future__ import annotations

import json
from typing import Any, Callable, Mapping

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from vlm_jax.data.files import read_json, write_atomically
from vlm_jax.data.token_ids import TokenIds
from vlm_jax.models.model import ModelConfig, abstract_params
from vlm_jax.models.transformer import Params
from vlm_jax.weights.huggingface import safetensors
from vlm_jax.weights.huggingface.families.registry import family_of
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import export_params, import_params

Placement = Callable[[Params], Any]  # abstract parameters -> a sharding for each
IMPORTED = "huggingface"  # in a folder that `vlm_jax.convert import` made: what came beside the weights
CONFIG, GENERATION = "config.json", "generation_config.json"
SMALL = (".json", ".jinja", ".txt", ".model")  # what stands beside the weights: tokenizer, template, preprocessing


def load_config(folder: epath.Path) -> ModelConfig:
    """The sizes in its config.json; raises ValueError for sizes that no model can have."""
    hf = read_json(folder / CONFIG)
    family = family_of(hf)
    try:
        return family.config(hf)
    except (TypeError, KeyError, AttributeError, ArithmeticError) as error:  # values of other types than they should be
        raise ValueError(f"{folder / CONFIG} makes no sense ({type(error).__name__}: {error}); copy it again.") from error


def load_params(folder: epath.Path, config: ModelConfig, dtype: str | None, place: Placement) -> Params:
    """The parameters of its safetensors files, each on the devices that `place` says, in `dtype` or as it is stored.

    A host holds no more than what its devices keep and one parameter beside it, whatever the size of the files.
    Raises ValueError unless the files hold the model's tensors, all of them and no others.
    """
    hf, shapes = read_json(folder / CONFIG), abstract_params(config)
    family = family_of(hf)
    flat, shardings = (traverse_util.flatten_dict(tree, sep="/") for tree in (shapes, place(shapes)))
    table = family.table(config)
    with safetensors.Reader(folder, family.rename) as reader:
        if more := family.beside(hf, reader.names):
            reader.add(*more)
        stored = {row.ours: reader.dtype(name) for row in table if (name := row.names(1)[0]) in reader.names}
        abstract = {path: jax.ShapeDtypeStruct(leaf.shape, dtype or stored.get(path, leaf.dtype), sharding=shardings[path])
                    for path, leaf in flat.items()}
        return traverse_util.unflatten_dict(import_params(table, reader, abstract), sep="/")


def token_ids(folder: epath.Path) -> TokenIds:
    """What generation_config.json says, else config.json, else the class that reads it."""
    hf = read_json(folder / CONFIG)
    said = read_json(folder / GENERATION) if (folder / GENERATION).exists() else {}
    sources = (said, hf, family_of(hf).text(hf))
    first = lambda *names: next((s[n] for n in names for s in sources if s.get(n) is not None), None)
    eos = first("eos_token_id")
    return TokenIds(image=first("image_token_id", "image_token_index"), pad=first("pad_token_id"),
                    eos=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
                    banned=tuple(said.get("suppress_tokens") or ()))


def small_files(folder: epath.Path) -> list[epath.Path]:
    """All that belongs to a model but its weights."""
    return [file for file in sorted(folder.iterdir()) if file.suffix in SMALL and file.name != safetensors.INDEX]


def copy_files(source: epath.Path, folder: epath.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in small_files(source):
        write_atomically(folder / file.name, file.read_bytes())


def save_params(folder: epath.Path, family: Family, config: ModelConfig, params: Params) -> None:
    """Writes the weights in the names of the family's hub files; every parameter must have one."""
    flat = traverse_util.flatten_dict(params, sep="/")
    safetensors.write(folder, export_params(family.table(config), flat))


def save_again(folder: epath.Path, source: epath.Path, config: ModelConfig, params: Params) -> None:
    """Writes a model that came from the Hugging Face folder `source`: its small files as they are, and its weights."""
    copy_files(source, folder)
    hf = read_json(source / CONFIG)
    save_json(folder / CONFIG, _with_dtype(hf, str(jax.tree.leaves(params)[0].dtype)))
    save_params(folder, family_of(hf), config, params)


def _with_dtype(hf: HfConfig, dtype: str) -> HfConfig:
    """config.json with the weights' dtype wherever it names one, in either spelling."""
    named = {key: dtype for key in ("dtype", "torch_dtype") if hf.get(key) is not None}
    parts = {key: _with_dtype(part, dtype) for key, part in hf.items() if isinstance(part, dict)}
    return {**hf, **parts, **named}


def save_json(path: epath.Path, values: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(values, indent=2) + "\n")
