"""Your own images and audio clips: copy this file, and change what differs.

    python -m meerkat_jax.data.build jsonl --source_dir=MINE --out=avfit/mine
    python -m meerkat_jax.report.browse avfit/mine
    python -m meerkat_jax.train --config=experiments/forkme.py:avfit/mine,mini --workdir=runs/mine

ARG is FOLDER,MODEL: the built folder, and one of `mini` (from scratch, on two CPU cores), `small`
(SmolLM2 from the store weights/smollm2, one accelerator) and `7b` (the paper's, from weights/7b,
one GPU of 80 GiB or a TPU slice), each with what avfit.py says of it. docs/own_data.md is the tour.
"""

from pathlib import Path

import ml_collections

from meerkat_jax.core.config import choose, load_config, settable
from meerkat_jax.core.errors import UserError

AVFIT = Path(__file__).with_name("avfit.py")
MODELS = ("mini", "small", "7b")


def get_config(arg: str = "avfit/mine,mini") -> ml_collections.ConfigDict:
    """ARG: a folder that data/build has built, and which of `MODELS` is trained on it."""
    place, _, model = arg.rpartition(",")
    folder = Path(place)
    if not model or not folder.name:
        raise UserError(
            f"config arg {arg!r}: expected FOLDER,MODEL, a built folder and one of "
            f"{', '.join(MODELS)}, as in avfit/mine,mini"
        )
    model = choose(model, MODELS, "the model of the config arg")
    config = load_config(f"{AVFIT}:{model}").to_dict()
    config["name"] = f"{model}-{folder.name}"
    config["data"] |= {"kind": "avfit", "root": str(folder.parent), "sources": {folder.name: 1.0}}
    if model == "7b":
        config["phases"][-1] |= {"steps": 1000, "warmup": 50}
    else:
        from_scratch(config)
    return settable(config)


def from_scratch(config: dict) -> None:
    """The phases of a model whose towers start from nothing, on data other than the mini's."""
    del config["data"]["mini"]
    # Room for what a built folder may hold: 16 boxes of a pair, and texts of any form.
    config["data"] |= {"max_boxes": 16, "max_labels": 16, "task_weights": {}}
    if config["base"] is None:
        config["data"] |= {"pack_length": 192, "max_target_tokens": 160, "max_answer_tokens": 144}
    for phase in config["phases"]:
        phase["split"] = "train"  # a built folder has no "crowded" and no "matched"
        phase.pop(
            "cache_features", None
        )  # which is a number of scenes: others would never be asked about
