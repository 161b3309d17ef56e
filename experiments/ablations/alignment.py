"""What AVOpT and AVACE contribute: a short main job with either weight, or both, at 0.

    for seed in 0 1 2; do for arg in full no_avopt no_avace neither; do
      python -m meerkat_jax.train --config=experiments/ablations/alignment.py:$arg \
          --config.seed=$seed --workdir=runs/alignment/$arg-$seed
      python -m meerkat_jax.evaluate --workdir=runs/alignment/$arg-$seed --benchmarks=compositions
    done; done
    python experiments/ablations/summary.py runs/alignment

Two CPU cores; of each phase of the main job .4 to .75 of its steps, the same data and order of
examples in all arms of a seed. What comes out: a benchmark.json in each work directory, and a
table. A term of weight 0 is still computed and logged. The arms differ in `binds` only: in
`answers` what both terms train for the language model is at rest (experiments/avfit.py).
"""

from pathlib import Path

import ml_collections

from meerkat_jax.core.config import choose, load_config, settable

OFF = {"full": (), "no_avopt": ("avopt",), "no_avace": ("avace",), "neither": ("avopt", "avace")}
STEPS = {
    "lm_warmup": 150,
    "image_naming": 800,
    "audio_naming": 500,
    "alignment": 300,
    "instruction_tuning": 600,
}
KEPT = 2400  # scenes of `answers`
AVFIT = Path(__file__).parents[1] / "avfit.py"


def get_config(arg: str = "full") -> ml_collections.ConfigDict:
    """`experiments/avfit.py:mini` with the terms that `arg` names switched off."""
    arg = choose(arg, tuple(OFF))
    config = load_config(f"{AVFIT}:mini").to_dict()
    config["name"] = f"alignment-{arg}"
    for phase in config["phases"]:
        phase["steps"] = STEPS[phase["name"]]
        if "cache_features" in phase:
            phase["cache_features"] = KEPT
        phase["weights"] |= {term: 0.0 for term in OFF[arg] if term in phase["weights"]}
    return settable(config)
