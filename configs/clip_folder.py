"""A small CLIP from scratch on your own folder of images with captions.jsonl or captions.csv (`image`, `caption`).

    python -m vlm_jax.train --config configs/clip_folder.py:PATH --workdir runs/clip

A tenth of the images, fixed by a hash of their names, is held out and evaluated: zero-shot over the distinct captions.
Identical captions count as positives. Sizes are for images of 32 to 64 pixels on two CPU cores; raise them for more.
With CLIP's own vocabulary, of 49,408 ids, in place of one trained on the captions:

    --config.processor.tokenizer=clip --config.model.text.vocab_size=49408 --config.model.text.end_id=49407

Expected result: README.md, "Your own images" (the CIFAR-10 subset with class captions).
"""

import ml_collections

VOCABULARY, END = 2048, 2


def folder(path, split):
    return dict(kind="captions", path=path, split=split, holdout=0.1, prompt=None)


def get_config(path):
    return ml_collections.ConfigDict(dict(
        seed=0,
        model=dict(
            vision=dict(image_size=32, patch_size=4, pool="mean", feature_layer=-1,
                        transformer=dict(layers=4, width=96, heads=4, mlp_width=384, activation="gelu_tanh")),
            text=dict(vocab_size=VOCABULARY, context=32, end_id=END,
                      transformer=dict(layers=2, width=64, heads=4, mlp_width=256, activation="quick_gelu")),
            contrast=dict(embed_dim=64)),
        processor=dict(image=dict(size=32, resize="crop"), vocab_size=VOCABULARY),
        run=("contrastive",),
        stages=dict(contrastive=dict(
            data=dict(batch=64, source=folder(path, "train"),
                      format=dict(kind="pairs", augment=dict(crop_scale=(0.6, 1.0), flip=True))),
            objective=dict(kind="contrastive", positives="same_text"),
            trainable=[(".*", 2e-3)],
            optimizer=dict(weight_decay=0.2),
            steps=3000)),
        evals=dict(tasks=("zero_shot",), source=folder(path, "test"), examples=2000),
        loop=dict(log_every=20, checkpoint_every=500),
        mesh=dict(data=-1, fsdp=1, tensor=1, context=1),
    ))
