"""Every stage, evaluation and report of the quickstart with a handful of steps: for tests, not for results.

    python -m vlm_jax.train --config configs/smoke.py --workdir runs/smoke

Under a minute on two CPU cores. Expected result: none of the accuracies means anything.
"""

import pathlib
import runpy

STEPS = dict(contrastive=8, language=4, align=4, instruct=8)


def get_config():
    config = runpy.run_path(str(pathlib.Path(__file__).with_name("quickstart.py")))["get_config"]()
    for name, steps in STEPS.items():
        config.stages[name].steps = steps
        config.stages[name].data.batch = 16
    for part in ("vision", "text", "decoder"):
        config.model[part].transformer.update(layers=1, width=32, heads=2, mlp_width=64)
    config.model.contrast.embed_dim = 32
    config.evals.update(examples=24, batch=32)
    config.loop.update(log_every=2, checkpoint_every=6)
    config.notes = ()
    return config
