"""Your own pictures and sounds: copy this file, and change what differs.

    python -m meerkat_jax.data.build jsonl --source_dir=MINE --out=avfit/mine
    python -m meerkat_jax.data.browse avfit/mine
    python -m meerkat_jax.train --config=experiments/forkme.py:avfit/mine --workdir=runs/mine

ARG is the built folder; docs/data.md tells how MINE is laid out. The model is the paper's, from the
store of published weights in weights/7b, with LoRA: one GPU of 80 GiB, or a TPU slice.
"""

from pathlib import Path

import ml_collections

from meerkat_jax.errors import UserError
from meerkat_jax.training.config import load_config

MODEL = "7b"  # a name that avfit.py knows


def get_config(arg: str = "avfit/mine") -> ml_collections.ConfigDict:
    """ARG: a folder that data/build.py has built."""
    config = load_config(f"{Path(__file__).with_name('avfit.py')}:{MODEL}").to_dict()
    folder = Path(arg)
    if not folder.name:
        raise UserError(f"config arg {arg!r}: expected a built folder, as in avfit/mine")
    config["name"] = f"{MODEL}-{folder.name}"
    config["data"] |= {"root": str(folder.parent), "sources": {folder.name: 1.0}}
    config["phases"][-1] |= {"steps": 1000, "warmup": 50}
    return ml_collections.ConfigDict(config)
