"""Config files and the command line: what a value becomes, and what a mistake says."""

import json
import pathlib
import re

import pytest

from vlm_jax import config as configs
from vlm_jax.data.pipeline import PairsConfig, RowsConfig
from vlm_jax.data.scenes import SceneConfig
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.native_vit import NativeViTConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.objectives.contrastive import ContrastiveConfig
from vlm_jax.objectives.regions import RegionsConfig
from vlm_jax.training.optimizer import OptimizerConfig

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SMOKE = str(CONFIGS / "smoke.py")
SOURCE = "stages.align.data.source"
BLOCKS = "model.vision.transformer"


def find(values, path):
    for part in path.split("."):
        values = values[part]
    return values


def load(*overrides):
    return configs.load(SMOKE, [f"--config.{override}" for override in overrides])


# Values from the command line.


@pytest.mark.parametrize("override, value", [
    ("seed=200", 200), ("seed=1_000", 1000),
    ("model.contrast.scale=2", 2.0), ("model.contrast.scale=1e-4", 1e-4), ("model.contrast.scale=.5", 0.5),
    ("model.vision.pre_norm=False", False), ("model.vision.patch_bias=True", True),
    ("processor.tokenizer=b", "b"), ("processor.tokenizer=3", "3"), ("processor.tokenizer=", ""),
    ("processor.tokenizer=a=b", "a=b"), ("processor.tokenizer=True", "True"),
    ("processor.tokenizer=[1]", "[1]"),
    (f"{BLOCKS}.kv_heads=1", 1), (f"{BLOCKS}.kv_heads=None", None),
    ("model.decoder.transformer.rope_theta=None", None),
    (f"{SOURCE}.digit_sizes=(8,16,32)", [8, 16, 32]), (f"{SOURCE}.digit_sizes=8,16", [8, 16]),
    (f"{SOURCE}.digit_sizes=[8]", [8]), (f"{SOURCE}.digit_sizes=8", [8]),
    (f"{SOURCE}.colors=red,green,blue", ["red", "green", "blue"]), ("run=contrastive", ["contrastive"]),
    ("run=('contrastive',)", ["contrastive"]), ("evals.tasks=()", []), ("notes=one,two", ["one", "two"]),
    ("stages.align.trainable=[('decoder/.*', 1e-4), ('.*', None)]", [["decoder/.*", 1e-4], [".*", None]])])
def test_an_override_takes_the_type_of_what_it_replaces(override, value):
    found = find(load(override), override.partition("=")[0])
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("override", [
    "seed=many", "seed=1.5", "seed=True", "seed=", "model.contrast.max_scale=high",
    "model.contrast.max_scale=True",
    "model.vision.pre_norm=1", "model.vision.pre_norm=false", f"{BLOCKS}.kv_heads=two", "seed=None"])
def test_a_value_of_another_type_is_an_error_that_names_the_key(override):
    key, _, text = override.partition("=")
    with pytest.raises(ValueError, match=rf"config\.{re.escape(key)} is .*{text}"):
        load(override)


def test_a_group_is_no_value():
    with pytest.raises(ValueError, match="config.model.vision is a group; set one of its keys: image_size"):
        load("model.vision=3")


def test_the_last_of_several_overrides_counts():
    assert load("seed=1", "loop.log_every=2", "seed=3")["seed"] == 3


def test_a_key_that_the_file_leaves_at_its_default_can_be_set():
    """`optimizer` stands in no stage of the quickstart, and is known all the same."""
    values = load("stages.align.optimizer.clip=0.5", "stages.align.init_from=runs/a:vision")
    assert find(values, "stages.align.optimizer.clip") == 0.5
    assert find(values, "stages.align.init_from") == "runs/a:vision"


def test_overrides_that_are_right_only_together():
    values = load("model.vision.image_size=96", "model.vision.patch_size=24", "processor.image.size=96")
    assert configs.resolve(values).processor.image.size == (96, 96)


