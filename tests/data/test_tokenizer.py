"""The tokenizer: any text comes back as it was, and no text turns into a special token."""

import pathlib
import random
import subprocess
import sys

import pytest

from vlm_jax.data import tokenizer as tokenizers
from vlm_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer, load, train

ROOT = pathlib.Path(__file__).parents[2]
CORPUS = [f"USER: What is {n} + {n}? ASSISTANT: {2 * n}" for n in range(200)]
SMALLEST = 256 + len(SPECIAL_TOKENS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(CORPUS, 300)


def random_text(rng: random.Random, length: int) -> str:
    """Characters of every plane of Unicode, half surrogates excepted: they are no text."""
    point = lambda: rng.choice([rng.randrange(128), rng.randrange(0x800), rng.randrange(0x110000)])
    drawn = (point() for _ in range(length))
    return "".join(chr(point) for point in drawn if not 0xD800 <= point < 0xE000)


def test_ids_of_special_tokens_come_first_and_in_order(tokenizer):
    assert tokenizer.special == {
        "<pad>": 0, "<s>": 1, "</s>": 2, "<image>": 3, "<image_start>": 4, "<image_end>": 5}


def test_frequent_words_become_single_tokens_up_to_the_vocabulary_asked_for(tokenizer):
    assert len(tokenizer) == 300
    assert len(tokenizer.encode("USER:")) < len("USER:")
    assert len(train(CORPUS, SMALLEST).encode("USER:")) == len("USER:")  # room for bytes alone


@pytest.mark.parametrize("text", [
    "", " ", "two  spaces ", "\n\n", "tab\tnul\x00", "naïve", "漢字とかな", "🙂🏳️‍🌈", "e\u0301", "\ufeff",
    "a\u2028b",
    "<image>\n{x} {0} %s \\n", "ASSISTANT: 4</s>"])
def test_round_trip_of_hostile_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_round_trip_of_any_text(tokenizer):
    rng = random.Random(0)
    for _ in range(300):
        text = random_text(rng, rng.randrange(40))
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_no_text_becomes_a_special_token(tokenizer, token):
    for text in (token, f"a{token}b", f" {token} {token}", token.upper(), f"{token}\n"):
        assert not set(tokenizer.encode(text)) & set(tokenizer.special.values())
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_not_even_where_the_tokenizer_was_trained_on_such_text():
    """A merge that spelled "</s>" would be given the id of the end token."""
    corpus = [f"{token}{token} a{token}" for token in SPECIAL_TOKENS] * 100
    tokenizer = train(corpus, 400)
    for token in SPECIAL_TOKENS:
        assert not set(tokenizer.encode(f"x{token}{token} {token}")) & set(tokenizer.special.values())


def test_special_ids_are_left_out_of_decoded_text(tokenizer):
    bos, end, image = (tokenizer.special[token] for token in ("<s>", "</s>", "<image>"))
    ids = tokenizer.encode("yes")
    assert tokenizer.decode([bos, image, *ids, end]) == "yes"


def test_what_encode_returns_may_be_changed(tokenizer):
    """Encodings are cached; a caller that appends to one must not change the next."""
    tokenizer.encode("yes").append(7)
    assert tokenizer.decode(tokenizer.encode("yes")) == "yes"


def test_the_same_text_gives_the_same_tokenizer_in_another_process():
    """A killed run that is started again trains its tokenizer anew."""
    code = "from tests.data.test_tokenizer import CORPUS, train; print(train(CORPUS, 300).to_json())"
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert other.stdout.rstrip("\n") == train(CORPUS, 300).to_json()


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):  # a workdir or the file
        loaded = load(path)
        assert loaded.to_json() == tokenizer.to_json()
        assert loaded.special == tokenizer.special
        text = "USER: What is 3</s>? <image> é"
        assert loaded.encode(text) == tokenizer.encode(text)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match=f"bytes and special tokens alone need {SMALLEST}"):
        train(CORPUS, SMALLEST - 1)
    assert len(train([], SMALLEST)) == SMALLEST


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at .*absent"):
        load(tmp_path / "absent")
    (tmp_path / "half.json").write_text('{"version": "1.0", ')
    with pytest.raises(ValueError, match="half.json is not a tokenizer file"):
        load(tmp_path / "half.json")
    (tmp_path / "foreign.json").write_text(
        tokenizers.tokenizers.Tokenizer(tokenizers.tokenizers.models.BPE()).to_str())
    with pytest.raises(ValueError, match="has no <pad>"):
        load(tmp_path / "foreign.json")
