"""Published towers with random weights, kept in the hub's layout, and ours of the same numbers."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from meerkat_jax.core.trees import flatten, unflatten
from meerkat_jax.models.clap import ClapAudio
from meerkat_jax.models.clip import ClipVision
from meerkat_jax.weights import clap, clip
from meerkat_jax.weights.open import open_source
from meerkat_jax.weights.table import assembled, plan
from tests.tolerances import TOLERANCES, tolerance

TEXT = {  # a text tower, which is there to be dropped
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "vocab_size": 99, "max_position_embeddings": 10,
}  # fmt: skip
TABLES = {ClipVision: clip, ClapAudio: clap}
Tower = ClipVision | ClapAudio


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter and statistic random and large enough to show, in no training mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                at, spread = (-40.0, 225.0) if ".batch_norm." in name else (0.0, 1.0)  # decibels
                value.normal_(at, 0.3) if "mean" in name else value.uniform_(0.5, 2).mul_(spread)
            elif value.ndim > 1 and value.is_floating_point():
                fan_in = value[0].numel() if name.endswith(".weight") else 4
                value.normal_(0.0, fan_in**-0.5)
            elif value.is_floating_point():
                # of what has one axis all weights are the scales of norms
                value.normal_(1.0 if name.endswith(".weight") else 0.0, 0.2)
    return model.eval()


def shapes(tower: Tower) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf of ours by its path."""
    if isinstance(tower, ClipVision):
        inputs = jnp.zeros((1, tower.image_size, tower.image_size, 3))
    else:
        inputs = jnp.zeros((1, tower.frames, tower.mel_bins))
    leaves = jax.eval_shape(tower.init, jax.random.key(0), inputs)["params"]
    return {path: leaf.shape for path, leaf in flatten(leaves).items()}


def converted(tower: Tower, config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> dict:
    """Our variables of a published state by its hub names, which the config must say as well."""
    table = TABLES[type(tower)]
    fields = table.fields(config, "config")
    assert tower == type(tower)(**fields)
    found = {name: value.shape for name, value in state.items()}
    pieces = plan(table.rows(fields), found, shapes(tower), "state")
    return {"params": unflatten(assembled(pieces, state.__getitem__))}


def read(folder: Path, kind: type[Tower]) -> tuple[Tower, dict, dict[str, np.ndarray]]:
    """(ours, its variables, the tensors by hub name) of a checkpoint; fields go through JSON."""
    source = open_source(folder, TABLES[kind].__name__.rsplit(".", 1)[-1])
    fields = json.loads(json.dumps(TABLES[kind].fields(source.config, str(folder))))
    tower = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    state = {name: tensor.read() for name, tensor in source.tensors.items()}
    return tower, converted(tower, source.config, state), state


def as_numpy(state: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, np.ndarray]:
    """Tensors under their names behind `prefix`: that of a tower in the whole model."""
    return {prefix + name: value.numpy() for name, value in state.items()}


def close(got: Any, expected: Any, name: str, what: str = "") -> None:
    """Within a tolerance, as tensors of one shape."""
    got, expected = (np.asarray(x, np.float32) for x in (got, expected))
    np.testing.assert_allclose(got, expected, err_msg=what, **tolerance(name))


def mostly_close(got: Any, expected: Any, name: str) -> None:
    """99 % of the errors within tolerance "`name` most", all within "`name` all".

    As parts of the expected numbers' root mean square.
    """
    got, expected = (np.asarray(x, np.float32) for x in (got, expected))
    assert got.shape == expected.shape
    error = np.abs(got - expected) / np.sqrt(np.mean(expected**2))
    assert np.quantile(error, 0.99) <= TOLERANCES[f"{name} most"][1]
    assert error.max() <= TOLERANCES[f"{name} all"][1]


@contextlib.contextmanager
def watched(modules: Mapping[str, torch.nn.Module]) -> Iterator[dict[str, tuple]]:
    """While torch runs, {name: (first input, output)} of its modules fill, as numpy arrays."""
    seen: dict[str, tuple] = {}

    def first(value: Any) -> np.ndarray:
        return (value[0] if isinstance(value, tuple) else value).detach().numpy().copy()

    def keep(name: str) -> Any:
        return lambda _, inputs, output: seen.__setitem__(name, (first(inputs), first(output)))

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    yield seen
    for handle in handles:
        handle.remove()


@functools.partial(jax.jit, static_argnums=0)
def run(module: Any, params: dict, *inputs: Any) -> Any:
    """`module.apply`, compiled once for equal modules."""
    return module.apply({"params": params}, *inputs)
