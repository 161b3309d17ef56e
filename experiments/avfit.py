"""The main job: train Meerkat on all of the paper's tasks.

    python -m meerkat_jax.train --config=experiments/avfit.py --workdir=runs/mini

`mini` (the default): everything from scratch on the embedded mini data set; two CPU cores, about 17
minutes, under 6 GiB of memory; a model of 2 M parameters that answers on scenes of 40 classes.

What comes out: checkpoints, metrics.jsonl, benchmark.json and report.html in the work directory.
"""

import ml_collections

from meerkat_jax.training.config import choose

ANSWERING = {
    "answer": 1.0,
    "avopt": 0.1,
    "avace": 3.0,
    "image_names": 3.0,
    "audio_names": 1.0,
}


def get_config(arg: str = "mini") -> ml_collections.ConfigDict:
    """The configuration named `arg`."""
    return ml_collections.ConfigDict({"mini": mini}[choose(arg, ("mini",))]())


def mini() -> dict:
    """From scratch on two CPU cores."""
    return {
        "name": "mini",
        "seed": 0,
        "data": {
            "kind": "mini",
            "mini": {"media": "auto", "seed": 0, "classes": 40, "train": 24000},
            "questions": 6,  # of each scene, behind one shared prefix
            "length": 48,  # tokens of a question with its answer
            "answer": 28,  # tokens of an answer
            "sample_rate": 16000,
            "seconds": 10.0,
            "workers": 1,
            "task_weights": {"arig": 2.0, "igatl": 1.5},
        },
        "prompt": "llama2",
        "model": {
            "image": {
                "image_size": 64,
                "patch_size": 8,
                "width": 128,
                "depth": 2,
                "heads": 4,
                "mlp_dim": 512,
                "projection_dim": 128,
            },
            "mel": {"n_fft": 512, "hop": 160, "mels": 64, "fmin": 50, "fmax": 8000.0},
            "audio": {
                "patch_size": 16,
                "width": 64,
                "depths": (2, 2),
                "heads": (2, 4),
                "fused": False,
                "mel_mean": -16.0,  # dB, of the training clips; far off, the tower hardly learns
                "mel_var": 214.0,
            },
            "avopt": {"width": 64, "iterations": 30},
            "avace": {"width": 128, "heads": 1},
            "connector": "linear",
            "llama": {
                "width": 128,
                "depth": 2,
                "heads": 4,
                "kv_heads": 4,
                "mlp_dim": 352,
                "tied": True,
            },
        },
        "trainable": [".*"],
        "slow": [
            "_tower/",
            "_connector/",
        ],  # what a phase trains at its own slow_rate, if it has one
        "batch": 16,
        "accumulate": 1,
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        # Towers that start from nothing first learn the names of what they see and hear, as CLIP
        # and CLAP did (no boxes, no times); then everything learns to answer, first where and when.
        "phases": [
            {
                "name": "names",
                "split": "train",
                "steps": 150,
                "learning_rate": 1e-3,
                "warmup": 50,
                "weights": {"image_names": 1.0, "audio_names": 1.0},
            },
            {  # the sounds are known by now, the pictures take longer
                "name": "looks",
                "split": "train",
                "steps": 1200,
                "workers": 0,  # pictures alone: handing them over takes longer than decoding
                "learning_rate": 1e-3,
                "warmup": 50,
                "weights": {"image_names": 1.0},
            },
            {  # what is heard finds what is seen, and its box teaches the pictures names as well
                "name": "binds",
                "split": "train",
                "steps": 900,
                "learning_rate": 1e-3,
                "warmup": 50,
                "still": ["^audio_tower/"],
                "weights": {"image_names": 1.0, "audio_names": 0.5, "avopt": 0.1, "avace": 1.0},
            },
            {  # where and when: two short questions a scene cost a third of six
                "name": "places",
                "split": "train",
                "steps": 800,
                "batch": 8,
                "learning_rate": 1.5e-3,
                "slow_rate": 5e-4,
                "warmup": 50,
                "weights": dict(ANSWERING),
                "questions": 2,
                "task_weights": {
                    "arig": 1.0,
                    "igatl": 1.0,
                    "avqa/where": 0.3,
                    "avfact1": 0.3,
                }
                | dict.fromkeys(("avfact2", "avfact3", "avfact4", "avqa", "avc"), 1e-3),
            },
            {
                "name": "answers",
                "split": "train",
                "steps": 1200,
                "batch": 8,
                "learning_rate": 1.5e-3,
                "slow_rate": 5e-4,
                "warmup": 50,
                "weights": dict(ANSWERING),
            },
        ],
        "contrast": {"temperature": 0.1, "sharpness": 100.0},
        "box": {"inside": 0.5, "outside": 0.5, "fill": 1.0},
        "spread": {"coordinate": 0.02, "seconds": 0.2, "weight": 20.0},
        "optimizer": "muon",
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "log_every": 50,
        "evaluate_every": 600,
        "evaluate_batches": 4,  # of the new compositions
        "checkpoint_every": 600,
        "keep_checkpoints": 2,
    }
