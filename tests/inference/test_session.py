"""A chat session against a fresh reading of the whole conversation at every turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.data.images import ImageProcessor
from vlm_jax.data.processor import Processor, ProcessorConfig
from vlm_jax.data.records import Message
from vlm_jax.data.tokenizer import train
from vlm_jax.inference.generate import generate
from vlm_jax.inference.samplers import Sampler
from vlm_jax.inference.session import ChatSession
from vlm_jax.models import vit
from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.model import ModelConfig, abstract_params
from vlm_jax.models.transformer import TransformerConfig

SENTENCES = ("USER: ASSISTANT: a cat and a dog and a bird", "what is there? a cat", "and where? there")
TOKENIZER = train(SENTENCES * 9, 320)
CONFIG = ModelConfig(
    vit.ViTConfig(32, 16, TransformerConfig(layers=1, width=16, heads=2, mlp_width=32), feature_layer=-1),
    connector=ConnectorConfig(),
    decoder=DecoderConfig(320, TransformerConfig(
        layers=1, width=16, heads=4, kv_heads=2, mlp_width=24, norm="rms", activation="silu", gated_mlp=True,
        attention_bias=False, mlp_bias=False, rope_theta=1e4)))
SHAPES = abstract_params(CONFIG)
QUESTIONS, NEW, LENGTH = ("what is there?", "and where?", "a cat or a dog?"), 5, 96
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def processor():
    """Lets a model say words, which are read back as they were said, and letters, which may join."""
    made = Processor(ProcessorConfig(ImageProcessor(size=32)), TOKENIZER, CONFIG.vision)
    words = [i for i in range(320) if TOKENIZER.decode([i]).startswith(" ")]
    letters = [TOKENIZER.encode(letter)[0] for letter in "catdogbirdn"]
    made.banned_ids = tuple(i for i in range(320) if i not in (*words, *letters, made.eos_id))
    return made


def random_params(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), SHAPES)


def chat(processor, params, images=(IMAGE,), **options):
    options = {"slots": 128, "max_new_tokens": NEW, **options}
    return ChatSession(CONFIG.vlm(), params, processor, images, **options)


def fresh_answer(processor, params, messages, images):
    """The answer to the last message when everything is rendered, encoded and read from the beginning."""
    prompt = processor.prompts([messages], multiple=LENGTH)
    pixels = processor.images(images)[None] if len(images) else None
    ids = generate(CONFIG.vlm(), params, prompt, pixels, max_new_tokens=NEW, eos_ids=(processor.eos_id,),
                   pad_id=processor.pad_id, banned=processor.banned_ids)[0]
    return processor.answer(ids), [int(i) for i in ids]


@pytest.mark.parametrize("images", [(IMAGE,), ()], ids=["image", "text"])
def test_every_answer_is_that_of_a_fresh_reading(processor, images):
    """For several models: answers end by themselves or are cut off, and are read back as said or not."""
    ended, kept = set(), set()
    for seed in range(8 if images else 2):
        params = random_params(seed)
        session, messages = chat(processor, params, images), []
        for question in QUESTIONS:
            mark = "<image>\n" if images and not messages else ""
            messages.append(Message("user", mark + question))
            answer, ids = fresh_answer(processor, params, tuple(messages), images)
            assert session.ask(question) == answer, (seed, question)
            messages.append(Message("assistant", answer))
            assert session.messages == messages

            ended.add(processor.eos_id in ids)
            unread = len(processor.conversation(tuple(messages))) - session.read
            kept.add("all" if unread <= 2 else "not all")  # the end token, and a last word that was cut off
    if images:
        assert ended == {True, False} and kept == {"all", "not all"}


def test_the_image_is_encoded_once_and_compiled_once(processor, monkeypatch):
    """Two sessions of two images: the eyes run once for each session and are compiled once for both."""
    traced, executed, patchify = [], [], vit.patchify

    def counting(images, patch):
        traced.append(images.shape)
        jax.debug.callback(lambda: executed.append(images.shape))
        return patchify(images, patch)

    monkeypatch.setattr(vit, "patchify", counting)
    for _ in range(2):
        session = chat(processor, random_params(0), (IMAGE, IMAGE))
        session.ask(QUESTIONS[0])
        session.ask(QUESTIONS[1])
    jax.effects_barrier()
    assert len(executed) == 2
    assert len(traced) == 1


def test_images_are_marked_in_the_first_question_alone(processor):
    session = chat(processor, random_params(0))
    for question in QUESTIONS:
        session.ask(question)
    said = [message.text for message in session.messages if message.role == "user"]
    assert said == ["<image>\n" + QUESTIONS[0], *QUESTIONS[1:]]


def test_a_question_may_place_the_image_itself(processor):
    session = chat(processor, random_params(0))
    session.ask("a cat <image> or a dog?")
    assert session.messages[0].text == "a cat <image> or a dog?"


@pytest.mark.parametrize("images, questions", [
    ((), ["what is <image>?"]),
    ((IMAGE,), ["<image> and <image>?"]),
    ((IMAGE,), ["what is there?", "and in <image>?"]),
], ids=["no image", "two marks", "later turn"])
def test_marks_without_an_image_are_refused(processor, images, questions):
    """They would point behind the visual tokens: NaN embeddings, and an answer made of them."""
    session = chat(processor, random_params(0), images)
    for question in questions[:-1]:
        session.ask(question)
    before = list(session.messages)
    with pytest.raises(ValueError, match="<image>"):
        session.ask(questions[-1])
    assert session.messages == before


def test_a_full_conversation_says_so_and_keeps_what_was_said(processor):
    session = chat(processor, random_params(0))
    with pytest.raises(ValueError, match="longer than 128"):
        for _ in range(9):
            before = list(session.messages)
            session.ask(QUESTIONS[1])
    assert session.messages == before and len(before) >= 4


def test_drawn_answers_depend_on_the_seed(processor):
    def answer(seed):
        session = chat(processor, random_params(0), sampler=Sampler(temperature=3.0), seed=seed)
        return session.ask(QUESTIONS[1])

    assert answer(0) == answer(0) != answer(1)
