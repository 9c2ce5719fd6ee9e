"""A user's mistake is one sentence and exit code 2; a bug keeps its traceback."""

import numpy as np
import pytest

from vlm_jax import cli
from vlm_jax.data import images
from vlm_jax.data.images import ImageProcessor
from vlm_jax.data.pipeline import RowsConfig
from vlm_jax.data.records import Message
from vlm_jax.data.templates import ChatTemplate, render
from vlm_jax.weights.checkpoints import open_existing


def outcome(verb, capsys):
    """(exit code, standard output, standard error) of a verb that ends by itself or by SystemExit."""
    try:
        cli.main(verb)
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    return code, *capsys.readouterr()


def test_a_verb_that_succeeds_says_what_it_says(capsys):
    assert outcome(lambda: print("done"), capsys) == (0, "done\n", "")


@pytest.mark.parametrize("verb, sentence", [
    (lambda: ImageProcessor(0), "image size must be one or two positive integers, not 0"),
    (lambda: RowsConfig(64, loss="x"), "loss 'x' is unknown; choose 'answers' or 'all'."),
    (lambda: images.read("absent.png"), "image absent.png does not exist; check the path"),
    (lambda: open_existing("absent"), "absent has no checkpoints/; give the workdir of a training run.")])
def test_what_this_package_raises_is_a_sentence_for_the_user(capsys, verb, sentence):
    assert outcome(verb, capsys) == (2, "", f"error: {sentence}\n")


def test_also_where_it_was_raised_because_of_something_else(capsys, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    code, out, err = outcome(lambda: images.read(tmp_path / "a.png"), capsys)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith(f"error: image {tmp_path}/a.png is damaged")


@pytest.mark.parametrize("verb, kind", [
    (lambda: np.stack([]), ValueError),  # a library's, called by us
    (lambda: ImageProcessor(8).fit("x" * 3), AttributeError),
    (lambda: images.ImageProcessor(8, mean=3), TypeError),
    (lambda: {}["x"], KeyError)])
def test_a_bug_keeps_its_traceback(capsys, verb, kind):
    with pytest.raises(kind):
        cli.main(verb)
    assert capsys.readouterr().err == ""


def test_not_every_value_error_from_a_line_of_ours_is_meant_for_the_user(capsys):
    """Only a `raise` is: what Python itself says of a line of ours means that something was not foreseen."""
    broken = ChatTemplate(user="no place for the words", open="", answer="{text}")
    with pytest.raises(ValueError, match="not enough values to unpack"):
        cli.main(lambda: render(broken, (Message("user", "Hi"),)))
    assert capsys.readouterr().err == ""


def test_an_interruption_is_no_bug(capsys):
    def verb():
        raise KeyboardInterrupt

    code, out, err = outcome(verb, capsys)
    assert (code, out) == (130, "") and "interrupted" in err and "Traceback" not in err
