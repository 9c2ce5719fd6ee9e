"""python -m vlm_jax.chat --model DIR [--image photo.png] ["How many digits are there?"]

Prints the answer. Without a question it opens a conversation: a question a line, an empty line ends it.
Answers are greedy unless a temperature is given. DIR is a training workdir, whose images are encoded once, or a
checkpoint in Hugging Face format, whose own processor writes the whole conversation anew at each turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from typing import Iterator, Sequence

import numpy as np

from vlm_jax import cli
from vlm_jax.data import images
from vlm_jax.data.processor import Processor
from vlm_jax.inference.prompted import PromptedSession
from vlm_jax.inference.samplers import Sampler
from vlm_jax.inference.session import ChatSession
from vlm_jax.pretrained import Pretrained, load_pretrained

CONTEXT = 2048  # tokens of a conversation, besides its images


def main() -> None:
    args = arguments()
    sampler = Sampler(args.temperature, args.top_k, args.top_p)
    if args.temperature == 0 and sampler != Sampler():
        raise ValueError("--top-k and --top-p choose nothing at temperature 0; add --temperature 1.")
    pictures = [images.read(path) for path in args.image]
    session = open_session(load_pretrained(args.model), pictures, max_new_tokens=args.max_new_tokens,
                           sampler=sampler, seed=args.seed)
    for question in typed() if args.question is None else [args.question]:
        answer = session.ask(question)
        print(json.dumps({"question": question, "answer": answer}) if args.json else answer, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vlm_jax.chat", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a training workdir, or a folder in Hugging Face format")
    parser.add_argument("--image", action="append", default=[], help="an image file; may be repeated")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, default=0, help="keep the k likeliest tokens; 0 keeps all")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep the likeliest up to this probability")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of one answer")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--json", action="store_true", help="an object {question, answer} for each answer")
    parser.add_argument("question", nargs="?")
    return parser.parse_args()


def open_session(
    model: Pretrained, pictures: Sequence[np.ndarray] = (), *, max_new_tokens: int = 64,
    sampler: Sampler = Sampler(), seed: int = 0,
) -> ChatSession | PromptedSession:
    """A conversation about uint8 images H x W x 3, or in text alone, with room for CONTEXT tokens of text."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; an answer needs 1 or more.")
    if not isinstance(model.processor, Processor):
        return _published(model, pictures, max_new_tokens, sampler, seed)
    processor = model.processor
    slots = CONTEXT + len(pictures) * processor.tokens_per_image
    return ChatSession(model.config.vlm(), model.params, processor, pictures, slots=slots,
                       max_new_tokens=max_new_tokens, sampler=sampler, seed=seed)


def _published(model: Pretrained, pictures: Sequence[np.ndarray], max_new_tokens: int, sampler: Sampler,
               seed: int) -> PromptedSession:
    if model.config.decoder is None:
        raise ValueError("This model encodes and has no decoder to talk with; take one that also writes.")
    if model.processor is None:
        raise ValueError("This folder has weights but neither tokenizer nor preprocessor_config.json; copy them there.")
    generate = functools.partial(model.generate, max_new_tokens=max_new_tokens, **dataclasses.asdict(sampler))
    return PromptedSession(generate, model.processor, model.ids.eos, pictures, seed=seed)


def typed() -> Iterator[str]:
    """Lines of standard input up to an empty one; a person at a terminal sees a prompt."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


if __name__ == "__main__":
    cli.main(main)
