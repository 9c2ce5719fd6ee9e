"""The processor, on images of 32 pixels in patches of 16: four visual tokens each."""

import types
import warnings

import numpy as np
import pytest

from vlm_jax.data.images import ImageProcessor
from vlm_jax.data.processor import Processor, ProcessorConfig
from vlm_jax.data.records import Message, Record
from vlm_jax.data.tokenizer import train
from vlm_jax.models.tokens import num_visual_tokens

EYES = types.SimpleNamespace(image_size=32, patch_size=16)
VISUAL = 4
TOKENIZER = train(["USER: ASSISTANT: What is it? A red cat."] * 4, 300)
PAD, BOS, END, IMAGE, START, STOP = range(6)


def processor(context=8, **options) -> Processor:
    return Processor(ProcessorConfig(ImageProcessor(32), **options), TOKENIZER, EYES, context)


def image(value=0, shape=(32, 32)):
    return np.full((*shape, 3), value, np.uint8)


def talk(*texts):
    return tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))


def words(text):
    return TOKENIZER.encode(text)


# The text tower's rows.


def test_text_begins_ends_and_is_padded():
    cat = words("cat")
    assert processor(context=8).text("cat").tolist() == [BOS, *cat, END] + [PAD] * (6 - len(cat))
    assert processor(context=4).text("").tolist() == [BOS, END, PAD, PAD]
    assert processor().text("cat").dtype == np.int32


@pytest.mark.parametrize("context", [2, 3, 5, 24])
def test_long_text_loses_its_tail_but_not_its_end_token(context):
    ids = processor(context=context).text("A red cat. " * 20)
    assert ids.tolist() == [BOS, *words("A red cat. " * 20)[: context - 2], END]


def test_an_end_token_in_a_caption_is_mere_text():
    assert processor(context=24).text("a</s>b").tolist().count(END) == 1


# Conversations.


def test_tokens_of_a_conversation():
    tokens = processor().conversation(talk("<image>\nWhat is it?", "A cat."))
    question, answer = words("\nWhat is it? ASSISTANT:"), words(" A cat.")
    before = [BOS, *words("USER: ")]
    assert tokens.ids.tolist() == [*before, *[IMAGE] * VISUAL, *question, *answer, END]
    assert tokens.loss.tolist() == [0] * (len(before) + VISUAL + len(question)) + [1] * (len(answer) + 1)
    assert tokens.image_index.tolist() == (
        [-1] * len(before) + list(range(VISUAL)) + [-1] * (len(question) + len(answer) + 1))


@pytest.mark.parametrize("layout, extra", [("interleaved", 0), ("front", 0), ("delimited", 2)])
def test_every_image_takes_the_tokens_that_the_token_count_promises(layout, extra):
    p = processor(layout=layout)
    assert p.tokens_per_image == num_visual_tokens(EYES, 32, 32) == VISUAL
    for marks in (0, 1, 3):
        tokens = p.conversation(talk("<image>" * marks + "What is it?", "A cat."))
        assert tokens.image_index[tokens.image_index >= 0].tolist() == list(range(VISUAL * marks))
        assert (tokens.ids == IMAGE).sum() == VISUAL * marks
        assert np.isin(tokens.ids, [START, STOP]).sum() == extra * marks


def test_the_users_words_never_become_special_tokens():
    tokens = processor().conversation(talk("</s><pad><s><image_start>", "</s> <image>"))
    special = tokens.ids[tokens.ids < 6].tolist()
    assert special == [BOS, END]
    assert (tokens.image_index == -1).all()


# Rows.


def test_a_row_of_one_conversation_is_its_prompt_and_the_answer():
    p = processor()
    row = p.row(Record((image(),), conversations=(talk("<image>\nWhat is it?", "A cat."),)), 40, 1)
    prompt = p.prompts([talk("<image>\nWhat is it?")], multiple=1)
    n = prompt["tokens"].shape[1]
    answer = [*words(" A cat."), END]
    assert row["tokens"][:n].tolist() == prompt["tokens"][0].tolist()
    assert row["image_index"][:n].tolist() == prompt["image_index"][0].tolist()
    assert row["tokens"][n:n + len(answer)].tolist() == answer
    # The last token of the prompt predicts the first of the answer, and so on to the end token.
    assert row["targets"][row["loss_weights"] > 0].tolist() == answer
    assert np.flatnonzero(row["loss_weights"])[0] == n - 1


def test_loss_weights_count_the_answer_tokens():
    p = processor()
    talks = (talk("<image>\nA?", "red", "B?", "A red cat."), talk("<image>\nWhat is it?", ""),
             talk("<image>\nC?", "{x}"))
    row = p.row(Record((image(),), conversations=talks), 160, 1)
    answers = [message.text for t in talks for message in t if message.role == "assistant"]
    assert row["loss_weights"].sum() == sum(len(words(" " + text)) + 1 for text in answers)


def test_loss_on_everything_teaches_every_token_but_the_first_and_the_image():
    p = processor()
    talks = (talk("<image>\nWhat is it?", "A cat."), talk("<image>\nWhy?", "red"))
    with_image = p.row(Record((image(),), conversations=talks), 120, 1, loss="all")
    text_only = p.row(Record((image(),), conversations=talks), 120, 0, loss="all")
    tokens = [p.conversation(t) for t in talks]
    assert with_image["loss_weights"].sum() == sum(len(t) - 1 - VISUAL for t in tokens)
    assert not np.isin(with_image["targets"][with_image["loss_weights"] > 0], [IMAGE]).any()
    # Without image slots the marks, and the line break behind each, are gone.
    bare = [p.conversation(talk(t[0].text.removeprefix("<image>\n"), t[1].text)) for t in talks]
    assert text_only["loss_weights"].sum() == sum(len(t) - 1 for t in bare)
    assert "images" not in text_only and (text_only["image_index"] == -1).all()


