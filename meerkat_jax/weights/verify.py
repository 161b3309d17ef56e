"""Does a store compute what the published model does? torch's beside ours, module by module.

The torch model is what transformers itself loads from the checkpoint, without our readers and
tables, so a tensor that we read wrongly, drop or replace shows. Every module of ours gets the very
input that torch's had, so an error belongs to the module in whose line it stands; the last lines
let ours run through on its own. Of the language model torch holds the checkpoint as it is, one
layer at a time in float32, and we hold one layer.

All in float32. What a store of another dtype loses by rounding is part of the errors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.core.errors import UserError, sample
from meerkat_jax.core.trees import unflatten
from meerkat_jax.models.clip import ClipLayer
from meerkat_jax.models.llama import Block, Mode
from meerkat_jax.nn.rotary import rotary
from meerkat_jax.weights.convert import KINDS, build
from meerkat_jax.weights.open import open_source
from meerkat_jax.weights.source import Source
from meerkat_jax.weights.store import Store

TOKENS = 64  # of the text that the language model reads
COMPARED = {  # begins the names of what is compared
    "clip": ("vision_model.", "visual_projection."),
    "clap": ("audio_model.", "audio_encoder."),
    "llama": ("",),
}


@dataclasses.dataclass(frozen=True)
class Compared:
    """A module's outputs: largest and 99 % absolute error, and the size (rms) of torch's."""

    module: str
    largest: float
    most: float
    size: float

    def __str__(self) -> str:
        """One line of the table."""
        return f"{self.module:<32} {self.largest:10.2e} {self.most:10.2e} {self.size:10.3f}"


HEAD = f"{'module':<32} {'largest':>10} {'99 %':>10} {'rms':>10}"


def compared(module: str, ours: Any, theirs: Any) -> Compared:
    """Errors of one output; UserError if the shapes differ."""
    ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
    if ours.shape != theirs.shape:
        raise UserError(f"{module}: ours gives {ours.shape}, torch's {theirs.shape}")
    error = np.abs(ours - theirs).ravel()
    size = float(np.sqrt(np.mean(np.square(theirs))))
    return Compared(module, float(error.max()), float(np.quantile(error, 0.99)), size)


def verify(
    store: Store, paths: Mapping[str, str | Path], say: Callable[[str], object] = print
) -> list[Compared]:
    """Compare the store's parts with the checkpoints that they came from, by kind; seed 0."""
    found = []
    say(HEAD)
    for kind, path in paths.items():
        source, part = open_source(path, kind), KINDS[kind][0]
        leaves = {p: store.read(p) for p in store.leaves if p.startswith(f"{part}/")}
        fields = dict(store.parts[part]["config"])
        run = {"clip": _clip, "clap": _clap, "llama": _llama}[kind]
        for row in run(source, fields, unflatten(leaves)[part]):
            row = dataclasses.replace(row, module=f"{part}: {row.module}")
            say(str(row))
            found.append(row)
    return found


def _torch() -> Any:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"--verify needs torch and transformers ({error}); pip install -e '.[convert]'"
        ) from None
    return torch, transformers


