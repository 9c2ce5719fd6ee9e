"""Tokenizers of folders from before tokenizer.json: vocab.json with merges.txt, and sentencepiece models."""

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from tests.data.huggingface.folders import spm, write
from vlm_jax.data.huggingface import loading

LETTERS = sorted(ByteLevel.alphabet())
WORDS = ["<pad>", "</s>", *LETTERS, "12", "Ċ1", "Ġa"]


def words(tmp_path, merges=("1 2", "Ċ 1", "Ġ a"), **settings):
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    write(tmp_path, vocab={word: i for i, word in enumerate(WORDS)}, tokenizer_config=settings)
    return loading.load(tmp_path)


def pieces(p, text):
    return [p.tokenizer.backend.id_to_token(i) for i in p.tokenize(text)]


def test_the_words_of_gpt2(tmp_path):
    """Its digits stand together, a blank belongs to the word behind it; OPT's files ask for a begin token."""
    p = words(tmp_path, tokenizer_class="GPT2Tokenizer", bos_token="</s>", pad_token="<pad>", add_bos_token=True)
    assert pieces(p, "12 a\n1") == ["</s>", "12", "Ġa", "Ċ", "1"]
    assert p.decode(p.tokenize("12 a\u0301")) == "</s>12 a\u0301"
    assert p.tokenizer.pad_id == 0


def test_the_words_of_qwen(tmp_path):
    """Digits one by one, letters composed, nothing added."""
    p = words(tmp_path, tokenizer_class="Qwen2Tokenizer", pad_token="<pad>")
    assert pieces(p, "12 a\n1") == ["1", "2", "Ġa", "Ċ", "1"]
    assert p.decode(p.tokenize("a\u0301")) == "\u00e1"


def test_words_without_settings_are_told_by_the_model_type(tmp_path):
    write(tmp_path, config={"model_type": "qwen2_vl"})
    assert pieces(words(tmp_path), "12") == ["1", "2"]


def test_merges_of_another_vocabulary_are_refused(tmp_path):
    with pytest.raises(ValueError, match="do not belong together"):
        words(tmp_path, merges=["a b"])


BPE = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), ("\u2581", -1, 1), ("a", -2, 1), ("\u2581a", -1, 1)]


def llama(tmp_path, **settings):
    (tmp_path / "tokenizer.model").write_bytes(spm(BPE, kind=2))
    write(tmp_path, tokenizer_config={"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
                                      "unk_token": "<unk>", **settings})
    return loading.load(tmp_path)


@pytest.mark.parametrize("settings, behind", [({}, 4), ({"legacy": False}, 4), ({"legacy": True}, 5)])
def test_llama_puts_a_blank_in_front_and_the_legacy_kind_behind_special_tokens_too(tmp_path, settings, behind):
    p = llama(tmp_path, **settings)
    assert p.tokenize("a</s>a") == [1, 5, 2, behind]
    assert p.tokenize(" a") == [1, 5]


def test_added_tokens_are_special_where_a_file_names_them(tmp_path):
    write(tmp_path, added_tokens={"<image>": 6, "<x>": 7, "<y>": 8},
          special_tokens_map={"additional_special_tokens": ["<image>"]})
    p = llama(tmp_path, additional_special_tokens=[{"content": "<y>"}])
    assert p.tokenize("<image><x><y>") == [1, 6, 7, 8]
    assert p.decode([6, 7, 8, 4], skip_special_tokens=True) == "<x>a"


def test_the_end_token_of_a_unigram_model_is_its_control_piece(tmp_path):
    pieces = [("<unk>", 0, 2), ("</s>", 0, 3), ("\u2581", -3, 1), ("a", -2, 1), ("\u2581a", -1, 1)]
    (tmp_path / "spiece.model").write_bytes(spm(pieces, kind=1))
    write(tmp_path, tokenizer_config={"tokenizer_class": "SiglipTokenizer", "eos_token": "</s>", "pad_token": "</s>"})
    p = loading.load(tmp_path)
    assert p.tokenize("A, a") == [4, 4, 1]
    assert p.tokenizer.pad_id == 1 and p.decode([4, 1], skip_special_tokens=True) == "a"
