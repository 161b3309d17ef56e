"""The tiny config as a run of many quick steps that saves all the time, to be killed often.

python -m meerkat_jax.train --config=tests/soak.py --workdir=DIR --data_dir=CACHE
"""

from pathlib import Path

import ml_collections

from meerkat_jax.core.config import load_config


def get_config(arg: str = "240") -> ml_collections.ConfigDict:
    """ARG: the number of steps. Of `tiny.py` the first phase, in which the decoder learns alone."""
    config = load_config(str(Path(__file__).with_name("tiny.py"))).to_dict()
    config["name"] = "soak"
    config["phases"] = config["phases"][:1]
    config["phases"][0] |= {"steps": int(arg), "warmup": 10, "learning_rate": 1e-3}
    config |= {"log_every": 1, "checkpoint_every": 4, "evaluate_batches": 0}
    return ml_collections.ConfigDict(config)
