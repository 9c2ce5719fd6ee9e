"""Instruction tuning on your own records and on scenes, mixed by weight and packed into rows of 512 tokens.

    python -m vlm_jax.prepare --source.kind=llava --source.path=data.json --out shards
    python -m vlm_jax.inspect_data --config configs/packed.py:shards
    python -m vlm_jax.train --config configs/packed.py:shards --workdir runs/packed \
        --config.stages.instruct.init_from=runs/quickstart --config.processor.tokenizer=runs/quickstart

`prepare` takes any source (its own help names them); the model's sizes must be those of the run it starts from.
Expected result: rows filled to more than 95 %, where one example a row would fill a quarter.
"""

import pathlib
import runpy

import ml_collections

quickstart = runpy.run_path(str(pathlib.Path(__file__).with_name("quickstart.py")))


def get_config(path):
    mixture = dict(kind="mixture", parts=dict(
        own=dict(source=dict(kind="array_record", path=path), weight=1.0, select="all"),
        scenes=dict(source=quickstart["scenes"](), weight=1.0, select="random:10%")))
    return ml_collections.ConfigDict(dict(
        seed=0,
        model=quickstart["model"](),
        processor=dict(image=dict(size=64), vocab_size=quickstart["VOCABULARY"], template="llava"),
        run=("instruct",),
        stages=dict(instruct=dict(
            data=dict(batch=8, source=mixture, bad_share=0.01,
                      format=dict(kind="rows", length=512, image_slots=16, arrange="packed", block=64)),
            objective=dict(kind="next_token"),
            trainable=[("(connector|decoder)/.*", 1e-3), (".*", None)],
            steps=600)),
        loop=dict(log_every=20, checkpoint_every=250),
    ))
