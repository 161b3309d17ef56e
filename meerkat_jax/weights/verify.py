"""Does a store compute what the published model does? torch's beside ours, module by module.

The torch model is built from the source's own config and filled by hub name, without our tables, so
a wrong row shows. Every module of ours gets the very input that torch's had, so an error belongs to
the module in whose line it stands; the last lines let ours run through on its own. The language
model goes layer by layer, and neither side ever holds more than one: any size can be verified.

All in float32. What a store of another dtype loses by rounding is part of the errors.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.errors import UserError
from meerkat_jax.models.clip import ClipLayer
from meerkat_jax.models.llama import Block, Mode
from meerkat_jax.models.rotary import rotary
from meerkat_jax.training.params import unflatten
from meerkat_jax.weights.convert import KINDS, build
from meerkat_jax.weights.open import open_source
from meerkat_jax.weights.source import Source
from meerkat_jax.weights.store import Store

TOKENS = 64  # of the text that the language model reads


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


def _filled(model: Any, source: Source, prefix: str = "") -> Any:
    """torch's model with the source's numbers, strictly: every parameter of it is in the source."""
    torch, _ = _torch()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("position_ids", "relative_position_index", "num_batches_tracked")):
                continue
            if prefix + name not in source.tensors:
                raise UserError(
                    f"{source.path}: no tensor {prefix + name}, which torch's model has"
                )
            found = np.asarray(source.tensors[prefix + name].read(), np.float32)
            value.copy_(torch.from_numpy(np.ascontiguousarray(found)).reshape(value.shape))
    return model.float().eval()


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
    torch, transformers = _torch()
    ours = build("clip", fields)
    config = dict(source.config)
    config = config.get("vision_config", config) | {"projection_dim": fields["projection_dim"]}
    theirs = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**config))
    theirs = _filled(theirs, source)
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
    torch, transformers = _torch()
    ours = build("clap", fields)
    config = dict(source.config)
    config = config.get("audio_config", config)
    theirs = transformers.ClapAudioModel(transformers.ClapAudioConfig(**config))
    tower = _filled(theirs, source, "audio_model.").audio_encoder
    views, rng = 4 if ours.fused else 1, np.random.default_rng(0)
    mel = rng.normal(-30.0, 20.0, (2, views, 1001, ours.mel_bins)).astype(np.float32)
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
    torch, transformers = _torch()
    from transformers.models.llama import modeling_llama as theirs

    config = transformers.LlamaConfig(**dict(source.config) | {"attn_implementation": "eager"})
    ours = build("llama", fields)
    ids = np.random.default_rng(0).integers(0, fields["pretrained"], (1, TOKENS))
    embedding = np.asarray(source.tensors["model.embed_tokens.weight"].read()[ids], np.float32)
    embedded = np.asarray(leaves["embedding"][ids], np.float32)
    yield compared("embedding", embedded, embedding)

    turn = theirs.LlamaRotaryEmbedding(config)
    places = torch.arange(TOKENS)[None]
    after = torch.full((TOKENS, TOKENS), float("-inf")).triu(1)[None, None]
    positions = jnp.arange(TOKENS)[None]
    cosine, sine = rotary(positions, ours.head_width, ours.rope_theta, ours.rope_scaling)
    row = {"cosine": cosine, "sine": sine, "valid": None, "owners": None, "seen": None}
    sizes = (ours.heads, ours.kv_heads, ours.head_width, ours.mlp_dim, ours.norm_eps)
    block = Block(*sizes, None, jnp.float32)
    run = jax.jit(lambda params, x: block.apply({"params": params}, x, row, None, Mode())[0])
    stream, x = embedded, torch.from_numpy(embedding)  # ours alone, and torch's
    for i in range(ours.depth):
        layer = _filled(theirs.LlamaDecoderLayer(config, i), source, f"model.layers.{i}.")
        with torch.no_grad():
            y = layer(x, attention_mask=after, position_embeddings=turn(x, places))
        y = y[0] if isinstance(y, tuple) else y
        params = _layer(leaves["layers"], i)
        yield compared(f"layer {i}", run(params, x.numpy()), y)
        stream, x = run(params, stream), y
    yield compared("all layers", stream, x)

    norm = _filled(
        theirs.LlamaRMSNorm(config.hidden_size, config.rms_norm_eps), source, "model.norm."
    )
    head = "model.embed_tokens.weight" if ours.tied else "lm_head.weight"
    head = np.asarray(source.tensors[head].read(), np.float32)
    with torch.no_grad():
        wanted = norm(x).numpy() @ head.T
    rest = _wide({name: tree for name, tree in leaves.items() if name != "layers"})
    rest["added"] = jnp.zeros((ours.more_rows, ours.width))
    say = jax.jit(lambda rest, x: ours.apply({"params": rest}, x, method=_end))
    yield compared("logits", say(rest, stream)[..., : wanted.shape[-1]], wanted)


def _end(model: Any, stream: jax.Array) -> jax.Array:
    """From behind the last layer to the logits."""
    return model.logits(model.norm(stream))
