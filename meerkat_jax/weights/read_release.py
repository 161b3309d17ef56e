"""A model that the authors' code trained and saved: its towers, language model and connectors.

Their trainer saves all of its model beside a config.json of model_type "mm_llms": two CLIPs, CLAP's
audio tower, the language model (in peft's wrapping where LoRA was on), and what lies between. Of
that an image passes through "video_encoder", "project_video", "transform_video_to_hidden" and
"video_align_attention"; the like named "image" and the other attentions are computed or kept, but
nothing that is answered depends on them. So they are dropped here, by name; a tensor that their
model does not have is an error. Their cross-attention is among the dropped: a model whose
constants were edited so that it replaces the image's tokens answers otherwise than ours will.

`read_release` gives each part under its names on the hub, for the tables of the other modules; what
has no place on the hub goes through `rows`. AVOpT and AVACE are not theirs and start fresh: with
`avace.mark` off the language model gets just what theirs gave it (models/connectors.py).

Source: github schowdhury671/meerkat at 0b2a550, modeling.py (names), run_clm_llms.py (what is
saved), preprocess_data_supervised.py (added tokens).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights.adapters import MODULES
from meerkat_jax.weights.files import refuse
from meerkat_jax.weights.hub import CONFIG, read_hub
from meerkat_jax.weights.llama import ADAPTER, adapter_rows
from meerkat_jax.weights.source import Source, Tensor
from meerkat_jax.weights.table import LINEAR, Change, Row, assembled, plan

MODEL_TYPE = "mm_llms"
# Tokens behind the published vocabulary, in their order, which is ours (weights/pretrained.py).
ADDED = ("<image>", "</image>", "<audio>", "</audio>", "<video>", "</video>", "[PAD]")
# Their image stands between the markers of a video, ours between those of an image, so these two
# pairs change places.
PLACES = np.array([4, 5, 2, 3, 0, 1, 6])
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
SECTIONS = {"clip": "image_config", "clap": "audio_config", "llama": "llm_config"}
PREFIXES = {"clip": ("video_encoder.", ""), "clap": ("audio_encoder.", "audio_model.")}
LLM, WRAPPED = "llm.", "llm.base_model.model."
MORE = f"{LLM}{TABLES[0]}.added"  # the rows of ADDED, cut from the table
JOINED = re.compile(r"(?:video|audio)_align_attention\.in_proj_(?:weight|bias)")
CONNECTORS = {"image": "video", "audio": "audio"}  # ours -> theirs
LORA = {"lora_alpha": 32, "lora_dropout": 0.1}  # fixed in their code; the rank shows in the shapes

ATTENTION = (
    "in_proj_weight",
    "in_proj_bias",
    "bias_k",
    "bias_v",
    "out_proj.weight",
    "out_proj.bias",
)
IDLE = (
    "image_encoder.*",
    "logit_scale",
    "temporal_position_embeddings.weight",
    *(
        f"{name}.{half}"
        for name in ("layer_norm", "project_image", "transform_image_to_hidden")
        for half in ("weight", "bias")
    ),
    *(
        f"{name}_attention.{part}"
        for name in ("temporal_self", "video_long_self", "video_audio_cross", "image_align")
        for part in ATTENTION
    ),
)


def is_release(folder: Path) -> bool:
    """Whether this is a folder that the authors' trainer wrote, by its config.json."""
    try:
        return f'"{MODEL_TYPE}"' in (folder / CONFIG).read_text()
    except (OSError, UnicodeDecodeError):
        return False


def read_release(folder: str | Path, wrong: Sequence[str] = ()) -> dict[str, Source]:
    """All parts, unread: "clip", "clap", "llama", "peft" (LoRA, perhaps empty) and "modules".

    wrong: what was found wrong before. Raises one UserError for a folder that is no such model, or
    not whole, and for a config under which its connectors are not ours.
    """
    folder, wrong = Path(folder), list(wrong)
    whole = read_hub(folder, (MODEL_TYPE,), wrong)
    state = _own_names(whole.tensors)
    parts: dict[str, dict[str, Tensor]] = {
        kind: {} for kind in ("clip", "clap", "llama", "peft", "modules")
    }
    for name, tensor in state.items():
        for kind, new, piece in _placed(name, tensor):
            if new in parts[kind]:
                wrong.append(f"tensor {name} is there twice, with and without peft's wrapping")
            parts[kind][new] = piece
    wrong += _config_errors(whole.config) + _vocabulary_errors(whole.config, state)
    refuse(folder, wrong)
    configs = {kind: dict(whole.config[section]) for kind, section in SECTIONS.items()}
    configs["llama"]["vocab_size"] -= len(ADDED)
    configs |= {"peft": _adapter(parts["peft"]), "modules": whole.config}
    return {
        kind: Source(folder, configs[kind], tensors, whole.files) for kind, tensors in parts.items()
    }


def fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of `models.connectors.AlignConfig` for the config.json of a release.

    Raises UserError naming the fields that are missing or make no sense.
    """
    if wrong := _config_errors(config):
        raise UserError(f"{where}: {'; '.join(wrong)}")
    windows = {
        ours: (config[f"{theirs}_conv_kernel"], config[f"{theirs}_conv_stride"])
        for ours, theirs in CONNECTORS.items()
    }
    return {**windows, "heads": 2 * config["attention_heads"]}


def options(parts: Mapping[str, Source]) -> dict[str, Any]:
    """What config.model must say so that the model takes what `read_release` found."""
    found = fields(parts["modules"].config, str(parts["modules"].path))
    model: dict[str, Any] = {"connector": "conv_align", "conv_align": found}
    if parts["peft"].tensors:
        said = parts["peft"].config
        targets = tuple(MODULES[name] for name in said["target_modules"])
        model["llama"] = {
            "lora": {
                "rank": said["r"],
                "alpha": float(said["lora_alpha"]),
                "dropout": said["lora_dropout"],
                "targets": targets,
            }
        }
    return model


def rows(fields: Mapping[str, Any], added: int | None) -> tuple[Row, ...]:
    """The table of "modules": both connectors, and `added` rows of llama/added (None: not taken).

    fields: as of this module's function. Rows beyond those of `ADDED` are zero.
    """
    found = [Row(name, None) for name in IDLE]
    for ours, theirs in CONNECTORS.items():
        found += [
            Row(name, f"{ours}_connector/{path}", change)
            for name, path, change in _connector(theirs, fields[ours][0])
        ]
    if added is None:
        return (*found, Row(MORE, None))
    missing = ((0, added - len(ADDED)), (0, 0))
    filled = Change(
        lambda x: (jnp if isinstance(x, jax.Array) else np).pad(x[PLACES], missing),
        lambda x: x[PLACES],
    )
    return (*found, Row(MORE, "llama/added", filled))


def leaves(
    parts: Mapping[str, Source], shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """What a release gives our model beside towers and language model: connectors, tokens, LoRA.

    shapes: those of the whole model, by path. Raises one UserError for all tensors that are
    unknown, missing or misshaped, and all leaves of these modules that stay unfilled.
    """
    modules, peft = parts["modules"], parts["peft"]
    found, where = fields(modules.config, str(modules.path)), str(modules.path)
    added = shapes["llama/added"][0] if "llama/added" in shapes else None
    mine = {
        path: shape
        for path, shape in shapes.items()
        if path.startswith(tuple(f"{name}_connector/" for name in CONNECTORS))
        or path == "llama/added"
    }
    tables = [(modules, rows(found, added), mine)]
    if peft.tensors:
        targets = [MODULES[name] for name in peft.config["target_modules"]]
        own = [Row(row.source, f"llama/{row.target}", row.change) for row in adapter_rows(targets)]
        halves = {path: s for path, s in shapes.items() if path.endswith(("/lora_a", "/lora_b"))}
        tables.append((peft, own, halves))
    result, wrong = {}, []
    for source, table, target in tables:
        try:
            pieces = plan(table, {n: t.shape for n, t in source.tensors.items()}, target, where)
        except UserError as error:
            wrong.append(str(error))
            continue
        if not wrong:
            result |= assembled(pieces, lambda name, source=source: source.tensors[name].read())
    if wrong:
        raise UserError("; ".join(wrong))
    return result


def _own_names(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without what a wrapper of several devices, and the hub's reader, put before their names."""
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    # The reader takes "audio_encoder." for an audio tower that was saved alone.
    return {name.removeprefix("audio_model."): tensor for name, tensor in state.items()}


