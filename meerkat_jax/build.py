"""A resolved config and a tokenizer -> the model, its prompt, log-mel and static shapes.

All commands build the model here, whether they train, evaluate or answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.alignment.avace import AVACE
from meerkat_jax.alignment.avopt import AVOpT
from meerkat_jax.core.errors import construct, tuples
from meerkat_jax.data.audio import LogMel
from meerkat_jax.data.image import normalise_pixels
from meerkat_jax.data.prompt import Prompt, make_prompt
from meerkat_jax.data.shapes import Shapes
from meerkat_jax.data.tokenizer import Tokenizer
from meerkat_jax.meerkat import Meerkat
from meerkat_jax.models.clap import ClapAudio
from meerkat_jax.models.clip import ClipVision
from meerkat_jax.models.connectors import AlignConfig
from meerkat_jax.models.llama import Llama, Placement
from meerkat_jax.nn.dense import LoraConfig
from meerkat_jax.nn.rotary import RopeScaling


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The model with its tokenizer, prompt, log-mel and static shapes.

    `start(assembly, params, key, classes)` changes fresh parameters; None: they stay as they are.
    """

    model: Meerkat
    tokenizer: Tokenizer
    prompt: Prompt
    logmel: LogMel
    shapes: Shapes
    placement: Placement | None = None
    start: Callable | None = None

    def with_sharding(self, placement: Placement | None) -> Assembly:
        """The same model with the shardings of `placement` (parallel/placement.py).

        For existing parameters; `init` is for the model without.
        """
        llama = self.model.llama.clone(placement=placement)
        return dataclasses.replace(self, model=self.model.clone(llama=llama), placement=placement)

    def gather_for_use(self, params: dict) -> dict:
        """Parameters gathered for use; the decoder gathers its layers one by one."""
        if self.placement is None:
            return params
        layers = params["llama"]["layers"]
        rest = {name: leaf for name, leaf in params["llama"].items() if name != "layers"}
        whole = self.placement.gather_params(params | {"llama": rest})
        return whole | {"llama": whole["llama"] | {"layers": layers}}

    def inputs(self, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """On the device: image uint8[B, H, W, 3] and audio float[B, samples] -> pixels, mel.

        A batch without audio, float[B, 0], gets silence.
        """
        audio = batch["audio"]
        if audio.shape[1] == 0:
            samples = round(self.shapes.seconds * self.shapes.sample_rate)
            audio = jnp.zeros((len(audio), samples), audio.dtype)
        return normalise_pixels(batch["image"]), self.logmel(audio)

    def encode(self, params: dict, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The towers' image and audio tokens of a batch, as in `Meerkat.encode`."""
        tokens = self.model.apply({"params": params}, *self.inputs(batch), method="encode")
        return jax.tree.map(self.placement.constrain_batch, tokens) if self.placement else tokens

    def init(self, key: jax.Array, classes: Sequence[str] = ()) -> dict:
        """Fresh parameters, a plain nested dict.

        `classes`, the class names of the data, are for `start` alone; without them only shapes are
        right.
        """
        side, samples = self.shapes.image_size, round(self.shapes.seconds * self.shapes.sample_rate)
        batch = {
            "image": np.zeros((1, side, side, 3), np.uint8),
            "audio": np.zeros((1, samples), np.float32),
        }

        def fresh(key):
            tokens = jnp.zeros((1, 1, 4), jnp.int32)
            params = self.model.init(key, *self.inputs(batch), tokens)["params"]
            return self.start(self, params, key, classes) if self.start else params

        return jax.jit(fresh)(key)


def assemble(
    config: Mapping,
    tokenizer: Tokenizer,
    initialisers: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    start: Callable | None = None,
) -> Assembly:
    """Build the model that `config` (data, model, prompt) describes.

    initialisers: further arguments of the modules, by their section of `config["model"]`; start:
    see `Assembly`.
    """
    parts, data = config["model"], config["data"]
    prompt = make_prompt(tokenizer, config["prompt"])
    llama = {**parts["llama"], **initialisers.get("llama", {})} | {
        "vocab_size": tokenizer.padded_vocab_size,
        "lora": _maybe(LoraConfig, parts["llama"], "lora"),
        "rope_scaling": _maybe(RopeScaling, parts["llama"], "rope_scaling"),
    }

    def part(kind: Callable, key: str) -> Any:
        fields = tuples(parts[key]) | initialisers.get(key, {})
        return construct(kind, fields, f"model.{key}")

    model = Meerkat(
        image_tower=part(ClipVision, "image"),
        audio_tower=part(ClapAudio, "audio"),
        llama=construct(Llama, llama, "model.llama"),
        avopt=part(AVOpT, "avopt"),
        avace=part(AVACE, "avace"),
        prefix=prompt.prefix,
        connector=parts["connector"],
        image_pool=parts.get("image_pool", 1),
        conv_align=construct(AlignConfig, tuples(parts.get("conv_align", {})), "model.conv_align"),
        words=tokenizer.vocab_size,
        position_embedding=parts.get("position_embedding", False),
        **initialisers.get("model", {}),
    )
    shapes = Shapes(
        image_size=parts["image"]["image_size"],
        sample_rate=data["sample_rate"],
        seconds=data["seconds"],
        num_packs=data["num_packs"],
        pack_length=data["pack_length"],
        max_target_tokens=data["max_target_tokens"],
        max_answer_tokens=data["max_answer_tokens"],
        max_boxes=data.get("max_boxes", 4),
        max_labels=data.get("max_labels", 4),
        pack_lengths=tuple(data.get("pack_lengths", ())),
    )
    logmel = construct(LogMel, {"sample_rate": data["sample_rate"], **parts["mel"]}, "model.mel")
    return Assembly(model, tokenizer, prompt, logmel, shapes, start=start)


def _maybe(kind: Callable, llama: Mapping, key: str) -> Any:
    """The entry `key` of the language model's section as a `kind`; None without one."""
    own = llama.get(key)
    return construct(kind, tuples(own), f"model.llama.{key}") if own else None
