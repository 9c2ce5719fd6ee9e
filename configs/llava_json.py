"""Instruction tuning on your own LLaVA-style JSON (`image`, `conversations`, `<image>`), on top of a trained run.

    python -m vlm_jax.train --config configs/llava_json.py:data.json --workdir runs/mine \
        --config.stages.align.init_from=runs/quickstart --config.processor.tokenizer=runs/quickstart

Images are found beside the JSON file (or under `source.images`). A tenth of them, fixed by a hash of the name, is held
out for the vqa evaluation. The model's sizes must be those of the run it starts from.
"""

import pathlib
import runpy

import ml_collections

quickstart = runpy.run_path(str(pathlib.Path(__file__).with_name("quickstart.py")))


def llava(path, split):
    return dict(kind="llava", path=path, split=split, holdout=0.1)


def stage(path, trainable, steps):
    return dict(
        data=dict(batch=32, source=llava(path, "train"), format=dict(kind="rows", length=128, image_slots=1)),
        objective=dict(kind="next_token"),
        trainable=[(trainable, 1e-3), (".*", None)],
        steps=steps)


def get_config(path):
    return ml_collections.ConfigDict(dict(
        seed=0,
        model=quickstart["model"](),
        processor=dict(image=dict(size=64), vocab_size=quickstart["VOCABULARY"], template="llava"),
        run=("align", "instruct"),
        stages=dict(align=stage(path, "connector/.*", 100), instruct=stage(path, "(connector|decoder)/.*", 600)),
        evals=dict(tasks=("vqa",), source=llava(path, "test"), examples=256),
        loop=dict(log_every=20, checkpoint_every=250),
    ))
