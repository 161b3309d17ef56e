"""The configuration of the mini model, all of it, and of the mini's towers under published words.

The settings were tuned on the mini data, and no other size inherits them; meerkat_jax/mini/NOTES.md
says how each was found. Short phases stand in for pretraining: the decoder learns to generate
text, and the towers learn class names, as Llama, CLIP and CLAP did.
"""

from __future__ import annotations

# Patterns of parameters that phases freeze.
TOWERS = ["_tower/", "_connector/", "_position/", "^avopt/", "^avace/"]
DECODER = ["^llama/layers/", "^llama/norm"]
AVACE_QK = ["^avace/(image|audio)_(q|k|norm)/"]  # queries and keys
AVACE_MAP = [*AVACE_QK, "^avace/audio_score/", "_position/norm"]  # what its map depends on
ALIGNMENT = ["^avopt/", "^avace/", "_position/position_embedding"]
ADAPTERS = ["lora_[ab]$", "^llama/added"]  # trained parameters of a published language model
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
            "num_packs": 1,  # of questions behind the shared prefix of an example
            "pack_length": 88,  # tokens: about four questions with their answers
            "max_target_tokens": 62,  # of these for answers
            "max_answer_tokens": 38,  # tokens of one answer
            "sample_rate": 16000,
            "seconds": 10.0,
            "workers": 0,  # threads: a worker process takes longer to hand over an audio clip
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
                "patch_size": 4,  # 196 patches, four to a token: small patches learn faster
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
                "spec_size": 384,  # six segments of 1.7 s, each a row of six tokens
                "patch_size": 32,
                "width": 64,
                "depths": (1, 1),
                "heads": (2, 4),
                "window_size": 1,  # 0.28 s: larger windows find a class where it is silent
                "fused": False,
                "mel_mean": -16.0,  # dB, of the training clips; the tower hardly learns with others
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
                "head_dim": 32,  # narrower heads cannot distinguish 40 class names: AVFact fails
                "mlp_dim": 352,
                "tied": True,
                "rope_theta": 1e6,  # large: attention to distant tokens by content
            },
        },
        "trainable": [".*"],
        "batch": 16,
        "accumulate": 1,
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "quantise": "none",  # a frozen decoder may be "int8" or "nf4"
        "loss_pieces": 1,  # logits of so many parts of the answers, one in memory at a time
        # Pretraining of the decoder (text alone) and of the towers (class names; no boxes, no
        # times), then the alignment of the modalities, then instruction tuning.
        "phases": [
            {
                "name": "lm_warmup",
                "split": "train",
                "steps": 200,
                "learning_rate": 2e-3,
                "warmup": 50,
                "freeze": TOWERS,
                "task_weights": {},
                "weights": {"language": 1.0},
            },
            {
                "name": "image_naming",
                "split": "train/crowded",  # two or three objects in an image
                "steps": 1450,
                "batch": 8,
                "learning_rate": 3e-3,
                "warmup": 50,
                "freeze": [*DECODER, *ALIGNMENT, "^audio_"],
                "weights": {"image_names": 1.0},
            },
            {
                "name": "audio_naming",
                "split": "train",
                "steps": 1000,
                "batch": 8,
                "learning_rate": 3e-3,
                "warmup": 50,
                "freeze": ["^llama/", *ALIGNMENT, "^image_"],  # names stay fixed
                "weights": {"audio_names": 1.0},
            },
            {
                "name": "alignment",
                "split": "train/matched",
                "steps": 600,
                "learning_rate": 3e-3,
                "warmup": 50,
                "freeze": [*DECODER, *AVACE_QK, "^audio_tower/"],
                "weights": {"image_names": 1.0, "audio_names": 0.5, "avopt": 0.1, "avace": 3.0},
            },
            {
                "name": "instruction_tuning",
                "split": "train",
                "cache_features": 10000,  # examples; their tower tokens are computed once
                "steps": 1550,
                "batch": 12,
                "learning_rate": 2e-3,
                "warmup": 50,
                # The map is frozen: "avace" is only logged, "avopt" trains its projections
                "freeze": ["_tower/", "_connector/", *AVACE_MAP],
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
            # lower: more tokens must match a name, so that overlapping sounds keep some each
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
        "evaluate_batches": 4,  # of split compositions
        "checkpoint_every": 1000,
        "keep_checkpoints": 2,
    }


def small() -> dict:
    """The mini towers under the published SmolLM2-135M-Instruct."""
    config = mini()
    config["avace_loss"]["kl_weight"] = 0.0  # a term of the mini's alone
    config |= {"name": "small", "base": "weights/smollm2", "prompt": "store", "batch": 8}
    # Numbers are spelled in digits: a box takes 25 tokens.
    config["data"] |= {
        "num_packs": 2,
        "pack_length": 192,
        "max_target_tokens": 160,
        "max_answer_tokens": 144,
    }
    config["model"]["llama"] = {"lora": LORA, "remat": "weights"}
    # The published word embeddings stay: the towers learn to match them.
    config["trainable"] = ["_tower/", "_connector/", "_position/", "^avopt/", "^avace/", *ADAPTERS]
    del config["phases"][0]
    for phase in config["phases"]:
        gone = (*DECODER, "^llama/")
        phase["freeze"] = [pattern for pattern in phase["freeze"] if pattern not in gone]
        if phase["name"] == "instruction_tuning":
            phase |= {"batch": 4, "learning_rate": 1e-3}
        else:
            phase["freeze"] += ADAPTERS
    config["optimizer"] = "adamw"
    return config
