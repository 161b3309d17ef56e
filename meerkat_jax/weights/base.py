"""Training from a store of published weights: what a config takes from it, and how it gets there.

A config names a store by `base: "weights/store"`. The store's parts then give their sections of
`config.model` their sizes, and their leaves take the place of fresh ones: those that are trained in
float32, those that are not in the store's own dtype, each device reading its part from the file.
Without a base nothing here does anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.core.config import dotted, to_json
from meerkat_jax.core.errors import UserError, sample
from meerkat_jax.core.trees import flatten, unflatten
from meerkat_jax.data.audio import LogMel
from meerkat_jax.data.tokenizer import Tokenizer
from meerkat_jax.models.llama import Llama
from meerkat_jax.parallel import hosts, quantise
from meerkat_jax.weights.adapters import (
    ADDED,
    MODULES_FILE,
    AdapterBase,
    base_digest,
    is_lora,
    read_peft,
)
from meerkat_jax.weights.clip import resize_positions
from meerkat_jax.weights.import_release import NAME
from meerkat_jax.weights.modules import read_modules
from meerkat_jax.weights.store import Store

SECTIONS = {"image_tower": "image", "audio_tower": "audio", "llama": "llama"}
FREE = {"remat", "lora", "dtype", "image_size", "mel_mean", "mel_var"}  # not the checkpoint's say
POSITIONS = "image_tower/position_embedding"


def _check_audio_config(config: Mapping[str, Any], folder: Any) -> None:
    """UserError unless sounds reach a published tower at the rate that it was trained at."""
    rate = config["data"]["sample_rate"]
    if rate != LogMel.sample_rate:
        raise UserError(
            f"config.data.sample_rate is {rate}, but the audio tower of {folder} was trained at "
            f"{LogMel.sample_rate} Hz; set it so"
        )


def _agreed(model: Mapping[str, Any], sizes: Mapping[str, Any], folder: Any) -> dict[str, Any]:
    """`config.model` with the sizes of the weights in `folder`; UserError where they differ."""
    flat = dotted(to_json(model))
    for key, size in dotted(to_json(sizes)).items():
        if flat.get(key, size) != size:
            raise UserError(
                f"config.model.{key} is {flat[key]!r}, but the weights of {folder} have {size!r}; "
                "leave it out of the config"
            )
        flat[key] = size
    return unflatten({key.replace(".", "/"): value for key, value in flat.items()})


def _same(value: np.ndarray, leaf: jax.Array | None) -> bool:
    """Whether a leaf, of which this host has all, has these numbers."""
    return (
        leaf is not None
        and leaf.is_fully_addressable
        and np.array_equal(value.astype(leaf.dtype), np.asarray(leaf))
    )


class Base:
    """The store that a config names, or nothing (`store` None)."""

    def __init__(self, store: Store | None, quantise: str = "none"):
        """Use `open`."""
        self.store, self.quantise = store, quantise

    @classmethod
    def open(cls, config: Mapping[str, Any]) -> Base:
        """The store of `config["base"]`; UserError when it is not there or not whole."""
        path = config.get("base")
        return cls(Store.open(path) if path else None, config.get("quantise", "none"))

    @property
    def tokenizer(self) -> Tokenizer | None:
        """That of the store's language model, if it has one."""
        has = self.store is not None and "llama" in self.store.parts
        return Tokenizer.load(self.store.folder) if has else None

    @property
    def origin(self) -> dict[str, str]:
        """What a checkpoint remembers of the store: nothing, if there is none."""
        return {"base": self.store.hash} if self.store else {}

    def resolve(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config with the sizes of the store's parts filled in.

        Raises UserError for a size in the config that is not the store's.
        """
        if self.store is None:
            return dict(config)
        model = dict(config["model"])
        for part, about in self.store.parts.items():
            if part not in SECTIONS:  # what the authors' code trained says how it is taken
                model = _agreed(model, about["config"], self.store.folder)
                continue
            section, sizes = SECTIONS[part], about["config"]
            own = dict(model.get(section, {}))
            fixed = {key: size for key, size in sizes.items() if key not in FREE & own.keys()}
            model = _agreed(model, {section: fixed}, self.store.folder)
            if part == "audio_tower":
                _check_audio_config(config, self.store.folder)
                variant = "htk" if sizes["fused"] else "slaney"
                model["mel"] = {"variant": variant} | dict(model.get("mel", {}))
        return dict(config) | {"model": model}

    def blank(self, trainable: Mapping[str, Any]) -> dict:
        """The tree with zeros for what the store gives, so that nothing random is made for it."""
        return unflatten(
            {
                path: jnp.zeros_like(leaf) if self._has(path) else leaf
                for path, leaf in flatten(trainable).items()
            }
        )

    def rest(self, frozen: Mapping[str, Any]) -> dict:
        """The tree without what the store gives."""
        return unflatten({p: leaf for p, leaf in flatten(frozen).items() if not self._has(p)})

    def fill(self, tree: Mapping[str, Any], shapes: Mapping, places: Mapping, dtype=None) -> dict:
        """`tree` with the store's leaves put in, on their devices.

        shapes, places: trees of ShapeDtypeStructs and shardings of all leaves; dtype: None keeps
        the store's. What fits is for `check` to say.
        """
        if self.store is None:
            return dict(tree)
        flat, shapes, places = flatten(tree), flatten(shapes), flatten(places)
        for path in shapes:
            if self._has(path):
                flat[path] = self._placed(path, shapes[path].shape, places[path], dtype)
        return unflatten({path: flat[path] for path in shapes})

    def adapt(
        self,
        tree: Mapping[str, Any],
        places: Mapping,
        llama: Llama,
        adapter: str | None,
        allowed: str | None = None,
        frozen: Mapping[str, Any] | None = None,
        say: Callable[[str], object] = print,
    ) -> dict:
        """`tree`, the trained leaves, with the LoRA of peft's folder `adapter`, if one is named.

        Where the folder is an export of ours, with all that was trained beside LoRA as well.
        allowed: a base that the adapter may name although this one has another name; frozen: the
        leaves that are not trained, which an export must repeat where it has them. Raises UserError
        when the adapter is not of this decoder, or the config's LoRA another.
        """
        if not adapter:
            return dict(tree)
        lora, leaves = read_peft(adapter, llama, self._adapter_base(allowed), say)
        wanted = llama.lora and dataclasses.replace(llama.lora, dropout=lora.dropout)
        if lora != wanted:
            raise UserError(f"config.model.llama.lora is {llama.lora}, but {adapter} has {lora}")
        leaves = {f"llama/{path}": leaf for path, leaf in leaves.items()}
        leaves |= self._exported_modules(Path(adapter), say)
        flat, places, rest = flatten(tree), flatten(places), flatten(frozen or {})
        others = {path: leaf for path, leaf in leaves.items() if path not in flat}
        leaves = {path: leaf for path, leaf in leaves.items() if path in flat}
        if strange := [path for path, leaf in others.items() if not _same(leaf, rest.get(path))]:
            raise UserError(f"{adapter} has {sample(strange)}, which config.trainable leaves out")
        for path, leaf in leaves.items():
            if leaf.shape != flat[path].shape:
                raise UserError(
                    f"{adapter}: {path} is {list(leaf.shape)}, expected {list(flat[path].shape)}"
                )
            flat[path] = hosts.put(leaf.astype(np.float32), places[path])
        return unflatten(flat)

    def _adapter_base(self, allowed: str | None) -> AdapterBase | None:
        """What the store's language model was published as; None without one."""
        if self.store is None or "llama" not in self.store.parts:
            return None
        part = self.store.parts["llama"]
        names = (part["source"]["path"], part.get("published", {}).get("_name_or_path"))
        digest = base_digest(part["source"]["files"])
        return AdapterBase(tuple(filter(None, names)), digest, allowed)

    def _exported_modules(self, folder: Path, say: Callable) -> dict[str, np.ndarray]:
        """What an export of ours has beside its adapter, by path: connectors, added tokens, ..."""
        if not (folder / MODULES_FILE).is_file():
            return {}
        theirs = Tokenizer.load(folder)
        if self.tokenizer is None or theirs.sha256 != self.tokenizer.sha256:
            raise UserError(
                f"{folder} was exported with another tokenizer than that of the base, so its "
                f"{MODULES_FILE} does not fit; move that file away to start from the LoRA alone"
            )
        _, leaves = read_modules(folder)
        say(f"adapter: {folder}: {len(leaves)} leaves of {MODULES_FILE} come along")
        return leaves

    def check(self, shapes: Mapping[str, Any]) -> None:
        """UserError unless the store fits `shapes`, the model's whole tree, leaf by leaf.

        Every leaf of the store is one of the model's, and every leaf of its parts is in the store,
        but for LoRA and the rows of added tokens: nothing published stays random unsaid.
        """
        if self.store is None:
            return
        flat, wrong = flatten(shapes), []
        for path, leaf in self.store.leaves.items():
            have = flat[path].shape if path in flat else None
            if have != leaf.shape and not (path == POSITIONS and have is not None):
                said = "has none" if have is None else f"has {list(have)}"
                wrong.append(f"{path}: the store has {list(leaf.shape)}, the model {said}")
        for path in flat.keys() - self.store.leaves.keys():
            fresh = is_lora(path) or path == f"llama/{ADDED}"
            if path.split("/")[0] in self.store.parts and not fresh:
                wrong.append(f"{path}: the model has {list(flat[path].shape)}, the store has none")
        if wrong:
            more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise UserError(f"{self.store.folder} does not fit: {'; '.join(wrong[:5])}{more}")

    def given(self, paths: Iterable[str]) -> list[str]:
        """Those of `paths` that the store gives as they are."""
        return [path for path in paths if self._has(path)]

    def describe(self) -> str:
        """One line: the parts, where they came from, and what is fresh."""
        parts = self.store.parts
        told = [f"{name} from {part['source']['path']}" for name, part in parts.items()]
        fresh = [name for name in SECTIONS if name not in parts]
        fresh += ["AVOpT", "AVACE"] + ([] if NAME in parts else ["connectors", "LoRA"])
        return (
            f"weights: {self.store.folder} ({self.store.hash[:12]}): {', '.join(told)}; "
            f"fresh: {', '.join(fresh)}"
        )

    def _has(self, path: str) -> bool:
        return self.store is not None and quantise.source(path) in self.store.leaves

    def _placed(self, path: str, shape: tuple[int, ...], place, dtype) -> jax.Array:
        kernel = quantise.source(path)
        if kernel != path:
            part = quantise.reader(self.store.read(kernel), path.split("/")[-1], self.quantise)
            return jax.make_array_from_callback(shape, place, part)
        if shape == self.store.leaves[path].shape:
            return self.store.place(path, place, dtype)
        table = self.store.read(path)
        side = round((shape[0] - 1) ** 0.5)
        print(f"{path}: positions of {len(table) - 1} patches interpolated to {side * side}")
        resized = resize_positions(table, side).astype(dtype or table.dtype)
        return hosts.put(np.asarray(resized), place)
