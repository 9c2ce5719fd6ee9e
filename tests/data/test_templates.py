"""Chat templates: what is written here by hand is what the model reads, and what it is taught to say."""

import pytest

from vlm_jax.data.records import Message
from vlm_jax.data.templates import LAYOUTS, TEMPLATES, Piece, count_marks, render, template
from vlm_jax.data.tokenizer import SPECIAL_TOKENS, train


def talk(*texts: str, system: str | None = None) -> tuple[Message, ...]:
    """User and assistant in turn."""
    turns = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))
    return (Message("system", system), *turns) if system is not None else turns


def written(name: str, conversation, layout: str = "interleaved") -> str:
    return "".join(piece.text for piece in render(TEMPLATES[name], conversation, layout))


def learnt(name: str, conversation, layout: str = "interleaved") -> list[str]:
    return [piece.text for piece in render(TEMPLATES[name], conversation, layout) if piece.loss]


ONE = talk("<image>\nWhat is it?", "A cat.")
TWO = talk("<image>\nWhat is it?", "A cat.", "What color?", "Red.")

# The whole string.


def test_llava():
    assert written("llava", ONE) == "<s>USER: <image>\nWhat is it? ASSISTANT: A cat.</s>"
    assert written("llava", TWO) == (
        "<s>USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: What color? ASSISTANT: Red.</s>")


def test_vicuna_v1():
    assert written("vicuna_v1", TWO) == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: What color? ASSISTANT: Red.</s>")


def test_plain_says_the_image_and_the_caption_only():
    assert written("plain", ONE) == "<s><image>A cat.</s>"
    assert written("plain", TWO) == "<s><image>A cat.</s>Red.</s>"


def test_a_system_message_takes_the_place_of_the_default():
    conversation = talk("Hi", "Hello", system="Be brief.")
    assert written("llava", conversation) == "<s>Be brief. USER: Hi ASSISTANT: Hello</s>"
    assert written("vicuna_v1", conversation) == "<s>Be brief. USER: Hi ASSISTANT: Hello</s>"
    assert written("plain", conversation) == "<s>Hello</s>"


def test_llama2():
    assert written("llama2", TWO) == (
        "<s>[INST] <image>\nWhat is it? [/INST] A cat. </s><s>[INST] What color? [/INST] Red. </s>")
    assert written("llama2", talk("Hi", "Hello", "Bye", system="Be brief.")) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]")