def _connector(theirs: str, kernel: int) -> Iterator[tuple[str, str, Change]]:
    """(their name, our path, change) of each tensor of a connector."""
    convolution = Change(  # [out, in, kernel] as the product of a window, taps one after another
        lambda x: x.transpose(2, 1, 0).reshape(-1, len(x)),
        lambda x: x.reshape(kernel, -1, x.shape[1]).transpose(2, 1, 0),
    )
    single = Change(lambda x: x[0, 0], lambda x: x[None, None])
    same = Change(lambda x: x, lambda x: x)
    attention = f"{theirs}_align_attention"
    dense = {f"project_{theirs}": ("conv", convolution)}
    dense |= {f"transform_{theirs}_to_hidden": ("linear", LINEAR)}
    dense |= {f"{attention}.out_proj": ("o", LINEAR)}
    for name, (path, change) in dense.items():
        yield f"{name}.weight", f"{path}/kernel", change
        yield f"{name}.bias", f"{path}/bias", same
    for part in "qkv":
        yield f"{attention}.in_proj_weight.{part}", f"{part}/kernel", LINEAR
        yield f"{attention}.in_proj_bias.{part}", f"{part}/bias", same
    for part in "kv":
        yield f"{attention}.bias_{part}", f"bias_{part}", single


def _placed(name: str, tensor: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """(part, name there, tensor) of a tensor, or of the several that are joined in it."""
    for kind, (prefix, hub) in PREFIXES.items():
        if name.startswith(prefix):
            yield kind, hub + name.removeprefix(prefix), tensor
            return
    if name.startswith(LLM):
        wrapped = name.startswith(WRAPPED)
        yield from _spoken(name.removeprefix(WRAPPED if wrapped else LLM), tensor, wrapped)
    elif JOINED.fullmatch(name):
        third = -(-tensor.shape[0] // 3)  # of a shape that is no three, the last is too small
        for i, part in enumerate("qkv"):
            yield "modules", f"{name}.{part}", _rows(tensor, i * third, (i + 1) * third)
    else:
        yield "modules", name, tensor


def _spoken(name: str, tensor: Tensor, wrapped: bool) -> Iterator[tuple[str, str, Tensor]]:
    """`_placed` for a tensor of the language model, whose name begins behind that of the model."""
    half = re.fullmatch(r"(.+\.lora_[AB])\.default\.weight", name) if wrapped else None
    if half:
        yield "peft", f"{ADAPTER}{half[1]}.weight", tensor
        return
    if wrapped:
        name = name.replace(".base_layer.", ".")  # peft since 0.7
    if name not in TABLES:
        yield "llama", name, tensor
        return
    pieces = tensor.shape[0] - len(ADDED)
    yield "llama", name, _rows(tensor, 0, pieces)
    if name == TABLES[0]:  # what the head has for these tokens is not taken: ours says none of them
        yield "modules", MORE, _rows(tensor, pieces, tensor.shape[0])


def _rows(tensor: Tensor, first: int, last: int) -> Tensor:
    """Rows of a tensor, as a tensor."""
    first, last = (min(max(place, 0), tensor.shape[0]) for place in (first, last))
    read: Callable[[], np.ndarray] = functools.partial(_cut, tensor.read, first, last)
    return dataclasses.replace(tensor, shape=(last - first, *tensor.shape[1:]), read=read)


def _cut(read: Callable[[], np.ndarray], first: int, last: int) -> np.ndarray:
    return read()[first:last].copy()


def _adapter(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The adapter_config.json that peft would write."""
    targets = [name for name in MODULES if any(f".{name}.lora_" in tensor for tensor in tensors)]
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name}
    return {"peft_type": "LORA", "r": max(ranks, default=0), "target_modules": targets, **LORA}


def _config_errors(config: Mapping[str, Any]) -> list[str]:
    names = [
        f"{theirs}_conv_{size}" for theirs in CONNECTORS.values() for size in ("kernel", "stride")
    ]
    wrong = [
        f"{CONFIG}: {name} is {config.get(name)!r}, expected a whole number above 0"
        for name in (*names, "attention_heads")
        if type(config.get(name)) is not int or config[name] < 1
    ]
    if config.get("n_frames") != 1:
        wrong.append(
            f"{CONFIG}: n_frames is {config.get('n_frames')!r}, supported: 1, a single image"
        )
    return wrong + [
        f"{CONFIG}: {name} is {type(config.get(name)).__name__}, expected an object of fields"
        for name in SECTIONS.values()
        if not isinstance(config.get(name), Mapping)
    ]


def _vocabulary_errors(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[str]:
    """The tables' rows are those of the config, and of these the last are `ADDED`."""
    said = config.get("llm_config")
    size = said.get("vocab_size") if isinstance(said, Mapping) else None
    wrong = []
    for table in TABLES:
        for name in (LLM + table, WRAPPED + table):
            if name in state and state[name].shape[0] != size:
                wrong.append(
                    f"{name} has {state[name].shape[0]} rows, llm_config.vocab_size is {size}"
                )
    if isinstance(size, int) and size <= len(ADDED):
        wrong.append(f"{CONFIG}: llm_config.vocab_size is {size}, expected more than {len(ADDED)}")
    return wrong
