"""The whole life of a small vision-language model, on two CPU cores in minutes.

    python -m vlm_jax.train --config configs/quickstart.py --workdir runs/quickstart

Expected result: the table in README.md.
"""

import ml_collections

VOCABULARY, END = 384, 2

NOTES = (
    "Digits are 16 or 32 pixels and snap to the 16-pixel patch grid: a patch never shows parts of two digits.",
    "Digits and colours of a scene are all distinct, so that 'the 7' names one object.",
    "The contrastive stage has an auxiliary loss: features pooled over an object's box must match its phrase. "
    "Half of its scenes show a single digit, and identical captions count as positives.",
    "An instruct row holds one image and six conversations that share it and do not see each other.",
)


def blocks(layers, width, heads, **options):
    return dict(layers=layers, width=width, heads=heads, **options)


def model():
    """A CLIP image tower (class token, pre-norm), its text tower, an MLP connector and a Llama-style decoder."""
    return dict(
        vision=dict(image_size=64, patch_size=16, feature_layer=-2,
                    transformer=blocks(3, 96, 4, mlp_width=384, activation="quick_gelu")),
        text=dict(vocab_size=VOCABULARY, context=24, end_id=END,
                  transformer=blocks(1, 64, 4, mlp_width=256, activation="quick_gelu")),
        contrast=dict(embed_dim=64),
        connector=dict(kind="mlp"),
        decoder=dict(vocab_size=VOCABULARY,
                     transformer=blocks(3, 96, 4, mlp_width=256, norm="rms", activation="silu", gated_mlp=True,
                                        attention_bias=False, mlp_bias=False, rope_theta=10_000.0)),
    )


def scenes(**options):
    return dict(kind="scenes", **options)


def stages():
    rows = dict(kind="rows", length=128, image_slots=1, loss="answers")
    return dict(
        contrastive=dict(
            data=dict(batch=64, source=scenes(single_fraction=0.5, caption_style="varied", conversations=0),
                      format=dict(kind="pairs", regions=3)),
            objective=dict(kind="contrastive_regions", weight=1.0, contrastive=dict(positives="same_text")),
            trainable=[("(vision|text|vision_projection|text_projection)/.*|logit_scale", 2e-3), (".*", None)],
            steps=900),
        language=dict(
            data=dict(batch=32, source=scenes(), format=dict(rows, length=144, image_slots=0, loss="all")),
            objective=dict(kind="next_token"),
            trainable=[("decoder/.*", 2e-3), (".*", None)],
            steps=100),
        align=dict(
            data=dict(batch=32, source=scenes(conversations=1), format=dict(rows, length=64)),
            objective=dict(kind="next_token"),
            trainable=[("connector/.*", 2e-3), (".*", None)],
            steps=170),
        instruct=dict(
            data=dict(batch=32, source=scenes(), format=rows),
            objective=dict(kind="next_token"),
            trainable=[("(connector|decoder)/.*", 2e-3), (".*", None)],
            steps=1000),
    )


def get_config():
    return ml_collections.ConfigDict(dict(
        seed=0,
        model=model(),
        processor=dict(image=dict(size=64), vocab_size=VOCABULARY, template="llava"),
        run=("contrastive", "language", "align", "instruct"),
        stages=stages(),
        evals=dict(tasks=("zero_shot", "retrieval", "caption", "vqa"), source=scenes(split="test"), examples=256),
        loop=dict(log_every=20, checkpoint_every=250),
        notes=NOTES,
        mesh=dict(data=-1, fsdp=1, tensor=1, context=1),
    ))
