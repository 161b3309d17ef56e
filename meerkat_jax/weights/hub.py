"""A checkpoint in the hub's layout: config.json and the weights beside it.

Weights are looked for in this order: model.safetensors, shards of it with an index,
pytorch_model.bin, shards of it with an index, a single .pt file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from meerkat_jax.core.errors import UserError, sample
from meerkat_jax.weights.files import AGAIN, read_json, refuse, tensors_of
from meerkat_jax.weights.source import Source, Tensor

CONFIG = "config.json"
ADAPTER = "adapter_config.json"  # of peft
SINGLE = ("model.safetensors", "pytorch_model.bin")  # sharded: the same with .index.json
# What torch.compile, FSDP and checkpointing put into names, and DataParallel before all of them.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
PARALLEL = "module."
AUDIO = "audio_encoder."  # begins the names of CLAP's audio tower where it was saved alone


def weights_of(folder: Path) -> Path | None:
    """The file of a folder that holds its weights or names the files that do, if there is one."""
    for name in SINGLE:
        for file in (folder / name, folder / f"{name}.index.json"):
            if file.exists() or file.is_symlink():  # a link to nothing is found, then refused
                return file
    others = sorted(folder.glob("*.pt"))
    return others[0] if len(others) == 1 else None


def read_hub(folder: Path, model_types: tuple[str, ...], wrong: list[str]) -> Source:
    """The checkpoint of a folder, unread, with its config.json as it is.

    model_types: what config.json's model_type may be; wrong: what was found wrong before.
    Raises UserError with all that is wrong: another model_type, files that are missing or cut
    short, tensors that index and files disagree about.
    """
    config = read_json(folder / CONFIG, wrong)
    if config and config.get("model_type") not in model_types:
        wrong.append(
            f"{CONFIG}: model_type is {config.get('model_type')!r}, "
            f"expected {' or '.join(map(repr, model_types))}"
        )
    if "llama" in model_types and (folder / ADAPTER).exists():
        wrong.append(
            f"{ADAPTER} lies beside the weights, and transformers puts that adapter on them; name "
            "a folder without it, and the adapter by --config.adapter"
        )
    weights = weights_of(folder)
    if weights is None:
        wrong.append(
            f"no weights beside {CONFIG}; expected one of "
            + ", ".join([*SINGLE, *(f"{name}.index.json" for name in SINGLE)])
        )
        files: list[Path] = []
        tensors: dict[str, Tensor] = {}
    elif weights.suffix == ".json":
        files, tensors = _sharded(weights, wrong)
    else:
        files, tensors = [weights], tensors_of(weights, wrong)
    refuse(folder, wrong)
    tensors, notes = unwrapped(tensors)
    native = not notes and weights.name.startswith(SINGLE)
    tensors = {f"audio_model.{n}" if n.startswith(AUDIO) else n: t for n, t in tensors.items()}
    return Source(folder, config, tensors, tuple(files), native, notes)


def unwrapped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors by the names that they had before torch wrapped the model, and a note if it did.

    Raises UserError when two tensors get one name so.
    """
    found: dict[str, Tensor] = {}
    parallel = bool(tensors) and all(name.startswith(PARALLEL) for name in tensors)
    for name, tensor in tensors.items():
        parts = name.removeprefix(PARALLEL if parallel else "").split(".")
        inner = ".".join(part for part in parts if part not in WRAPPERS)
        if inner in found:
            raise UserError(
                f"{tensor.file}: {name} is there twice, with and without torch's wrapper"
            )
        found[inner] = tensor
    changed = [name for name in tensors if name not in found]
    if not changed:
        return found, ()
    return found, (f"torch's wrapper is taken off the names of {sample(changed)}",)


def _sharded(index: Path, wrong: list[str]) -> tuple[list[Path], dict[str, Tensor]]:
    """The files that an index names and all their tensors, which must be those of the index."""
    placed = read_json(index, wrong).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        wrong.append(f"{index.name} has no weight_map; {AGAIN}")
        return [], {}
    names = sorted(set(map(str, placed.values())))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        wrong.append(f"{index.name} names {outside[0]}, expected a file of the same folder")
        return [], {}
    files, tensors = [], {}
    for name in names:
        found = tensors_of(index.parent / name, wrong)
        files.append(index.parent / name)
        if found:  # else the file itself is already complained of
            wanted = {tensor for tensor, file in placed.items() if file == name}
            if absent := sorted(wanted - set(found)):
                wrong.append(
                    f"{name} has no tensor {sample(absent)}, which {index.name} places there"
                )
            if more := sorted(set(found) - wanted):
                told = f"{name} has tensor {sample(more)}, which {index.name} does not place there"
                wrong.append(told)
        tensors |= found
    return files, tensors