def test_llama3():
    assert written("llama3", talk("Hi", "Hello", "Bye", system="Be brief.")) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "Hello<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_chatml_and_internvl():
    said = ("<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
            "<|im_start|>user\nWhat color?<|im_end|>\n<|im_start|>assistant\nRed.<|im_end|>")
    assert written("chatml", TWO) == said
    system = TEMPLATES["internvl"].default_system
    assert "InternVL" in system and written("internvl", TWO) == f"<|im_start|>system\n{system}<|im_end|>\n" + said
    assert written("chatml", talk("Hi", system="Be brief.")) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_gemma():
    assert written("gemma", talk("Hi", "Hello", "Bye", system="Be brief.")) == (
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n")


def test_mistral():
    assert written("mistral", TWO) == "<s>[INST] <image>\nWhat is it? [/INST] A cat.</s>[INST] What color? [/INST] Red.</s>"
    assert written("mistral", talk("Hi", system="Be brief.")) == "<s>[INST] Be brief.\n\nHi [/INST]"


# The pieces, and which of them are learnt.


def test_pieces_of_one_turn():
    assert render(TEMPLATES["llava"], ONE) == [
        Piece("<s>", special=True), Piece("USER: "), Piece("<image>", special=True),
        Piece("\nWhat is it? ASSISTANT:"), Piece(" A cat.", loss=True),
        Piece("</s>", special=True, loss=True)]
    assert render(TEMPLATES["plain"], ONE) == [
        Piece("<s>", special=True), Piece("<image>", special=True), Piece("A cat.", loss=True),
        Piece("</s>", special=True, loss=True)]


@pytest.mark.parametrize("name, expected", [
    ("llava", [" A cat.", "</s>", " Red.", "</s>"]),
    ("vicuna_v1", [" A cat.", "</s>", " Red.", "</s>"]),
    ("plain", ["A cat.", "</s>", "Red.", "</s>"]),
    ("llama2", [" A cat. ", "</s>", " Red. ", "</s>"]), ("mistral", [" A cat.", "</s>", " Red.", "</s>"]),
    ("llama3", ["A cat.", "<|eot_id|>", "Red.", "<|eot_id|>"]),
    ("chatml", ["A cat.", "<|im_end|>", "Red.", "<|im_end|>"]),
    ("internvl", ["A cat.", "<|im_end|>", "Red.", "<|im_end|>"]),
    ("gemma", ["A cat.", "<end_of_turn>", "Red.", "<end_of_turn>"])])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_answers_and_their_ends_are_learnt_and_nothing_else(name, expected, layout):
    assert learnt(name, TWO, layout) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_piece_is_empty_and_neighbouring_words_are_one_piece(name):
    talks = (ONE, TWO, talk("", ""), talk("a", "", "", "b"), talk("<image>", "a"), talk("<image><image>"))
    for conversation in talks:
        pieces = render(TEMPLATES[name], conversation)
        assert all(piece.text for piece in pieces)
        if name != "plain":  # there, with the user silent, one answer follows the other
            words = lambda piece: None if piece.special else piece.loss
            assert not any(words(a) == words(b) is not None for a, b in zip(pieces, pieces[1:]))


# Where images go.


def test_layouts():
    assert written("llava", ONE, "interleaved") == "<s>USER: <image>\nWhat is it? ASSISTANT: A cat.</s>"
    assert written("llava", ONE, "delimited") == (
        "<s>USER: <image_start><image><image_end>\nWhat is it? ASSISTANT: A cat.</s>")
    assert written("llava", ONE, "front") == "<s><image>USER: What is it? ASSISTANT: A cat.</s>"
    assert written("plain", ONE, "front") == "<s><image>A cat.</s>"
    assert written("plain", ONE, "delimited") == "<s><image_start><image><image_end>A cat.</s>"


def test_two_images_in_the_middle_of_words_and_in_different_turns():
    conversation = talk("Left <image> or right <image>?", "Left.", "And <image>?", "No.")
    assert written("llava", conversation) == (
        "<s>USER: Left <image> or right <image>? ASSISTANT: Left.</s>USER: And <image>? ASSISTANT: No.</s>")
    assert written("llava", conversation, "front") == (
        "<s><image><image><image>USER: Left  or right ? ASSISTANT: Left.</s>USER: And ? ASSISTANT: No.</s>")
    assert written("plain", conversation) == "<s><image><image>Left.</s><image>No.</s>"
    delimited = render(TEMPLATES["llava"], conversation, "delimited")
    image = ["<image_start>", "<image>", "<image_end>"]
    assert [p.text for p in delimited if p.special] == ["<s>", *image, *image, "</s>", *image, "</s>"]


@pytest.mark.parametrize("question", [
    "<image>\nCompare.", "<image>\n<image>\nCompare.", "<image><image>\nCompare.",
    "<image>\n<image>\n<image>\nCompare."])
def test_in_front_a_line_that_only_held_images_leaves_nothing_behind(question):
    marks = question.count("<image>")
    assert written("llava", talk(question, "Same."), "front") == (
        "<s>" + "<image>" * marks + "USER: Compare. ASSISTANT: Same.</s>")


def test_in_front_other_line_breaks_stay():
    assert written("llava", talk("a <image>\nb\n\nc"), "front") == "<s><image>USER: a \nb\n\nc ASSISTANT:"


def test_an_image_mark_of_the_assistant_is_mere_text():
    conversation = talk("Say it.", "<image>")
    assert count_marks(conversation) == 0
    assert render(TEMPLATES["llava"], conversation)[-2] == Piece(" <image>", loss=True)
    assert count_marks(talk("<image> <image>", "<image>", "<image>")) == 3


# Special tokens, generation, braces, errors.


def test_special_tokens_in_the_users_words_are_words():
    pieces = render(TEMPLATES["llava"], talk("</s><s>", "</s>"))
    assert pieces == [
        Piece("<s>", special=True), Piece("USER: </s><s> ASSISTANT:"), Piece(" </s>", loss=True),
        Piece("</s>", special=True, loss=True)]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_whatever_people_write_the_special_tokens_are_the_templates(name, layout):
    """Every delimiter of every template, in every role's words, is rendered as words and encoded as words."""
    tokens = [*SPECIAL_TOKENS, *dict.fromkeys(t for chat in TEMPLATES.values() for t in chat.own_tokens()), "[INST]", "<<SYS>>"]
    evil = " ".join(token for token in tokens if token != "<image>")
    chat = TEMPLATES[name]
    tokenizer = train([evil], 400, chat.own_tokens())
    harmless, harmful = (talk(f"<image>{text}", text, text, text, system=text) for text in ("x", evil))

    def special(conversation):
        pieces = render(chat, conversation, layout)
        ids = [i for p in pieces for i in ([tokenizer.special[p.text]] if p.special else tokenizer.encode(p.text))]
        assert [p.text for p in pieces if p.special] == [tokens_of[i] for i in ids if i in tokens_of]
        return [p.text for p in pieces if p.special]

    tokens_of = {number: token for token, number in tokenizer.special.items()}
    assert set(chat.own_tokens()) <= set(tokenizer.special)
    assert special(harmful) == special(harmless)


def test_a_conversation_that_ends_with_the_user_asks_for_an_answer():
    prompt = talk("<image>\nWhat is it?")
    assert written("llava", prompt) == "<s>USER: <image>\nWhat is it? ASSISTANT:"
    assert written("plain", prompt) == "<s><image>"
    assert written("llava", TWO[:3]) == (
        "<s>USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: What color? ASSISTANT:")
    assert learnt("llava", prompt) == []


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_prompt_is_what_stood_before_the_answer_in_training(name, layout):
    full, prompt = (render(TEMPLATES[name], c, layout) for c in (TWO, TWO[:3]))
    assert full[:len(prompt)] == prompt
    assert all(piece.loss for piece in full[len(prompt):])


@pytest.mark.parametrize("text", ["{x}", "{text}", "{0}", "{}", "{{", "}", "%s", "{text.__class__}"])
def test_braces_are_characters(text):
    conversation = talk(text, text, system=text)
    assert written("llava", conversation) == f"<s>{text} USER: {text} ASSISTANT: {text}</s>"


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="'vicuna' is unknown; choose one of plain, llava, vicuna_v1, llama2, llama3"):
        template("vicuna")
    with pytest.raises(ValueError, match="'back' is unknown; choose one of interleaved, front, delimited"):
        render(TEMPLATES["llava"], ONE, "back")