@pytest.mark.parametrize("argument, says", [
    ("--config.sede=3", "Unknown config key 'sede' in config; did you mean 'seed'?"),
    ("--config.stages.alig.steps=3", "Unknown config key 'alig' in config.stages; did you mean 'align'?"),
    ("--config.stages.align.optimizer.clpi=1.0",
     "Unknown config key 'clpi' in config.stages.align.optimizer; did you mean 'clip'?"),
    ("--config.seed.x=3", "Unknown config key 'x' in config.seed."),
    ("--config.zzzzz=3", "Unknown config key 'zzzzz' in config."),
    ("--config.seed", "Unknown argument '--config.seed'; config values are set as --config.path.to.key="),
    ("--confg.seed=3", "Unknown argument '--confg.seed=3'"), ("seed=3", "Unknown argument 'seed=3'"),
    ("--resume", "Unknown argument '--resume'")])
def test_unknown_keys_and_arguments(argument, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        configs.load(SMOKE, [argument])


# Files.


def test_files_that_are_no_configs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config file .*absent.py"):
        configs.load(str(tmp_path / "absent.py"))
    with pytest.raises(FileNotFoundError, match="no config file"):
        configs.load(str(tmp_path))
    (tmp_path / "empty.py").write_text("config = 3\n")
    with pytest.raises(ValueError, match=r"empty.py has no get_config\(\)"):
        configs.load(str(tmp_path / "empty.py"))


def test_a_file_may_take_an_argument(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import runpy\n"
        f"smoke = runpy.run_path({SMOKE!r})['get_config']\n"
        "def get_config(tokenizer):\n"
        "    config = smoke()\n"
        "    config.processor.tokenizer = tokenizer\n"
        "    return config\n")
    assert configs.load(f"{tmp_path}/mine.py:some/a.json")["processor"]["tokenizer"] == "some/a.json"
    with pytest.raises(ValueError, match=r"takes an argument \(tokenizer\); give .*mine.py:TOKENIZER"):
        configs.load(str(tmp_path / "mine.py"))
    with pytest.raises(ValueError, match="smoke.py takes no argument"):
        configs.load(f"{SMOKE}:some/a.json")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.name)
def test_every_shipped_config_resolves(path):
    argument = ":data" if "get_config(path)" in path.read_text() else ""
    assert configs.resolve(configs.load(f"{path}{argument}")).run


# From plain values to dataclasses, and back.


def test_kinds_choose_the_dataclass():
    config = configs.resolve(load())
    stage = config.stages["contrastive"]
    assert isinstance(stage.data.source, SceneConfig) and isinstance(stage.data.format, PairsConfig)
    assert isinstance(stage.objective, RegionsConfig)
    assert isinstance(stage.objective.contrastive, ContrastiveConfig)
    assert isinstance(config.stages["align"].data.format, RowsConfig)
    assert stage.optimizer == OptimizerConfig()
    assert config.run == ("contrastive", "language", "align", "instruct")
    assert stage.trainable[-1] == (".*", None)


def test_eyes_without_a_kind_are_a_vit():
    values = load()
    blocks = values["model"]["vision"]["transformer"]
    native = {"kind": "native", "patch_size": 4, "temporal_patch_size": 1, "merge": 2, "transformer": blocks}
    config = configs.build(ModelConfig, values["model"] | {"text": None, "contrast": None, "vision": native}, "model")
    assert isinstance(configs.resolve(values).model.vision, ViTConfig) and "kind" not in values["model"]["vision"]
    assert isinstance(config.vision, NativeViTConfig) and configs.plain(config)["vision"]["kind"] == "native"
    with pytest.raises(ValueError, match="vision.kind is 'nativ'; choose one of .*native, or give none"):
        configs.build(ModelConfig, values["model"] | {"vision": native | {"kind": "nativ"}}, "model")


