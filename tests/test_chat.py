"""The verbs that use a trained model, `chat` and `evaluate`, on a workdir as training leaves it."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from vlm_jax import chat, cli, config as configs, evaluate
from vlm_jax.data import tokenizer
from vlm_jax.data.pipeline import texts
from vlm_jax.data.registry import open_source
from vlm_jax.data.huggingface.processor import HfProcessor
from vlm_jax.data.templates import template
from vlm_jax.inference.prompted import PromptedSession
from vlm_jax.inference.samplers import Sampler
from vlm_jax.models.model import abstract_params
from vlm_jax.pretrained import load_pretrained
from vlm_jax.weights.checkpoints import Checkpoints

BLOCKS = {"layers": 1, "width": 16, "heads": 2, "mlp_width": 16}
VALUES = {
    "model": {
        "vision": {"image_size": 32, "patch_size": 16, "feature_layer": -1, "transformer": BLOCKS},
        "connector": {"kind": "linear"},
        "decoder": {"vocab_size": 300, "transformer": BLOCKS | {"norm": "rms", "rope_theta": 1e4}}},
    "processor": {"image": {"size": 32}},
    "stages": {}, "run": [],
    "evals": {"source": {"kind": "scenes", "split": "test", "canvas": 32, "digit_sizes": [8, 16], "grid": 8,
                         "max_digits": 2}, "examples": 2, "batch": 8}}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Random parameters in the files of a finished run, and scene.png, the first scene of its evaluation."""
    folder = tmp_path_factory.mktemp("run")
    config = configs.resolve(VALUES)
    source = open_source(config.evals.source)
    (folder / "config.json").write_text(json.dumps(VALUES))
    said = texts(source, 50, template("llava"))
    (folder / "tokenizer.json").write_text(tokenizer.train(said, 300).to_json())
    rng = np.random.default_rng(0)
    draw = lambda leaf: 0.5 * rng.standard_normal(leaf.shape, np.float32)
    params = jax.tree.map(draw, abstract_params(config.model))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, params, {"count": np.zeros(1)}, {"stage": "instruct", "step": 1})
        checkpoints.wait()
    Image.fromarray(source[0].images[0]).save(folder / "scene.png")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a verb as the command line does: (exit code, standard output, standard error)."""
    def run(verb, *args, typed=""):
        monkeypatch.setattr(sys, "argv", ["verb", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        code = 0
        try:
            cli.main(verb.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()
    return run


def test_chat_gives_the_answers_that_evaluate_scores(workdir, run):
    code, out, err = run(evaluate, "--model", workdir, "--task", "vqa", "--json")
    assert code == 0 and "vqa_accuracy" in err
    last = json.loads(out)  # nothing but one object
    assert last == {"task": "vqa", "metrics": last["metrics"], "file": f"{workdir}/eval/vqa.json"}
    figures = json.loads((workdir / "eval" / "vqa.json").read_text())
    assert figures["metrics"] == last["metrics"] and "canvas=32" in figures["data"]
    record = json.loads((workdir / "eval" / "vqa.jsonl").read_text().split("\n")[2])
    assert record["index"] == 0 and (workdir / "eval" / record["image"]).exists()
    code, out, _ = run(chat, "--model", workdir, "--image", workdir / "scene.png", record["question"],
                       "--max-new-tokens", 16)
    assert code == 0 and out == record["answer"] + "\n"


def test_a_conversation_is_read_line_by_line_until_an_empty_one(workdir, run):
    image = ["--image", workdir / "scene.png", "--max-new-tokens", 4]
    code, out, err = run(chat, "--model", workdir, *image, "--json", typed="How many?\nWhich?\n\nToo late\n")
    said = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [turn["question"] for turn in said] == ["How many?", "Which?"] and ">" not in err
    session = chat.open_session(load_pretrained(workdir), [np.asarray(Image.open(workdir / "scene.png"))],
                                max_new_tokens=4)
    assert [session.ask(turn["question"]) for turn in said] == [turn["answer"] for turn in said]


def test_sampling_follows_its_seed_and_text_alone_is_fine(workdir):
    loaded = load_pretrained(workdir)
    open_session = functools.partial(chat.open_session, loaded, max_new_tokens=8, sampler=Sampler(1.0))
    say = lambda seed: open_session(seed=seed).ask("Hello?")
    assert say(1) == say(1) != say(2)


def test_a_published_checkpoint_has_a_session_of_its_own_if_it_can_talk(workdir):
    loaded = dataclasses.replace(load_pretrained(workdir), processor=HfProcessor())
    assert isinstance(chat.open_session(loaded), PromptedSession)
    with pytest.raises(ValueError, match="weights but neither tokenizer nor preprocessor_config.json"):
        chat.open_session(dataclasses.replace(loaded, processor=None))
    with pytest.raises(ValueError, match="has no decoder to talk with"):
        eyes = dataclasses.replace(loaded.config, connector=None, decoder=None)
        chat.open_session(dataclasses.replace(loaded, config=eyes))


@pytest.mark.parametrize("args, sentence", [
    (["--image", "no/such.png", "Why?"], "image no/such.png does not exist"),
    (["--image", __file__, "Why?"], "test_chat.py is damaged or none of"),
    (["--top-k", "5", "Why?"], "--top-k and --top-p choose nothing at temperature 0; add --temperature 1."),
    (["--temperature", "-1", "Why?"], "temperature -1.0 is negative"),
    (["--max-new-tokens", "0", "Why?"], "max_new_tokens is 0"),
])
def test_a_mistake_in_chat_is_one_sentence(workdir, run, args, sentence):
    code, out, err = run(chat, "--model", workdir, *args)
    assert code == 2 and out == "" and err.startswith("error: ") and sentence in err and err.count("\n") == 1


@pytest.mark.parametrize("args, sentence", [
    (["--task", "vqa", "--data", "no/such"], "There is no no/such"),
    (["--task", "vqa", "--data", __file__], "neither a folder nor a .json"),
    (["--task", "vqa", "--split", "test"], "--split and --images go with --data"),
    (["--task", "zero_shot"], "This model has no text tower"),
])
def test_a_mistake_in_evaluate_is_one_sentence(workdir, run, args, sentence):
    code, out, err = run(evaluate, "--model", workdir, *args)
    assert code == 2 and out == "" and err.startswith("error: ") and sentence in err and err.count("\n") == 1


def test_a_workdir_that_is_none_is_named(tmp_path, run):
    assert run(evaluate, "--model", tmp_path, "--task", "vqa")[::2] == (
        2, f"error: {tmp_path}/config.json does not exist; give the workdir of a training run, or a folder in "
           "Hugging Face layout.\n")


@pytest.mark.parametrize("args", [["--task", "nonsense"], ["--task", "vqa", "--examples", "0"], []])
def test_argparse_answers_for_the_arguments(workdir, run, args):
    assert run(evaluate, "--model", workdir, *args)[0] == 2


def test_your_own_data(workdir, tmp_path, run):
    """A folder with captions and a LLaVA-style file; all of it, unless the split or the number is given."""
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(np.full((20, 30, 3), ord(name[0]), np.uint8)).save(tmp_path / name)
    (tmp_path / "captions.csv").write_text("image,caption\na.png,a cat\nb.png,a dog\nc.png,a bird\n")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "gray"}]
    entries = [{"image": name, "conversations": turns, "type": "shade"} for name in ("a.png", "b.png")]
    (tmp_path / "talk.json").write_text(json.dumps(entries))

    code, out, _ = run(evaluate, "--model", workdir, "--task", "caption", "--data", tmp_path)
    assert (code, out.split()) == (0, ["caption", "caption_exact", "0.0", "%"])
    lines = (workdir / "eval" / "caption.jsonl").read_text().splitlines()
    assert [json.loads(line)["truth"] for line in lines] == ["a cat", "a dog", "a bird"]
    code, out, _ = run(evaluate, "--model", workdir, "--task", "vqa", "--data", tmp_path / "talk.json")
    assert code == 0 and out.split()[-2:] == ["vqa_examples", "2"] and "vqa_blind/shade" in out


def test_own_data_is_recognised_by_what_it_is(tmp_path):
    captions, talk = tmp_path / "captions.jsonl", tmp_path / "talk.jsonl"
    captions.touch(), talk.touch()
    assert evaluate.own_data(captions, None, "test") == evaluate.own_data(tmp_path, None, "test")
    assert evaluate.own_data(talk, "there", "all") == evaluate.LlavaJsonConfig(str(talk), "there", "all")
    with pytest.raises(ValueError, match="--images goes with a LLaVA-style file"):
        evaluate.own_data(tmp_path, "there", "all")


def test_an_unknown_task_in_a_config_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="'zeroshot' is unknown; choose one of zero_shot, retrieval"):
        evaluate.evaluate(None, None, None, "zeroshot", None, tmp_path, 1, 1)


def test_the_table_shows_shares_in_per_cent_and_numbers_as_they_are():
    assert evaluate.table("vqa", {"vqa_accuracy": 0.5, "vqa_examples": 1567}).splitlines() == [
        "vqa", "  vqa_accuracy    50.0 %", "  vqa_examples     1,567"]
