"""The 7B-shaped LoRA step: tokens per second, and what part of the chip's matrix rate is used.

Llama-2-7B's sizes with random bfloat16 weights made on the device. Model FLOPs count what a step of
a frozen base needs and no more: 2 per weight and token forward, 2 for the gradient of the
activations, 2 more for weights that are trained; attention's products over the causal half of the
square, three times (forward, two gradients). What rematerialisation computes again does not count.
Both sides are tried with few settings each (what to save for the backward pass, which attention);
the fastest of either are then timed in turns.

Letters: B batch, S sequence, D width, L layers, M width of the MLP, C vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import lora
from benchmarks.measure import Pair, seconds
from meerkat_jax.core.trees import count, flatten, split, unflatten
from meerkat_jax.models.llama import Llama

PEAK = 989e12  # dense bfloat16 FLOP/s of an H100 or H200 (SXM), by its data sheet
SIZES = {
    "real": {"vocab_size": 32000, "width": 4096, "depth": 32, "heads": 32, "kv_heads": 32,
             "mlp_dim": 11008},
    "tiny": {"vocab_size": 192, "width": 64, "depth": 2, "heads": 4, "kv_heads": 4, "mlp_dim": 96},
}  # fmt: skip
CASES = {"lora7b_512": {"real": 512, "tiny": 16}, "lora7b_1024": {"real": 1024, "tiny": 32}}
TOKENS = {"real": 8192, "tiny": 128}  # of a step, whatever the sequence, unless told otherwise
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Try:
    """One setting of our side: `Llama.remat` and `Llama.attention`."""

    remat: str
    attention: str = "plain"

    def __str__(self) -> str:
        return f"remat {self.remat}, attention {self.attention}"


OUR_TRIES = (
    Try("products", "cudnn"),
    Try("weights", "cudnn"),
    Try("products"),
    Try("qkvo", "cudnn"),
    Try("full"),
)


def weights(model: Llama) -> dict[str, Any]:
    """Random parameters {"trainable", "frozen"} made on the device: frozen ones in `model.dtype`.

    Norms and LoRA's second half are what they are at the start, the rest has a spread of .02.
    """
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    tree = jax.eval_shape(
        lambda ids: model.init(jax.random.key(0), ids, method=lora.logits)["params"], ids
    )

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def fill(path: str, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
        dtype = jnp.float32 if "lora" in path else model.dtype
        if path.endswith("scale"):
            return jnp.ones(shape, dtype)
        if path.endswith("lora_b"):
            return jnp.zeros(shape, dtype)
        return (0.02 * jax.random.normal(key, shape, jnp.bfloat16)).astype(dtype)

    key = jax.random.key(0, impl="rbg")  # fast, and good enough for weights that mean nothing
    leaves = {
        path: fill(path, leaf.shape, jax.random.fold_in(key, i))
        for i, (path, leaf) in enumerate(flatten(tree).items())
    }
    return split(unflatten(leaves), [lora.ADAPTED])


def step_flops(
    params: Mapping[str, Any], sizes: Mapping[str, Any], tokens: int, sequence: int
) -> float:
    """Model FLOPs of one step of `tokens` tokens in rows of `sequence`; see the module's text."""
    flat = flatten(params["frozen"])
    base = sum(math.prod(leaf.shape) for path, leaf in flat.items() if path.endswith("kernel"))
    trained = count(params["trainable"])
    pairs = (sequence + 1) / 2  # tokens that a token attends to, on the mean
    attention = 3 * 4 * pairs * sizes["width"] * sizes["depth"]
    return tokens * (4 * base + 6 * trained + attention)


