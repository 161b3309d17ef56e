"""A tiny training step over eight simulated devices beside the same on one: run by test_placement.

    python -m tests.training.eight 2 2 2    (data, fsdp, tensor)

Prints JSON: largest differences of the metrics and of the new parameters, collectives by kind.
"""

import json
import sys

import jax
import numpy as np

from meerkat_jax.aot.plan import plan
from meerkat_jax.aot.program import collectives
from meerkat_jax.core import config as configs
from meerkat_jax.mini import templates
from meerkat_jax.mini.tokenizer import build_mini_tokenizer
from meerkat_jax.parallel import placement

BATCH = 8


def config() -> dict:
    """tests/tiny.py with sizes that divide by two."""
    config = configs.to_json(configs.load_config("tests/tiny.py"))
    config["batch"] = BATCH
    config["model"]["llama"] |= {"depth": 2, "heads": 4, "kv_heads": 2, "width": 32}
    return config


def batch_of(described: dict, tokens: int) -> dict[str, np.ndarray]:
    """Random inputs; every run ends in an answer of eight tokens."""
    rng = np.random.default_rng(0)
    make = {
        "image": lambda shape: rng.integers(0, 255, shape),
        "audio": lambda shape: rng.normal(0, 0.1, shape),
        "tokens": lambda shape: rng.integers(0, tokens, shape),
        "segment_ids": np.zeros,
        "loss_mask": lambda shape: np.broadcast_to(np.arange(shape[2]) >= shape[2] - 8, shape),
        "boxes": lambda shape: np.broadcast_to([0.2, 0.2, 0.6, 0.7], shape),
        "matched": np.ones,
        "image_labels": np.zeros,
        "audio_labels": np.zeros,
    }
    return {name: make[name](leaf.shape).astype(leaf.dtype) for name, leaf in described.items()}


def step(mesh: jax.sharding.Mesh) -> tuple[dict, dict, str]:
    """(trained leaves after a step, its metrics, the program's text)."""
    tokenizer = build_mini_tokenizer(["I see a cat."], ("cat", "dog"), templates.PHRASES)
    made = plan(config(), tokenizer, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, (made.state, made.frozen, made.batch))
    state, frozen = jax.jit(made.initialise, out_shardings=places[:2])(jax.random.key(0))
    batch = jax.device_put(batch_of(made.batch, tokenizer.vocab_size), places[2])
    compiled = made.trace().lower().compile()
    state, metrics = compiled(state, frozen, batch)
    return *jax.device_get((state["trainable"], metrics)), compiled.as_text()


def main(data: int, fsdp: int, tensor: int) -> dict:
    """See the module's docstring."""
    alone, wanted, _ = step(placement.make_mesh({"data": 1}, jax.devices()[:1]))
    shape = {"data": data, "fsdp": fsdp, "tensor": tensor}
    trained, found, text = step(placement.make_mesh(shape))
    pairs = zip(jax.tree.leaves(trained), jax.tree.leaves(alone), strict=True)
    return {
        "metrics": {k: float(abs(found[k] - wanted[k]) / abs(wanted[k])) for k in wanted},
        "parameters": max(float(np.abs(a - b).max()) for a, b in pairs),
        "collectives": {c.kind: c.calls for c in collectives(text)},
    }


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
