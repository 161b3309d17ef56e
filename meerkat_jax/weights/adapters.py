"""LoRA adapters as peft keeps them: a folder of adapter_config.json and adapter_model.safetensors.

Out: what was trained on a published decoder, for `peft.PeftModel.from_pretrained`. In: what peft
saved, onto the same decoder. Only LoRA as in Hu et al. 2021, one rank for all layers, is the same
thing in both worlds; whatever else an adapter's config asks for is refused by its name.

Source: github huggingface/peft, docs/source/developer_guides/checkpoint.md.

Letters: L layers, D width in, E width out, R rank.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.core.errors import UserError, sample
from meerkat_jax.core.trees import compare, flatten
from meerkat_jax.models.llama import Llama
from meerkat_jax.nn.dense import LoraConfig
from meerkat_jax.weights import table
from meerkat_jax.weights.files import TORCH, metadata_of, read_json, refuse, tensors_of
from meerkat_jax.weights.hub import unwrapped
from meerkat_jax.weights.llama import PROJECTIONS, adapter_rows
from meerkat_jax.weights.store import Writer

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
DIGEST = "base_sha256"  # in the metadata of WEIGHTS
MODULES_FILE = "meerkat_modules.safetensors"  # of our exports; weights/modules.py
# What Hugging Face's Trainer keeps in a folder of a checkpoint besides, for going on with it.
TRAINER = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "training_args.bin")
HALVES = ("lora_a", "lora_b")
MODULES = {name.rsplit(".", 1)[-1]: ours for ours, name in PROJECTIONS.items()}
ADDED = "added"

# Keys of an adapter_config.json that do not change what the adapter computes, or that are read.
READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"}
SILENT = {"base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode"}
SILENT |= {"megatron_core", "qalora_group_size", "runtime_config"}
# Of these, the values under which an adapter is plain LoRA; all other keys must be empty or False.
PLAIN: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),  # others change the base
}


def shapes(model: Llama) -> dict[str, tuple[int, ...]]:
    """Shape of every leaf of the decoder, by path."""

    def whole(llama: Llama, ids: jax.Array) -> jax.Array:
        return llama.logits(llama(llama.embed(ids), jnp.arange(1)[None])["hidden"])

    ids = jnp.zeros((1, 1), jnp.int32)
    leaves = jax.eval_shape(lambda key: model.init(key, ids, method=whole), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten(leaves["params"]).items()}


def is_lora(path: str) -> bool:
    """Is this leaf a half of an adapter?"""
    return path.rsplit("/", 1)[-1] in HALVES


def save(file: Path, tensors: Mapping[str, np.ndarray], **metadata: str) -> None:
    """Write a safetensors file; UserError when the disk has no room for it."""
    kinds = {name: (np.shape(value), np.dtype(value.dtype)) for name, value in tensors.items()}
    writer = Writer(file, kinds, {"format": "pt", **metadata})
    for name, value in tensors.items():
        writer.put(name, np.asarray(value))
    writer.close()


def model_name(path: str) -> str:
    """A model's own name in a hub name, the path of a folder or file, or one of the hub's cache."""
    parts = [part for part in path.split("/") if part]
    cached = [part.rsplit("--", 1)[-1] for part in parts if part.startswith("models--")]
    return (cached or parts or [""])[-1]


def base_digest(files: Mapping[str, str]) -> str:
    """One sha256 of the files of a published model, given that of each by name; "" for none."""
    told = "".join(sorted(files.values()))
    return hashlib.sha256(told.encode()).hexdigest() if told else ""


@dataclasses.dataclass(frozen=True)
class AdapterBase:
    """What a decoder was published as: where it lay or its name on the hub, and its files' digest.

    allowed: another base that an adapter may name (config.adapter_base).
    """

    names: tuple[str, ...]
    digest: str = ""
    allowed: str | None = None

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]


# Out ---------------------------------------------------------------------------------------------


def write_peft(
    folder: Path, model: Llama, leaves: Mapping[str, Any], base: str, digest: str = ""
) -> None:
    """Write the LoRA of a decoder on the published `base`, a hub name or a folder, into `folder`.

    digest: `base_digest` of the base's files, kept in the metadata of the weights' file.
    leaves: what training changed in the decoder, by path, as "layers/q/lora_a" float[L, D, R] and
    "layers/q/lora_b" float[L, R, E]; dtypes are kept. Rows `added` to the vocabulary are left out:
    the base has no place for them, `modules.write_modules` has. Raises UserError when training
    changed anything else, and for leaves that are missing or have another shape.
    """
    if model.lora is None or not model.pretrained:
        what = "has no LoRA" if model.lora is None else "is not built on a published one"
        raise UserError(f"--export=peft: the language model {what}; use --export=hf")
    wanted = {path: str(shape) for path, shape in shapes(model).items() if is_lora(path)}
    changed = [path for path in leaves if path not in wanted and path != ADDED]
    if changed:
        raise UserError(
            f"--export=peft: training changed {', '.join(changed[:5])} ({len(changed)} leaves) of "
            "the language model, and an adapter holds LoRA alone; use --export=hf"
        )
    found = {path: str(np.shape(leaf)) for path, leaf in leaves.items() if path != ADDED}
    if wrong := compare(wanted, found):
        raise UserError(f"--export=peft: the LoRA does not fit its config: {'; '.join(wrong)}")
    halves = {path: np.asarray(leaves[path]) for path in wanted}
    tensors = table.published(adapter_rows(model.lora.targets), halves)
    save(folder / WEIGHTS, tensors, **({DIGEST: digest} if digest else {}))
    (folder / CONFIG).write_text(json.dumps(_config(model.lora, base), indent=2) + "\n")


def _config(lora: LoraConfig, base: str) -> dict[str, Any]:
    """What peft asks for; all that is left out has its plain value."""
    alpha = float(lora.alpha)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": lora.dropout,
        "target_modules": [name for name, ours in MODULES.items() if ours in lora.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


# In ----------------------------------------------------------------------------------------------


def read_peft(
    folder: str | Path,
    model: Llama,
    base: AdapterBase | None = None,
    say: Callable[[str], object] = print,
) -> tuple[LoraConfig, dict[str, np.ndarray]]:
    """An adapter of the decoder `model`: how it adapts, and its leaves by path as in `write_peft`.

    base: what the decoder was published as, to be compared with the adapter's; None compares
    nothing. Raises one UserError for all that is wrong: config keys that ask for more than plain
    LoRA, another base, unknown targets, tensors that are missing, unknown or of another shape, and
    files of weights beside the adapter that have no place here.
    """
    folder, wrong = Path(folder), []
    config = read_json(folder / CONFIG, wrong)
    old = (folder / PICKLED).exists() and not (folder / WEIGHTS).exists()
    file = folder / (PICKLED if old else WEIGHTS)
    tensors = tensors_of(file, wrong)
    refuse(folder, wrong)
    tensors, notes = unwrapped(tensors)
    wrong += _plain_errors(config) + _number_errors(config) + _other_files(folder, wrong)
    if base is not None:
        others, told = _base_errors(config, metadata_of(file).get(DIGEST), base)
        wrong += others
        notes += told
    targets, strangers = _targets(config, tensors)
    wrong += strangers
    if not _number_errors(config):
        lora = _lora(config, targets)
        wanted = {p: s for p, s in shapes(model.clone(lora=lora)).items() if is_lora(p)}
        found = {name: tensor.shape for name, tensor in tensors.items()}
        try:
            pieces = table.plan(adapter_rows(targets), found, wanted, "what it holds")
        except UserError as error:
            wrong.append(str(error))
    refuse(folder, wrong)
    for note in notes:
        say(f"adapter: {folder}: {note}")
    return lora, table.assembled(pieces, lambda name: tensors[name].read())


def _plain_errors(config: Mapping[str, Any]) -> list[str]:
    """What says that this is more than plain LoRA, by the names of the keys."""
    given = {key: config.get(key) for key in PLAIN} | dict(config)
    wrong = []
    for key, value in given.items():
        if key in PLAIN and value not in PLAIN[key]:
            known = " or ".join(map(repr, PLAIN[key]))
            wrong.append(f"{CONFIG}: {key} is {value!r}, we can read {known}")
        elif key not in PLAIN.keys() | READ | SILENT and value:
            wrong.append(f"{CONFIG}: {key} is {value!r}, we can read adapters without it")
    return wrong


def _number_errors(config: Mapping[str, Any]) -> list[str]:
    tests = {
        "r": (lambda x: isinstance(x, int) and x > 0, "a whole number above 0"),
        "lora_alpha": (lambda x: isinstance(x, int | float) and x > 0, "a number above 0"),
        "lora_dropout": (lambda x: isinstance(x, int | float) and 0 <= x < 1, "0 to below 1"),
    }
    given = {"lora_dropout": 0.0} | dict(config)
    return [
        f"{CONFIG}: {key} is {given.get(key)!r}, expected {what}"
        for key, (fits, what) in tests.items()
        if isinstance(given.get(key), bool) or not fits(given.get(key))
    ]


def _base_errors(
    config: Mapping[str, Any], digest: str | None, base: AdapterBase
) -> tuple[list[str], tuple[str, ...]]:
    """(what forbids to put the adapter on this base, what there is to tell)."""
    theirs = config.get("base_model_name_or_path")
    if digest and digest == base.digest:
        return [], ()
    if not theirs:
        return [], (f"{CONFIG} names no base; only the shapes were compared with {base.name}",)
    if theirs == base.allowed:
        return [], (f"made on {theirs}, put on {base.name} as config.adapter_base allows",)
    if model_name(theirs).lower() not in {model_name(name).lower() for name in base.names}:
        return [
            f"{CONFIG}: base_model_name_or_path is {theirs!r}, this decoder comes from "
            f"{base.name!r}; an adapter fits only the weights that it was trained on: if these are "
            f"the same, say so by --config.adapter_base={theirs}"
        ], ()
    if digest and base.digest:
        return [], (f"made on {theirs} of other files than {base.name} (by their sha256)",)
    same = theirs in base.names
    return [], () if same else (f"made on {theirs}, put on {base.name}: equal by name alone",)


def _other_files(folder: Path, wrong: list[str]) -> list[str]:
    """Complaints about files of weights that are no part of an adapter, and no training state."""
    known = {WEIGHTS, PICKLED, MODULES_FILE, *TRAINER}
    found = []
    for file in sorted(folder.iterdir()):
        if file.suffix not in (".safetensors", *TORCH) or file.name in known:
            continue
        if file.name.startswith("rng_state"):
            continue
        if names := list(tensors_of(file, wrong)):
            found.append(
                f"{file.name} beside the adapter holds {sample(names)}, for which this model has "
                "no place; move it away to start without it"
            )
    return found


def _targets(config: Mapping[str, Any], tensors: Mapping) -> tuple[list[str], list[str]]:
    """(our names of what is adapted, as said by a list of target_modules or seen, errors)."""
    said = config.get("target_modules")
    said = said if isinstance(said, list) else []  # a string is a pattern, or "all-linear"
    said = [str(name).rsplit(".", 1)[-1] for name in said]
    found = [ours for name, ours in MODULES.items() if name in said or _adapts(name, tensors)]
    strange = sorted(set(said) - set(MODULES))
    known = ", ".join(MODULES)
    wrong = [f"{CONFIG}: target_modules has {name!r}, we adapt {known}" for name in strange]
    return found, wrong if found or wrong else [f"no tensor adapts any of {known}"]


def _adapts(name: str, tensors: Mapping) -> bool:
    return any(f".{name}.lora_" in tensor for tensor in tensors)


def _lora(config: Mapping[str, Any], targets: list[str]) -> LoraConfig:
    rank, alpha = config["r"], float(config["lora_alpha"])
    if config.get("use_rslora"):  # scales by alpha / sqrt(r); ours by alpha / r
        alpha *= math.sqrt(rank)
    return LoraConfig(rank, alpha, float(config.get("lora_dropout", 0.0)), tuple(targets))
