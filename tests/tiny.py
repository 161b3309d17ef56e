"""The main job's config at the size of a test: seconds on one core, procedural media.

python -m meerkat_jax.train --config=tests/tiny.py --workdir=DIR --data_dir=CACHE
"""

from pathlib import Path

import ml_collections

from meerkat_jax.core.config import load_config, settable

AVFIT = Path(__file__).parents[1] / "experiments" / "avfit.py"


def get_config(arg: str = "mini") -> ml_collections.ConfigDict:
    """`experiments/avfit.py` with little of nearly everything; "small" takes `--config.base`."""
    config = load_config(f"{AVFIT}:{arg}").to_dict()
    config["name"] = "tiny"
    config["data"]["kind"] = "mini"
    config["data"]["mini"] = config["data"].get("mini", {}) | {
        "media": "procedural",
        "classes": 5,
        "train": 24,
        "compositions": 8,
        "augmentations": 4,
        "instances": 4,
    }
    return settable(shrunk(config))


def shrunk(config: dict) -> dict:
    """A config of `experiments/` with a small model and few steps."""
    config["data"] |= {
        "num_packs": 2,
        "pack_length": 72,
        "max_target_tokens": 56,
        "pack_lengths": (),
        "workers": 0,
    }
    model = config["model"]
    model["image"] |= {"image_size": 64, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
    model["image"] |= {"mlp_dim": 32, "projection_dim": 16}
    model["image_pool"] = 2
    model["audio"] |= {"patch_size": 16, "width": 8, "depths": (1, 1), "heads": (1, 2)}
    model["avopt"] |= {"width": 8, "iterations": 10}
    model["avace"] |= {"width": 16, "heads": 2}
    if config["base"] is None:
        model["llama"] |= {"width": 16, "depth": 1, "heads": 2, "kv_heads": 1, "mlp_dim": 32}
    else:  # sizes are those of the store; words are spelled in more tokens
        config["data"] |= {"pack_length": 400, "max_target_tokens": 380, "max_answer_tokens": 300}
    steps = {"lm_warmup": 1, "image_naming": 2, "instruction_tuning": 5}
    config["phases"] = [phase for phase in config["phases"] if phase["name"] in steps]
    for phase in config["phases"]:
        phase |= {"steps": steps[phase["name"]], "learning_rate": 1e-2, "batch": 4}
        phase["warmup"] = min(1, phase["steps"] - 1)
    del config["phases"][-1]["batch"]
    config |= {"batch": 2, "log_every": 2, "checkpoint_every": 3}
    config |= {"evaluate_every": 4, "evaluate_batches": 2}
    return config
