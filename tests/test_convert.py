"""The verb `convert`, and what a workdir of ours is to those who know Hugging Face's layout alone."""

from __future__ import annotations

import json
import sys
import types

import jax
import jinja2
import numpy as np
import pytest
import tokenizers
from PIL import Image

import vlm_jax
from vlm_jax import cli, config as configs, convert
from vlm_jax.data import tokenizer
from vlm_jax.data.images import ImageProcessor
from vlm_jax.data.records import Message
from vlm_jax.data.templates import TEMPLATES, ChatTemplate, render, template
from vlm_jax.inference import peer
from vlm_jax.inference.session import ChatSession
from vlm_jax.models.model import abstract_params
from vlm_jax.weights.checkpoints import Checkpoints
from vlm_jax.weights.huggingface import own
from vlm_jax.weights.init_from import load_into

BLOCKS = {"layers": 2, "width": 16, "heads": 2, "mlp_width": 16, "activation": "quick_gelu"}
WORDS = BLOCKS | {"norm": "rms", "activation": "silu", "gated_mlp": True, "rope_theta": 1e4, "attention_bias": False,
                  "mlp_bias": False, "kv_heads": 1}
VALUES = {
    "model": {
        "vision": {"image_size": 32, "patch_size": 16, "feature_layer": -2, "transformer": BLOCKS},
        "text": {"vocab_size": 300, "context": 8, "end_id": 2, "transformer": BLOCKS}, "contrast": {"embed_dim": 8},
        "connector": {"kind": "mlp"}, "decoder": {"vocab_size": 304, "transformer": WORDS}},
    "processor": {"image": {"size": 32}}, "run": ["talk"],
    "stages": {"talk": {
        "data": {"batch": 1, "source": {"kind": "scenes"}, "format": {"kind": "rows", "length": 64}},
        "objective": {"kind": "next_token"}, "trainable": [[".*", 1e-3]], "steps": 0}}}
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
QUESTION = "what is there, a cat or a dog?"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Random parameters in the files of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(json.dumps(VALUES))
    (folder / "tokenizer.json").write_text(tokenizer.train([QUESTION, "USER: ASSISTANT: a cat"] * 9, 300).to_json())
    rng = np.random.default_rng(0)
    draw = lambda leaf: 0.5 * rng.standard_normal(leaf.shape, np.float32)
    params = jax.tree.map(draw, abstract_params(configs.resolve(VALUES).model))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, params, {"count": np.zeros(1)}, {"stage": "instruct", "step": 1})
        checkpoints.wait()
    return folder


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "out"
    vlm_jax.save_pretrained(vlm_jax.load_pretrained(workdir), folder)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the verb as the command line does: (exit code, standard error)."""
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, args)])
        code = 0
        try:
            cli.main(convert.main)
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err
    return run


def test_a_workdir_exports_as_llava_that_gives_the_chat_s_answer(workdir, exported):
    """The prompt is made as LlavaProcessor makes it: render, write the image mark out, tokenize the string."""
    ours, theirs = vlm_jax.load_pretrained(workdir), vlm_jax.load_pretrained(exported)
    assert theirs.params.keys() == {"vision", "connector", "decoder"}
    settings = json.loads((exported / "processor_config.json").read_text())
    image = settings["image_processor"]
    side = image["size"]["height"] // settings["patch_size"]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    chat = jinja2.Template((exported / "chat_template.jinja").read_text())
    text = chat.render(messages=messages, add_generation_prompt=True)
    text = text.replace(settings["image_token"], settings["image_token"] * side * side)
    ids = tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json")).encode(text).ids
    assert ids == list(ours.processor.conversation(ours.processor.question(QUESTION)).ids)
    pixels = (IMAGE * image["rescale_factor"] - image["image_mean"]) / image["image_std"]
    inputs = dict(input_ids=[ids], pixel_values=pixels.transpose(2, 0, 1)[None].astype(np.float32))
    new = theirs.generate(**inputs, max_new_tokens=8)
    assert new.tolist() == ours.generate(**inputs, max_new_tokens=8).tolist()
    session = ChatSession(ours.config.vlm(), ours.params, ours.processor, [IMAGE], slots=128, max_new_tokens=8)
    assert ours.processor.answer(new[0]) == session.ask(QUESTION)
    wanted, got = ours.forward(**inputs)["logits"], theirs.forward(**inputs)["logits"]
    np.testing.assert_array_equal(wanted, got)


@pytest.mark.peer
def test_transformers_reads_an_exported_workdir_and_gives_the_same_answer(workdir, exported):
    """Its own processor makes the prompt and the pixels, its own model the tokens."""
    from transformers import AutoProcessor  # the extra

    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    processor = AutoProcessor.from_pretrained(exported)
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = dict(processor(text=[text], images=[Image.fromarray(IMAGE)], return_tensors="np"))
    ours = vlm_jax.load_pretrained(workdir)
    mine = ours.generate(**inputs, max_new_tokens=peer.NEW_TOKENS, eos_token_id=())
    np.testing.assert_array_equal(peer.Peer(exported).generate(inputs), mine)
    assert inputs["input_ids"][0].tolist() == list(ours.processor.conversation(ours.processor.question(QUESTION)).ids)


def test_verify_is_a_sentence_without_the_extra_and_for_a_workdir(workdir, exported, monkeypatch):
    with pytest.raises(ValueError, match="a workdir of ours.*export it"):
        convert.verify_folder(str(workdir), as_json=False)
    with monkeypatch.context() as patch:  # another class of transformers, whose outputs bear other names
        patch.setattr(peer, "Peer", lambda folder: types.SimpleNamespace(outputs=lambda inputs: {"other": np.zeros(1)}))
        with pytest.raises(ValueError, match="nothing to compare"):
            convert.verify_folder(str(exported), as_json=False)
    monkeypatch.setitem(sys.modules, "torch", None)  # what Python does for a module that is not there
    with pytest.raises(ValueError, match="EXTRAS=peer"):
        convert.verify_folder(str(exported), as_json=False)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"])  # which is none to chat with
@pytest.mark.parametrize("layout", ["interleaved", "delimited", "front"])
def test_the_written_template_says_what_ours_renders(name, layout):
    said = [("user", "<image>\nwhat?"), ("assistant", "a cat"), ("user", "and now?")]
    content = [[{"type": "image"}, {"type": "text", "text": "what?"}], "a cat", [{"type": "text", "text": "and now?"}]]
    for system in ([], [("system", "Be short.")]):
        ours = render(template(name), tuple(Message(*m) for m in system + said), layout)
        messages = [{"role": role, "content": text} for role, text in system]
        messages += [{"role": role, "content": c} for (role, _), c in zip(said, content)]
        theirs = jinja2.Template(own.jinja(template(name), layout))
        theirs = theirs.render(messages=messages, add_generation_prompt=True)
        assert theirs == "".join(piece.text for piece in ours)


def test_image_preprocessing_is_said_in_clip_s_words():
    say = own.image_processor
    squash = say(ImageProcessor(32))
    assert squash["size"] == {"height": 32, "width": 32} and not squash["do_center_crop"]
    crop = say(ImageProcessor(32, resize="crop", resample="bilinear"))
    assert crop["size"] == {"shortest_edge": 32} and crop["do_center_crop"] and crop["resample"] == 2
    pad = say(ImageProcessor(32, resize="pad"))
    assert pad["image_processor_type"] == "LlavaImageProcessor" and pad["do_pad"]
    with pytest.raises(ValueError, match="no image processor with resize 'crop' to 32 x 16"):
        say(ImageProcessor((32, 16), resize="crop"))


@pytest.mark.parametrize("change, sentence", [
    ({"connector": {"kind": "linear"}}, "an 'mlp' connector"),
    ({"connector": None, "decoder": None}, "Only a model with a decoder"),
    ({"decoder": {"vocab_size": 304, "transformer": WORDS | {"gated_mlp": False}}}, "options that 'llama' models"),
])
def test_a_model_that_no_class_can_be_is_refused(tmp_path, workdir, change, sentence):
    pt = vlm_jax.load_pretrained(workdir)
    model = configs.resolve(VALUES | {"model": VALUES["model"] | change}).model
    with pytest.raises(ValueError, match=sentence):
        own.save(vlm_jax.pretrained.epath.Path(tmp_path), model, pt.params, pt.processor)


def test_a_template_that_drops_questions_is_refused():
    with pytest.raises(ValueError, match="drops what a user says"):
        own.jinja(ChatTemplate(user="{text}", open="", answer="{text}", user_text=False), "interleaved")


def test_import_and_export_give_the_same_files(run, exported, tmp_path):
    code, err = run("import", exported, tmp_path / "ours")
    assert code == 0, err
    code, err = run("export", tmp_path / "ours", tmp_path / "again")
    assert code == 0, err
    names = sorted(file.name for file in exported.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "again").iterdir())
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes(), name


def test_a_stage_can_start_from_an_import(run, exported, tmp_path):
    assert run("import", exported, tmp_path / "ours")[0] == 0
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(configs.resolve(VALUES).model))
    params = load_into(fresh, f"{tmp_path / 'ours'}:vision,decoder")
    want = vlm_jax.load_pretrained(exported).params
    jax.tree.map(np.testing.assert_array_equal, {k: params[k] for k in ("vision", "decoder")},
                 {k: want[k] for k in ("vision", "decoder")})
    assert not params["connector"]["linear_1"]["kernel"].any()


def test_a_folder_with_something_in_it_is_left_alone(run, exported, workdir, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    for args in (("import", exported, tmp_path), ("export", workdir, tmp_path)):
        code, err = run(*args)
        assert code == 2 and "exists and is not empty" in err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    code, err = run("import", workdir, tmp_path / "new")
    assert code == 2 and "is a workdir of ours already" in err