class Large:
    """The weights of both sides, kept while settings and sequences change."""

    def __init__(self, size: str, device: str, tokens: int, say: Callable[[str], Any]):
        """Make both models; `size` "real" or "tiny", `tokens` of a step; `say` prints a line."""
        self.sizes, self.tokens, self.device, self.say = SIZES[size], tokens, device, say
        start = time.perf_counter()
        self.model = Llama(**self.sizes, lora=lora.LORA, dtype=jnp.bfloat16)
        self.params = jax.block_until_ready(weights(self.model))
        say(f"our weights: {time.perf_counter() - start:.1f} s")
        start = time.perf_counter()
        where = "cuda" if device == "gpu" else "cpu"
        self.theirs = lora.adapted(lora.peer_model(self.sizes, where, narrow=True))
        say(f"their weights: {time.perf_counter() - start:.1f} s")

    def ids(self, sequence: int) -> np.ndarray:
        """Random tokens int32[B, S]."""
        shape = (self.tokens // sequence, sequence)
        return np.random.default_rng(0).integers(0, self.sizes["vocab_size"], shape, np.int32)

    def ours(self, sequence: int, how: Try) -> lora.OurTraining:
        """Our step, compiled."""
        model = self.model.clone(remat=how.remat, attention=how.attention)
        start, step = lora.our_step(model)
        state = start(jax.tree.map(jnp.copy, self.params["trainable"]))
        ids = jnp.asarray(self.ids(sequence))
        step = step.lower(state, self.params["frozen"], ids).compile()
        return lora.OurTraining(step, state, self.params["frozen"], ids)

    def peer(self, sequence: int, checkpointing: bool) -> lora.TheirTraining:
        """Their step, with gradient checkpointing or without."""
        base = self.theirs.get_base_model()
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            base.gradient_checkpointing_disable()
        return lora.TheirTraining(self.theirs, self.ids(sequence), narrow=True)

    def rate(self, sequence: int, elapsed: float) -> dict[str, float]:
        """Tokens per second, TFLOP/s and MFU in percent of a step of `elapsed` seconds."""
        flops = step_flops(self.params, self.sizes, self.tokens, sequence) / elapsed
        return {
            "tokens_per_second": self.tokens / elapsed,
            "model_tflops": flops / 1e12,
            "mfu_percent": 100 * flops / PEAK,
        }

    def tried(
        self, what: str, make: Callable, sequence: int, repeats: int = 4
    ) -> dict[str, Any] | None:
        """Time one setting; None, said aloud, where it fails (memory, an unsupported kernel)."""
        start = time.perf_counter()
        try:
            training = make()
            ready = time.perf_counter() - start
            losses = [training()]
            times = [seconds(training) for _ in range(repeats)]
            losses.append(training())
        except Exception as error:  # a kernel or an allocator says no in many ways
            self.say(f"  {what}: {type(error).__name__}: {str(error)[:300]}")
            return None
        found = {"setting": what, "seconds": float(np.median(times)), "ready_seconds": ready}
        found |= self.rate(sequence, found["seconds"]) | {"losses": losses}
        found |= _memory(training)
        self.say("  " + ", ".join(_format_report(key, value) for key, value in found.items()))
        return found


def _format_report(key: str, value: Any) -> str:
    if isinstance(value, list):
        return f"{key} " + " ".join(f"{v:.4f}" for v in value)
    return f"{key} {value:.4g}" if isinstance(value, float) else str(value)


def _memory(training: Any) -> dict[str, float]:
    """Bytes on the device that the step needs, in GiB: ours by the compiler, theirs at the peak."""
    if isinstance(training, lora.TheirTraining):
        return {"gib": torch.cuda.max_memory_allocated() / GIB} if torch.cuda.is_available() else {}
    plan = training.step.memory_analysis()
    used = plan.argument_size_in_bytes + plan.temp_size_in_bytes
    return {"gib": (used + plan.output_size_in_bytes - plan.alias_size_in_bytes) / GIB}


def cases(
    size: str, device: str, tokens: int | None, say: Callable[[str], Any]
) -> dict[str, Callable[[], Pair]]:
    """{case: function that makes its pair}, one case per sequence; see `TOKENS`."""
    large = functools.cache(lambda: Large(size, device, tokens or TOKENS[size], say))
    tries = OUR_TRIES if device == "gpu" else (Try("products"), Try("full"))
    return {
        case: lambda sequence=sequences[size]: fastest(large(), sequence, tries)
        for case, sequences in CASES.items()
    }


def fastest(large: Large, sequence: int, tries: Sequence[Try]) -> Pair:
    """Both sides at their fastest setting."""
    large.say(f"7B-shaped step, {large.tokens // sequence} rows of {sequence}")
    ours = {str(how): functools.partial(large.ours, sequence, how) for how in tries}
    theirs = {
        f"gradient checkpointing {'on' if on else 'off'}": functools.partial(
            large.peer, sequence, on
        )
        for on in (False, True)
    }
    mine, told = _best(large, ours, sequence)
    peer, told_of_theirs = _best(large, theirs, sequence)
    facts = {
        "rows": large.tokens // sequence,
        "sequence": sequence,
        "ours": mine,
        "theirs": peer,
        "tried": {"ours": told, "theirs": told_of_theirs},
        "peak_flops": PEAK,
    }
    rate = functools.partial(large.rate, sequence)
    return Pair(ours=ours[mine](), theirs=theirs[peer](), facts=facts, rate=rate)


def _best(large: Large, makers: Mapping[str, Callable], sequence: int) -> tuple[str, list[dict]]:
    """The fastest of some settings, and what is told of all that ran; ValueError if none did."""
    found = []
    for what, make in makers.items():
        if large.device == "gpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        result = large.tried(what, make, sequence)
        found += [result] if result else []
    if not found:
        raise ValueError(f"none of {', '.join(makers)} runs with {large.tokens} tokens")
    return min(found, key=lambda result: result["seconds"])["setting"], found
