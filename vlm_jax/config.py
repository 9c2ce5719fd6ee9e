"""Config files in, frozen dataclasses out: the one place that knows `ml_collections`.

A config file is Python with `get_config() -> ml_collections.ConfigDict`. Values can be changed on the command line:
`--config.stages.align.steps=200`. Unknown keys raise and suggest the nearest.
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import difflib
import inspect
import pathlib
import runpy
import types
import typing
from typing import Any, Mapping, Sequence

from etils import epath

from vlm_jax.data.processor import ProcessorConfig
from vlm_jax.data.registry import SourceConfig
from vlm_jax.models.execution import Execution
from vlm_jax.models.model import ModelConfig
from vlm_jax.training.hardware import preset
from vlm_jax.training.loop import LoopConfig, StageConfig
from vlm_jax.training.mesh import MeshConfig
from vlm_jax.weights.huggingface.folder import IMPORTED, load_config

WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Tasks to run after the last stage on `source` (records held out from training), the first `examples` of it."""

    tasks: tuple[str, ...] = ()
    source: SourceConfig | None = None
    examples: int = 256
    batch: int = 128


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run. `run` names the stages in order; `notes` are shown in the report.

    `hardware` names a machine (`training/hardware.py`) whose mesh and execution are taken; empty leaves both to the
    config. A mesh or execution that stands beside a name and is not the machine's own is an error.
    """

    model: ModelConfig
    processor: ProcessorConfig
    stages: Mapping[str, StageConfig]
    run: tuple[str, ...]
    seed: int = 0
    hardware: str = ""
    mesh: MeshConfig = MeshConfig()
    execution: Execution = Execution()
    loop: LoopConfig = LoopConfig()
    evals: EvalConfig = EvalConfig()
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if len(set(self.run)) < len(self.run):
            raise ValueError(f"config.run is {self.run!r}; it must name each stage once.")
        for name in self.run:
            if name not in self.stages:
                raise ValueError(f"config.run names the stage '{name}', config.stages has only "
                                 f"{', '.join(self.stages)}{nearest(name, self.stages)}")
        if self.hardware:
            machine = preset(self.hardware)
            for key in ("mesh", "execution"):
                if getattr(self, key) not in (type(self).__dataclass_fields__[key].default, getattr(machine, key)):
                    raise ValueError(f"config.{key} is not that of config.hardware '{self.hardware}'; leave one of them "
                                     f"out.")
                object.__setattr__(self, key, getattr(machine, key))


def load(config: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The resolved config, every default written out, as the plain nested dict that config.json holds.

    `config` is a path, or "path.py:argument" for a file whose get_config takes one. Overrides are "--config.a.b=value".
    """
    path, colon, argument = config.partition(".py:")
    path = path + ".py" if colon else config
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"There is no config file {path}.")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise ValueError(f"{path} has no get_config(); a config file returns an ml_collections.ConfigDict from it.")
    if colon and not inspect.signature(get_config).parameters:
        raise ValueError(f"{path} takes no argument; give --config {path}.")
    wanted = [p for p in inspect.signature(get_config).parameters.values() if p.default is p.empty]
    if bool(wanted) and not colon:
        raise ValueError(f"{path} takes an argument ({wanted[0].name}); give --config {path}:{wanted[0].name.upper()}.")
    values = plain(resolve((get_config(argument) if colon else get_config()).to_dict()))
    for override in overrides:
        _override(values, override)
    return plain(resolve(values))


def plain(value: Any) -> Any:
    """Dataclasses as dicts (with their `kind`), tuples as lists: what JSON gives back."""
    if dataclasses.is_dataclass(value):
        named = {"kind": value.kind} if hasattr(value, "kind") else {}
        return named | {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def model_of(path: str) -> dict[str, Any]:
    """The `model` group for a stage that starts from published weights: the sizes of the folder in Hugging Face layout
    at `path`, or of the one that `vlm_jax.convert import` made of it."""
    folder = epath.Path(path)
    imported = folder / IMPORTED
    return plain(load_config(imported if imported.is_dir() else folder))


def _override(config: dict[str, Any], override: str) -> None:
    key, sign, text = override.removeprefix("--config.").partition("=")
    if not override.startswith("--config.") or not sign:
        raise ValueError(f"Unknown argument '{override}'; config values are set as --config.path.to.key=value.")
    node, parts = config, key.split(".")
    for i, part in enumerate(parts):
        known = node if isinstance(node, dict) else {}
        if part not in known:
            where = ".".join(["config", *parts[:i]])
            raise ValueError(f"Unknown config key '{part}' in {where}{nearest(part, known)}")
        parent, node = node, node[part]
    parent[parts[-1]] = _parse(text, node, key)


def _parse(text: str, old: Any, key: str) -> Any:
    """The value that `text` spells; whether it is of the right type is seen when the config is built."""
    if isinstance(old, str):
        return text
    if isinstance(old, dict):
        raise ValueError(f"config.{key} is a group; set one of its keys: {', '.join(old)}.")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text.split(",") if isinstance(old, list) else text
    if isinstance(old, list):
        return list(value) if isinstance(value, (list, tuple)) else [value]
    return value


def resolve(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from the nested dict of `load`."""
    return build(RunConfig, values, "config")


def build(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `kind`: dataclasses from mappings, strict about their keys."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _build_union([a for a in args if a is not type(None)], value, where)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin is collections.abc.Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; it must be a group.")
        return {name: build(args[1], item, f"{where}.{name}") for name, item in value.items()}
    if origin is tuple:
        kinds = args[:1] * len(value) if args[-1] is ... and isinstance(value, (list, tuple)) else args
        if not isinstance(value, (list, tuple)) or len(value) != len(kinds):
            raise ValueError(f"{where} is {value!r}; it must be a list{'' if args[-1] is ... else f' of {len(args)}'}.")
        return tuple(build(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value)))
    if kind is float and type(value) is int:
        return float(value)
    if kind in WORDS and type(value) is not kind:
        raise ValueError(f"{where} is {value!r}; it must be {WORDS[kind]}.")
    return _freeze(value)


def _build_union(kinds: list[Any], value: Any, where: str) -> Any:
    if value is None:
        return None
    if len(kinds) == 1:
        return build(kinds[0], value, where)
    if not any(dataclasses.is_dataclass(k) for k in kinds):
        return _freeze(value)
    named = {getattr(k, "kind", None): k for k in kinds}  # the one without a kind is meant where none is given
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}; it must be a group{'' if None in named else ' with a `kind`'}.")
    name = value.get("kind")
    if name not in named:
        raise ValueError(f"{where}.kind is {name!r}; choose one of {', '.join(filter(None, named))}"
                         f"{', or give none' if None in named else ''}.")
    return build(named[name], value, where)


def _build_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}; it must be a group with the keys of {kind.__name__}.")
    hints = typing.get_type_hints(kind)
    if typing.get_origin(hints.get("kind")) is typing.ClassVar:  # names the dataclass, and is no field of it
        value = {key: item for key, item in value.items() if (key, item) != ("kind", kind.kind)}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise ValueError(f"Unknown config key '{name}' in {where}{nearest(name, fields)}")
    for name, field in fields.items():
        if name not in value and field.default is dataclasses.MISSING and \
                field.default_factory is dataclasses.MISSING:
            raise ValueError(f"The config key {where}.{name} is missing.")
    return kind(**{name: build(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, (list, tuple)) else value


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown name: a suggestion, or a full stop."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else "."