def loaded(source: Source, kind: str) -> Any:
    """transformers' model of a checkpoint, made by its own `from_pretrained`, in evaluation mode.

    A hub folder and a .gguf file are read from disk by transformers itself, so that what it ties,
    ignores or makes up shows. A layout that it does not know (Meta's, LAION's, the authors') goes
    through the same function as a state dict. The dtype is that of the numbers, float32 where they
    have several. Raises UserError when transformers cannot load it, or a tensor is missing.
    """
    torch, transformers = _torch()
    dtypes = {tensor.dtype.name for tensor in source.tensors.values() if _is_float(tensor.dtype)}
    options: dict[str, Any] = {"attn_implementation": "eager", "output_loading_info": True}
    options["dtype"] = getattr(torch, dtypes.pop() if len(dtypes) == 1 else "float32")
    name, config = _model(source, kind)
    model_class, where = getattr(transformers, name), None
    if source.native and source.path.is_file():
        where, options["gguf_file"] = source.path.parent, source.path.name
    elif source.native:
        where = source.path
    else:
        options["config"] = model_class.config_class(**config)
        options["state_dict"] = {n: _tensor(t.read(), torch) for n, t in source.tensors.items()}
    try:
        model, info = model_class.from_pretrained(where, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{source.path}: transformers cannot load it: {error}") from error
    if missing := sorted(n for n in info["missing_keys"] if n.startswith(COMPARED[kind])):
        raise UserError(
            f"{source.path}: transformers finds no {sample(missing)} and makes them up; there is "
            "nothing to compare with"
        )
    return model.eval()


def _is_float(dtype: np.dtype) -> bool:
    return dtype.name in ("float32", "float16", "bfloat16")


def _model(source: Source, kind: str) -> tuple[str, Mapping[str, Any]]:
    """(name of transformers' class, config for it) of a checkpoint."""
    config = source.config
    if kind == "llama":
        return "LlamaForCausalLM", config
    whole = config["model_type"] == kind
    if kind == "clip":
        if source.native and whole:
            return "CLIPModel", config
        vision = config.get("vision_config", config)
        size = config.get("projection_dim", 512)
        return "CLIPVisionModelWithProjection", vision | {"projection_dim": size}
    if source.native and whole:
        return "ClapModel", config
    projected = any(name.startswith("audio_projection.") for name in source.tensors)
    name = "ClapAudioModelWithProjection" if projected or not source.native else "ClapAudioModel"
    return name, config.get("audio_config", config)


def _tensor(value: np.ndarray, torch: Any) -> Any:
    """A torch tensor of the same bits."""
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(value, order="C"))


@contextlib.contextmanager
def _seen(modules: Mapping[str, Any]) -> Iterator[dict[str, tuple[Any, Any]]]:
    """While torch runs: {name: (first input, first output)} of its modules, as numpy arrays."""
    seen: dict[str, tuple[Any, Any]] = {}

    def first(value: Any) -> np.ndarray:
        return (value[0] if isinstance(value, tuple) else value).detach().numpy()

    def hook(name: str) -> Callable:
        return lambda _, inputs, output: seen.__setitem__(name, (first(inputs), first(output)))

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def _layer(tree: Mapping[str, Any], index: int) -> Any:
    return _wide(jax.tree.map(lambda leaf: leaf[index], tree))


