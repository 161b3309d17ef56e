"""The main job with a picture tower of finer patches, and the shorter recipe that it allows.

    python -m meerkat_jax.train --config=experiments/fine_patches.py --workdir=runs/fine
    python -m meerkat_jax.evaluate --workdir=runs/fine

Two CPU cores, about 15 minutes. What comes out: the files of the main job. The tower has 14 x 14
patches of 4 pixels, four of which make a token; it then tells what is seen after so few steps that
two phases are enough for it. docs/results.md compares it with the main job.
"""

from pathlib import Path

import ml_collections

from meerkat_jax.training.config import load_config

AVFIT = Path(__file__).parent / "avfit.py"
STEPS = {"speaks": 200, "names": 300, "binds": 500, "answers": 2100}


def get_config() -> ml_collections.ConfigDict:
    """`experiments/avfit.py:mini` with 196 patches, pooled to 49 tokens, and four phases."""
    config = load_config(f"{AVFIT}:mini").to_dict()
    config["name"] = "fine_patches"
    config["model"]["image"] |= {"image_size": 56, "patch_size": 4, "heads": 2}
    config["model"]["image_pool"] = 2
    config["phases"] = [phase for phase in config["phases"] if phase["name"] in STEPS]
    for phase in config["phases"]:
        phase["steps"] = STEPS[phase["name"]]
        if phase["name"] == "names":
            phase["batch"] = 32
        if phase["name"] == "binds":  # sounds are known by then
            phase["still"] = [*phase["still"], "^audio_tower/"]
    return ml_collections.ConfigDict(config)