def test_every_default_is_written_out():
    """config.json tells how a run was made, also after a default has changed."""
    values = load()
    assert values["stages"]["align"]["optimizer"] == {
        "name": "adamw", "b1": 0.9, "b2": 0.98, "eps": 1e-8, "moments": "float32", "weight_decay": 0.02, "decay": [],
        "clip": 1.0, "warmup": 0.05, "final": 0.0}
    assert values["stages"]["align"]["data"]["source"]["kind"] == "scenes"
    assert "std" in values["processor"]["image"]


def test_what_config_json_holds_resolves_to_the_same():
    values = load("stages.align.optimizer.clip=0.5")
    config = configs.resolve(values)
    again = configs.resolve(json.loads(json.dumps(values)))
    assert again == config and configs.plain(again) == values
    hash(config.model), hash(config.stages["align"])  # sources are counted by it


def altered(path, value):
    """The smoke config's values with one of them changed or added."""
    values = load()
    *parents, last = path.split(".")
    node = find(values, ".".join(parents)) if parents else values
    node[last] = value
    return values


@pytest.mark.parametrize("path, value, says", [
    ("sed", 3, "Unknown config key 'sed' in config; did you mean 'seed'?"),
    ("stages.align.stpes", 3, "Unknown config key 'stpes' in config.stages.align; did you mean 'steps'?"),
    (f"{SOURCE}.sise", 3, f"Unknown config key 'sise' in config.{SOURCE}; did you mean 'size'?"),
    (f"{SOURCE}.kind", "scens", f"config.{SOURCE}.kind is 'scens'; choose one of scenes, captions, llava"),
    (SOURCE, {"size": 3}, f"config.{SOURCE}.kind is None; choose one of"),
    ("stages.align.objective.kind", "next", "choose one of contrastive, contrastive_regions, next_token"),
    ("stages.align.data.format", {"kind": "rows"}, "key config.stages.align.data.format.length is missing"),
    ("model.vision.patch_size", 24, "image_size 64 is not divisible by patch_size 24; use 48 or 72"),
    ("model.vision.image_size", 60, "image_size 60 is not divisible by patch_size 16"),
    ("model.decoder", 3, "config.model.decoder is 3; it must be a group with the keys of DecoderConfig"),
    ("stages", [1], "config.stages is [1]; it must be a group"),
    ("run", ["contrastive", "algin"], "'algin'"), ("run", ["contrastive", "algin"], "did you mean 'align'?"),
    ("run", ["align", "align"], "'align'"),  # a checkpoint could not tell which of the two it is in
    ("model.connector.kind", "lineer", "Connector 'lineer' is unknown; choose one of linear, mlp"),
    ("processor.template", "lava", "Chat template 'lava' is unknown"),
    ("stages.align.data.format.loss", "none", "loss 'none' is unknown")])
def test_mistakes_name_the_key_and_the_remedy(path, value, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        configs.resolve(altered(path, value))


@pytest.mark.parametrize("path, value", [
    ("stages.align.steps", 1.5), ("stages.align.steps", "100"), ("stages.align.steps", -1),
    ("stages.align.data.batch", 0),
    (f"{BLOCKS}.layers", "3"), (f"{BLOCKS}.kv_heads", "two"), (f"{SOURCE}.digit_sizes", ["a", "b"]),
    ("loop.log_every", 0), ("loop.checkpoint_every", 0), ("run", "contrastive")])
def test_a_value_that_cannot_work_is_refused_before_anything_is_built(path, value):
    """Caught here it is a sentence; later it is a TypeError, a ZeroDivisionError or an hour lost."""
    with pytest.raises(ValueError, match=path.rsplit(".", 1)[-1]):
        configs.resolve(altered(path, value))


def test_a_whole_number_in_a_file_may_stand_for_a_fraction():
    """`weight=1` in a file, `--config...weight=0.5` on the command line."""
    values = altered("stages.contrastive.objective.weight", 1)
    written = configs.plain(configs.resolve(values))
    assert type(written["stages"]["contrastive"]["objective"]["weight"]) is float