def _clip(source: Source, fields: dict, leaves: dict) -> Iterator[Compared]:
    torch, _ = _torch()
    ours = build("clip", fields)
    theirs = loaded(source, "clip").float()
    pixels = np.random.default_rng(0).standard_normal((1, *[ours.image_size] * 2, 3), np.float32)
    tower = theirs.vision_model
    watched = {f"layer {i}": layer for i, layer in enumerate(tower.encoder.layers)}
    watched |= {"embedding": tower.pre_layrnorm}
    with _seen(watched) as seen, torch.no_grad():
        out = tower(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
        tokens = theirs.visual_projection(out.last_hidden_state[:, 1:])
    got = jax.jit(ours.apply)({"params": _wide(leaves)}, pixels)
    yield compared("embedding", got["embedded"], seen["embedding"][1])
    layer = ClipLayer(ours.heads, ours.mlp_dim)
    run = jax.jit(lambda params, x: layer.apply({"params": params}, x)[0])
    for i in range(ours.depth):
        x, y = seen[f"layer {i}"]
        yield compared(f"layer {i}", run(_layer(leaves["layers"], i), x), y)
    yield compared("all layers", got["hidden"], out.last_hidden_state)
    yield compared("class token", got["class_token"], out.pooler_output)
    yield compared("patch tokens", got["tokens"], tokens)


def _clap(source: Source, fields: dict, leaves: dict) -> Iterator[Compared]:
    torch, _ = _torch()
    ours = build("clap", fields)
    theirs = loaded(source, "clap").float()
    theirs = getattr(theirs, "audio_model", theirs)
    tower = theirs.audio_encoder
    frames = min(1001, ours.frames)  # of ten seconds
    views, rng = 4 if ours.fused else 1, np.random.default_rng(0)
    mel = rng.normal(-30.0, 20.0, (2, views, frames, ours.mel_bins)).astype(np.float32)
    longer = np.array([True, False])
    watched = {f"stage {i}": layer.blocks[-1] for i, layer in enumerate(tower.layers)}
    watched |= {"patches": tower.patch_embed}
    with _seen(watched) as seen, torch.no_grad():
        wanted = theirs(torch.from_numpy(mel), is_longer=torch.from_numpy(longer[:, None]))
    inputs = (mel, longer) if ours.fused else (mel[:, 0],)
    got = jax.jit(ours.apply)({"params": _wide(leaves)}, *inputs)
    for name, mine in [("patches", got["patches"]), *_stages(got["stages"])]:
        yield compared(name, np.reshape(mine, seen[name][1].shape), seen[name][1])
    b, d, rows, columns = wanted.last_hidden_state.shape
    tokens = wanted.last_hidden_state.reshape(b, d, rows * columns).transpose(1, 2)
    yield compared("tokens", got["tokens"], tokens)
    yield compared("pooled", got["pooled"], wanted.pooler_output)


def _stages(stages: tuple) -> list[tuple[str, Any]]:
    return [(f"stage {i}", stage) for i, stage in enumerate(stages)]


def _llama(source: Source, fields: dict, leaves: dict) -> Iterator[Compared]:
    torch, _ = _torch()
    ours = build("llama", fields)
    theirs = loaded(source, "llama")
    ids = np.random.default_rng(0).integers(0, fields["pretrained"], (1, TOKENS))
    layers = {f"layer {i}": layer for i, layer in enumerate(theirs.model.layers)}
    parts = [theirs.model.embed_tokens, *layers.values(), theirs.model.norm, theirs.lm_head]
    with _float32_in_turn(parts), _seen(layers) as seen, torch.no_grad():
        wanted = theirs(torch.from_numpy(ids), use_cache=False).logits

    positions = jnp.arange(TOKENS)[None]
    cosine, sine = rotary(positions, ours.head_width, ours.rope_theta, ours.rope_scaling)
    row = {"cosine": cosine, "sine": sine, "valid": None, "segment_ids": None, "cached": None}
    sizes = (ours.heads, ours.kv_heads, ours.head_width, ours.mlp_dim, ours.norm_eps)
    block = Block(*sizes, None, jnp.float32)
    run = jax.jit(lambda params, x: block.apply({"params": params}, x, row, None, Mode())[0])
    stream = np.asarray(leaves["embedding"][ids], np.float32)  # ours alone
    yield compared("embedding", stream, seen["layer 0"][0])
    for i in range(ours.depth):
        params, (x, y) = _layer(leaves["layers"], i), seen[f"layer {i}"]
        yield compared(f"layer {i}", run(params, x), y)
        stream = run(params, stream)
    yield compared("all layers", stream, y)

    rest = _wide({name: tree for name, tree in leaves.items() if name != "layers"})
    rest["added"] = jnp.zeros((ours.added_rows, ours.width))
    say = jax.jit(lambda rest, x: ours.apply({"params": rest}, x, method=_end))
    yield compared("logits", say(rest, stream)[..., : wanted.shape[-1]], wanted)


@contextlib.contextmanager
def _float32_in_turn(modules: Sequence[Any]) -> Iterator[None]:
    """While torch runs: each module computes in float32, and has its own dtype before and after.

    So a model in half precision takes no more memory than its file and one layer in float32.
    """
    handles = []
    for module in modules:
        own = next(module.parameters()).dtype
        handles.append(module.register_forward_pre_hook(lambda module, _: _cast(module)))
        back = functools.partial(_cast, dtype=own)
        handles.append(module.register_forward_hook(lambda module, *_, back=back: back(module)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cast(module: Any, dtype: Any = None) -> None:
    """Cast in place; None: float32. Hooks must return None."""
    module.to(dtype or _torch()[0].float32)


def _end(model: Any, stream: jax.Array) -> jax.Array:
    """From behind the last layer to the logits."""
    return model.logits(model.norm(stream))