def test_image_slots_are_filled_in_order_and_the_rest_is_empty():
    p = processor()
    record = Record((image(255), image(0)), conversations=(talk("<image><image>\nWhat?", "A cat."),))
    row = p.row(record, 40, 3)
    assert row["images"].shape == (3, 32, 32, 3) and row["images"].dtype == np.float32
    assert np.array_equal(row["images"][:2], p.images([image(255), image(0)]))
    assert not row["images"][2].any()
    assert row["image_index"].max() == 2 * VISUAL - 1


def test_text_only_records_use_empty_slots():
    """A mixture of talk with and without images (as LLaVA's) has one shape of row."""
    row = processor().row(Record(conversations=(talk("What is it?", "A cat."),)), 40, 1)
    assert row["images"].shape == (1, 32, 32, 3) and not row["images"].any()
    assert (row["image_index"] == -1).all() and row["loss_weights"].sum()


def test_marks_that_do_not_match_the_images():
    p, two, none = processor(), talk("<image><image>\nWhat?", "A cat."), talk("What?", "<image>")
    for marks, record in [(2, Record((image(),), conversations=(two,), meta={"id": "77"})),
                          (0, Record((image(),), conversations=(none,), meta={"id": "77"}))]:
        with pytest.raises(ValueError, match=rf"record, id 77: {marks} <image> marks for 1 images"):
            p.row(record, 60, 4)
    with pytest.raises(ValueError, match="2 images, a row has 1 image slots; raise .*image_slots"):
        p.row(Record((image(), image()), conversations=(two,)), 60, 1)


def test_a_record_without_conversations_is_named():
    """Captions without a prompt, in a stage that wants rows."""
    with pytest.raises(ValueError, match="record, image a.png"):
        processor().row(Record((image(),), "a cat", meta={"image": "a.png"}), 40, 1)


def test_conversations_that_do_not_fit_are_told_of_once():
    p = processor()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for n in range(3):
            row = p.row(Record(conversations=(talk("What is it?", "red " * 50),), meta={"id": n}), 30, 0)
            assert (row["segment_ids"] == 0).all()
    assert ["id 0" in str(w.message) and "data.format.length" in str(w.message) for w in caught] == [True]


# Prompts, and back to text.


def test_prompts_are_padded_on_the_left_to_a_length_that_is_met_again():
    p = processor()
    short, long = talk("Why?"), talk("<image>\nWhat is it?", "A cat.", "What is it? " * 3)
    batch = p.prompts([short, long])
    n = batch["tokens"].shape[1]
    assert n % 16 == 0 and n >= len(p.conversation(long))
    for i, conversation in enumerate((short, long)):
        tokens = p.conversation(conversation)
        pad = n - len(tokens)
        assert batch["tokens"][i].tolist() == [PAD] * pad + tokens.ids.tolist()
        assert batch["segment_ids"][i].tolist() == [-1] * pad + [0] * len(tokens)
        assert batch["image_index"][i].tolist() == [-1] * pad + tokens.image_index.tolist()
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int32)}


def test_answers_end_at_the_end_token():
    p = processor()
    assert p.answer([*words(" A cat."), END, *words("USER: more"), PAD]) == "A cat."
    assert p.answer(words(" A cat.")) == "A cat."
    assert p.answer([END]) == p.answer([]) == ""
    assert p.answer(np.array([*words(" A cat."), END])) == "A cat."
    assert END not in p.banned_ids and set(p.banned_ids) == {PAD, BOS, IMAGE, START, STOP}


def test_an_answer_ends_with_the_template_s_own_token():
    eyes = types.SimpleNamespace(image_size=32, patch_size=16)
    tokenizer = train(["user assistant"], 300, ("<|im_start|>", "<|im_end|>"))
    p = Processor(ProcessorConfig(ImageProcessor(32), template="chatml"), tokenizer, eyes, 8)
    start, end = (tokenizer.special[token] for token in ("<|im_start|>", "<|im_end|>"))
    row = p.conversation(talk("<|im_end|>", "a"))
    assert row.ids.tolist().count(end) == row.ids.tolist().count(start) == 2  # two turns, whatever the user writes
    assert row.ids[-1] == end and row.loss[-1] == 1
    assert end not in p.banned_ids and {start, p.eos_id} < set(p.banned_ids)
    assert p.answer([*tokenizer.encode("a"), end, start]) == "a"
    assert p.text("a")[2] == p.eos_id  # a caption of the text tower ends as ever


def test_a_question_gets_the_marks_it_lacks():
    p = processor()
    assert p.question("Why?") == talk("<image>\nWhy?")
    assert p.question("Why?", images=2) == talk("<image>\n<image>\nWhy?")
    assert p.question("Why?", images=0) == talk("Why?")
    assert p.question("Is <image> red?") == talk("Is <image> red?")


def test_images_of_any_size_become_the_models():
    batch = processor().images([image(0, (5, 70)), image(255, (32, 32))])
    assert batch.shape == (2, 32, 32, 3) and batch.dtype == np.float32


def test_options_that_cannot_be_honoured():
    with pytest.raises(ValueError, match="'xml' is unknown"):
        processor(template="xml")
    with pytest.raises(ValueError, match=r"no special token <\|im_start\|>, which the chat template 'chatml' writes"):
        processor(template="chatml")
    with pytest.raises(ValueError, match="'back' is unknown"):
        processor(layout="back")
    uneven = types.SimpleNamespace(image_size=30, patch_size=16)
    with pytest.raises(ValueError, match="not divisible"):
        Processor(ProcessorConfig(ImageProcessor(30)), TOKENIZER, uneven)
