"""A small published decoder and ours with the same weights, LoRA and added tokens besides."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch

from meerkat_jax.core.trees import unflatten
from meerkat_jax.data.tokenizer import Tokenizer
from meerkat_jax.models.llama import Llama
from meerkat_jax.nn.dense import LoraConfig
from meerkat_jax.report.model_card import write_card
from meerkat_jax.weights import adapters, llama, table
from meerkat_jax.weights.export import About, export
from meerkat_jax.weights.pretrained import pretrained_tokenizer
from tests.tolerances import tolerance
from tests.weights import published

LORA = LoraConfig(rank=3, alpha=6.0, dropout=0.05, targets=("q", "v", "down"))
SCALED = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
KINDS = {
    "own head": {},
    "tied": {"tie_word_embeddings": True},
    "scaled": {"rope_parameters": SCALED, "max_position_embeddings": 128, "head_dim": 12},
}
CONFIG = {"name": "tiny", "data": {"kind": "mini", "task_weights": {"avc": 0}}}
IDS = {"bos": 1, "eos": 2, "pad": 2}


@dataclasses.dataclass(frozen=True)
class Base:
    """What was published in `folder` with config `hub`; ours, and its leaves by path."""

    folder: Path
    hub: dict[str, Any]
    model: Llama
    leaves: dict[str, np.ndarray]
    tokenizer: Tokenizer

    @property
    def halves(self) -> dict[str, np.ndarray]:
        """The leaves of LoRA alone."""
        return {path: leaf for path, leaf in self.leaves.items() if adapters.is_lora(path)}

    def given(self) -> dict[str, np.ndarray]:
        """The leaves that were published."""
        apart = {"added", *self.halves}
        return {path: leaf for path, leaf in self.leaves.items() if path not in apart}


def make(kind: str, folder: Path) -> Base:
    """Publish a decoder, one of `KINDS`, in `folder`, and adapt ours at random."""
    theirs = published.llama(folder, **KINDS[kind])
    tokenizer = pretrained_tokenizer(folder)
    hub = json.loads((folder / "config.json").read_text())
    fields = llama.as_module(llama.fields(hub, "test"))
    model = Llama(**fields | {"vocab_size": tokenizer.padded_vocab_size}, lora=LORA)
    wanted, rng = adapters.shapes(model), np.random.default_rng(0)
    own = {p: shape for p, shape in wanted.items() if p == "added" or adapters.is_lora(p)}
    leaves = {path: 0.2 * rng.standard_normal(shape, np.float32) for path, shape in own.items()}
    state = arrays(dict(theirs.named_parameters()))
    sizes = {name: value.shape for name, value in state.items()}
    target = {path: shape for path, shape in wanted.items() if path not in own}
    pieces = table.plan(llama.rows(fields), sizes, target, "test")
    leaves |= table.assembled(pieces, state.__getitem__)
    return Base(folder, hub, model, leaves, tokenizer)


def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """torch's tensors as numpy's, bit for bit."""

    def one(x: torch.Tensor) -> np.ndarray:
        x = x.detach().contiguous()
        wide = x.dtype == torch.bfloat16
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if wide else x.numpy()

    return {name: one(value) for name, value in tensors.items()}


@functools.partial(jax.jit, static_argnames="model")
def logits(model: Llama, leaves: dict, ids: jax.Array) -> jax.Array:
    """Token ids int[B, S] -> logits float32[B, S, C] of ours."""

    def whole(llama: Llama, ids: jax.Array) -> jax.Array:
        hidden = llama(llama.embed(ids), jnp.arange(ids.shape[1])[None])["hidden"]
        return llama.logits(hidden)

    return model.apply({"params": unflatten(leaves)}, ids, method=whole)


def torch_logits(model, ids: np.ndarray) -> np.ndarray:
    """The same of torch's."""
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.float().numpy()


def sample(model: Llama, added: bool = False) -> np.ndarray:
    """Token ids int[2, 17], with added ones among them or not."""
    top = model.vocab_size if added else model.pretrained
    ids = np.random.default_rng(1).integers(0, top, (2, 17))
    if added:
        ids[:, 3] = model.pretrained + 1
    return ids


def same(ours, theirs, pieces: int, name: str = "logits") -> None:
    """Compare logits of the published pieces."""
    np.testing.assert_allclose(
        np.asarray(ours)[..., :pieces], theirs[..., :pieces], **tolerance(name)
    )


def whole(base: Base) -> tuple[dict, set]:
    """All parameters of a Meerkat by path, and which of them the base gives."""
    params = {f"llama/{path}": leaf for path, leaf in base.leaves.items()}
    given = {f"llama/{path}" for path in base.given()}
    params |= {
        "image_connector/outer/kernel": np.ones((3, 4), np.float32),
        "avace/audio_score/bias": np.ones(1, np.float32),
        "image_tower/position_embedding": np.ones((5, 3), np.float32),
        "audio_tower/norm/scale": np.ones(3, np.float32),
    }
    return params, given | {"image_tower/position_embedding"}


def about(base: Base, **more) -> About:
    """What the card tells."""
    source = {"path": str(base.folder), "files": {}}
    parts = {"llama": {"kind": "llama", "published": base.hub, "source": source}}
    return About(CONFIG, step=7, base=str(base.folder), hash="abc123", parts=parts, **more)


def exported(base: Base, kind: str, out: Path, **more) -> Path:
    """An export of the fixture."""
    params, given = whole(base)
    export(
        kind,
        out,
        base.model,
        params,
        given,
        base.tokenizer,
        about(base),
        write_card,
        say=len,
        **more,
    )
    return out
