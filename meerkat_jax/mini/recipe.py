"""The configuration of the mini model, all of it, and of the mini's towers under published words.

Settings were tuned on the mini data, and no other size inherits them; meerkat_jax/mini/NOTES.md
says how each was found. Parts that start from nothing first learn what published ones bring along:
the decoder to speak, as Llama did, the towers the names of what they see and hear, as CLIP and CLAP
did.
"""

from __future__ import annotations

# Parts that phases leave alone.
SENSES = ["_tower/", "_connector/", "_position/", "^avopt/", "^avace/"]
SPEAKING = ["^llama/layers/", "^llama/norm"]
LIKENESS = ["^avace/(image|audio)_(q|k|norm)/"]  # what AVACE compares tokens by
MAP = [*LIKENESS, "^avace/audio_score/", "_position/norm"]  # where AVACE attends
MEETING = ["^avopt/", "^avace/", "_position/position_embedding"]
ADAPTERS = ["lora_[ab]$", "^llama/added"]  # what is trained of a published language model
LORA = {"rank": 32, "alpha": 32.0, "dropout": 0.1, "targets": ("q", "k", "v", "o")}


def mini() -> dict:
    """From scratch on two CPU cores."""
    return {
        "name": "mini",
        "seed": 0,
        "base": None,  # no store of published weights
        "initialisers": "from_scratch",  # mini/initialisers.py
        "adapter": None,  # a folder of peft's, whose LoRA training takes up
        "adapter_base": None,  # the base that it may name besides that of the store
        "data": {
            "kind": "mini",
            "mini": {"media": "auto", "seed": 0, "classes": 40, "train": 24000},
            "num_packs": 1,  # of questions of a scene, behind one shared prefix
            "pack_length": 88,  # tokens of a run: some four questions with their answers
            "max_target_tokens": 62,  # of these for answers
            "max_answer_tokens": 38,  # tokens of one answer
            "sample_rate": 16000,
            "seconds": 10.0,
            "workers": 0,  # threads: a process of its own takes longer to hand over a sound
            "task_weights": {
                "arig": 3.0,
                "igatl": 4.0,
                "avfact1": 1.5,
                "avfact3": 2.0,
                "avfact4": 2.0,
                "avqa/which": 0.5,
                "avqa/first": 0.5,
                "avqa/heard_and_seen": 1.5,
            },
        },
        "prompt": "llama2",  # a style of data/styles.py, or "store": the store's own chat template
        "model": {
            "image": {
                "image_size": 56,
                "patch_size": 4,  # 196 patches, of which four make a token: fine ones teach faster
                "width": 128,
                "depth": 2,
                "heads": 2,
                "mlp_dim": 512,
                "projection_dim": 128,
            },
            "image_pool": 2,
            "position_embedding": True,
            "mel": {"n_fft": 512, "hop": 320, "mels": 64, "fmin": 50, "fmax": 8000.0},
            "audio": {
                "spec_size": 384,  # six stretches of 1.7 s, each one row of six tokens
                "patch_size": 32,
                "width": 64,
                "depths": (1, 1),
                "heads": (2, 4),
                "window_size": 1,  # 0.28 s: larger ones name a sound where it is silent
                "fused": False,
                "mel_mean": -16.0,  # dB, of the training clips; far off, the tower hardly learns
                "mel_var": 214.0,
            },
            "avopt": {"width": 64, "iterations": 30},
            "avace": {"width": 128, "heads": 1, "attention_embedding": True},
            "connector": "linear",
            "llama": {
                "width": 128,
                "depth": 2,
                "heads": 8,
                "kv_heads": 8,
                "head_dim": 32,  # narrower ones cannot tell 40 names apart: verdicts then fail
                "mlp_dim": 352,
                "tied": True,
                "rope_theta": 1e6,  # slow: far words are compared by likeness, not by distance
            },
        },
        "trainable": [".*"],
        "batch": 16,
        "accumulate": 1,
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "quantise": "none",  # a frozen decoder may be "int8" or "nf4"
        "loss_pieces": 1,  # logits of so many parts of the answers, one in memory at a time
        # Parts that start from nothing first learn what the published ones bring along: the decoder
        # to speak, as Llama did, the towers the names of what they see and hear, as CLIP and CLAP
        # did (no boxes, no times). Then sound and sight meet, and then all learn to answer.
        "phases": [
            {
                "name": "lm_warmup",
                "split": "train",
                "steps": 200,
                "learning_rate": 2e-3,
                "warmup": 50,
                "freeze": SENSES,
                "task_weights": {},
                "weights": {"language": 1.0},
            },
            {
                "name": "image_naming",
                "split": "train/crowded",  # two or three things in an image: more names a step
                "steps": 1450,
                "batch": 8,
                "learning_rate": 3e-3,
                "warmup": 50,
                "freeze": [*SPEAKING, *MEETING, "^audio_"],
                "weights": {"image_names": 1.0},
            },
            {
                "name": "audio_naming",
                "split": "train",
                "steps": 1000,
                "batch": 8,
                "learning_rate": 3e-3,
                "warmup": 50,
                "freeze": ["^llama/", *MEETING, "^image_"],  # names stay where images found them
                "weights": {"audio_names": 1.0},
            },
            {  # what is heard finds what is seen: where it is, and with that how far it reaches
                "name": "alignment",
                "split": "train/matched",
                "steps": 600,
                "learning_rate": 3e-3,
                "warmup": 50,
                "freeze": [*SPEAKING, *LIKENESS, "^audio_tower/"],  # sounds are known by now
                "weights": {"image_names": 1.0, "audio_names": 0.5, "avopt": 0.1, "avace": 3.0},
            },
            {
                "name": "instruction_tuning",
                "split": "train",
                "cache_features": 10000,  # scenes; their tower tokens are computed once
                "steps": 1550,
                "batch": 12,
                "learning_rate": 2e-3,
                "warmup": 50,
                # "avace" then only watches, "avopt" trains its own projections (NOTES.md)
                "freeze": ["_tower/", "_connector/", *MAP],
                "weights": {
                    "answer": 1.0,
                    "avopt": 0.1,
                    "avace": 3.0,
                    "image_names": 3.0,
                    "audio_names": 1.0,
                },
            },
        ],
        "naming_loss": {
            "temperature": 0.05,
            "threshold": 0.9,
            # less sharp: more tokens must say a name, so that a sound within another keeps some
            "sharpness": {"image": 50.0, "audio": 25.0},
        },
        "avace_loss": {"inside_weight": 0.5, "outside_weight": 0.5, "kl_weight": 1.0},
        "number_soft_targets": {"coordinate": 0.02, "seconds": 0.2, "weight": 8.0},
        "optimizer": "muon",
        "decay": "linear",
        "b2": 0.98,
        "weight_decay": 0.2,
        "clip_norm": 1.0,
        "log_every": 100,
        "evaluate_every": 2000,
        "evaluate_batches": 4,  # of the new compositions
        "checkpoint_every": 1000,
        "keep_checkpoints": 2,
    }


def small() -> dict:
    """The mini towers under the published SmolLM2-135M-Instruct."""
    config = mini()
    config["avace_loss"]["kl_weight"] = 0.0  # a term of the mini's own
    config |= {"name": "small", "base": "weights/smollm2", "prompt": "store", "batch": 8}
    # A number is spelled in digits here: a box takes 25 tokens.
    config["data"] |= {
        "num_packs": 2,
        "pack_length": 192,
        "max_target_tokens": 160,
        "max_answer_tokens": 144,
    }
    config["model"]["llama"] = {"lora": LORA, "remat": "weights"}
    # The published words are names already: what is seen and heard goes to where they are.
    config["trainable"] = ["_tower/", "_connector/", "_position/", "^avopt/", "^avace/", *ADAPTERS]
    del config["phases"][0]
    for phase in config["phases"]:
        gone = (*SPEAKING, "^llama/")
        phase["freeze"] = [pattern for pattern in phase["freeze"] if pattern not in gone]
        if phase["name"] == "instruction_tuning":
            phase |= {"batch": 4, "learning_rate": 1e-3}
        else:
            phase["freeze"] += ADAPTERS
    config["optimizer"] = "adamw"
    return config
