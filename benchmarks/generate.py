"""Answers of our decoder beside `generate` of transformers: the first token, each further one.

    python -m benchmarks.generate --repeats=5 --out=generate.json
    python -m benchmarks.generate --device=gpu --dtype=bfloat16 --size=7b --out=generate.json

Both sides have the same weights (random, of SmolLM2-135M's shape or Llama-2-7B's, through our
conversion's tables), begin with the same embeddings in the place of an image and a sound, go on
with the same question, and say N tokens, greedily, with a cache; in float32 they must say the same
ones. Calls are timed in turns. "16 questions" are about one pair, whose prefix ours fills once;
"16 pairs" have one question each.

A step, for one further token, is timed as the difference between calls of N tokens and of one. It
reads all weights of the decoder (of its table of words what makes logits) and the cache, and is
told as part of the rate at which memory is read in the same run, by all cores or by the GPU.

Letters: B pairs, R rows (questions), P prefix places, T question tokens, N new tokens, D width.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

from benchmarks import large, lora, measure, towers
from benchmarks.pairs import LLAMA, Setting, language_model, waited
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import unflatten
from meerkat_jax.inference.decoder_weights import prepare_decoder
from meerkat_jax.inference.sampling import (
    broadcast_prefix,
    choose,
    decode_loop,
    extend_text,
    prefill,
)
from meerkat_jax.models.llama import Llama

CASES = {  # name: pairs, rows, weights of ours
    "1 question": (1, 1, "none"),
    "16 questions": (1, 16, "none"),
    "16 pairs": (16, 16, "none"),
    "1 question in int8": (1, 1, "int8"),
    "16 questions in int8": (1, 16, "int8"),
}
SIZES = LLAMA | {"7b": large.SIZES["real"]}
PLACES, QUESTION = {"real": 184, "7b": 184, "tiny": 8}, {"real": 16, "7b": 16, "tiny": 4}
READ = {"cpu": 2**29, "gpu": 2**32}  # bytes, more than any cache holds
NEVER = -1  # a token that ends an answer: none does


@dataclasses.dataclass(frozen=True)
class Request:
    """prefix float32[B, P, D] embedded; questions int32[R, T], the r-th about pair r * B // R."""

    prefix: np.ndarray
    questions: np.ndarray

    @property
    def pair_ids(self) -> np.ndarray:
        """int[R]: the pair of each question."""
        rows = len(self.questions)
        return np.arange(rows, dtype=np.int32) * len(self.prefix) // rows


def asked(sizes: Mapping[str, Any], size: str, pairs: int, rows: int) -> Request:
    """Random embeddings, as large as words of the model are, and random questions."""
    rng, std = np.random.default_rng(0), 0.02  # what transformers draws a table of words with
    prefix = std * rng.standard_normal((pairs, PLACES[size], sizes["width"]), np.float32)
    return Request(prefix, rng.integers(0, sizes["vocab_size"], (rows, QUESTION[size]), np.int32))


def our_answers(
    model: Llama, new: int, params: dict, prefix: jax.Array, pair_ids: jax.Array, tokens: jax.Array
) -> jax.Array:
    """int32[R, N], by the library's own steps."""
    apply = functools.partial(model.apply, {"params": params})
    count, length = tokens.shape
    cache = broadcast_prefix(apply(prefix, method=prefill), pair_ids, length + new)
    rows = {
        "tokens": tokens,
        "lengths": jnp.full(count, length, jnp.int32),
        "idle": jnp.zeros(count, bool),
    }
    extend = functools.partial(apply, method=extend_text)
    pick = functools.partial(choose, False, jnp.zeros(model.vocab_size, bool), 1.0, None)
    return decode_loop(extend, pick, cache, prefix.shape[1], rows, new, NEVER)[0]


def our_side(model: Llama, params: dict, given: Request, new: int) -> Callable[[], np.ndarray]:
    """A compiled call that waits."""
    run = jax.jit(functools.partial(our_answers, model, new))
    prefix = jnp.asarray(given.prefix, model.dtype)
    inputs = [prefix, jnp.asarray(given.pair_ids), jnp.asarray(given.questions)]
    return lambda: np.asarray(run(params, *inputs))


def their_side(model: Any, given: Request, new: int, setting: Setting) -> Callable[[], np.ndarray]:
    """`generate` behind embeddings, one row per question."""
    prefix = setting.tensor(given.prefix[given.pair_ids])
    words = model.get_input_embeddings()(setting.tensor(given.questions.astype(np.int64)))
    row = torch.cat([prefix, words], 1).detach()
    fixed = {"max_new_tokens": new, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    mask = torch.ones(row.shape[:2], dtype=torch.long, device=row.device)
    fixed |= {"inputs_embeds": row, "attention_mask": mask}
    call = waited(setting, lambda: model.generate(**fixed))
    return lambda: call().cpu().numpy()


def our_decoder(theirs: Any, dtype: Any) -> tuple[Llama, dict]:
    """Our decoder and torch's weights, on our device."""
    model, leaves = language_model(theirs, dtype=dtype)
    return model, unflatten({path: jnp.asarray(leaf, dtype) for path, leaf in leaves.items()})


def case(
    setting: Setting,
    whole: tuple[Llama, dict],
    theirs: Any,
    pairs: int,
    rows: int,
    quantise: str,
    new: int,
    repeats: int,
    unstack_layers: bool,
) -> dict[str, Any]:
    """The report of one case; ValueError when float32 answers differ."""
    size = setting.size
    model, params = prepare_decoder(*whole, quantise, unstack_layers)
    given = asked(SIZES[size], size, pairs, rows)
    sides = {
        n: (our_side(model, params, given, n), their_side(theirs, given, n, setting))
        for n in (1, new)
    }
    ours, gold = (side() for side in sides[new])
    differ = float((ours != gold).mean())
    if differ and quantise == "none" and not setting.narrow:
        raise ValueError(f"answers differ: ours {ours.tolist()}, theirs {gold.tolist()}")
    rate = lambda seconds: {"tokens_per_second": rows * new / seconds}  # noqa: E731
    agreement = {"tokens that differ": differ}
    found = measure.in_turns(measure.Pair(*sides[new], agreement, rate=rate), repeats)
    first = measure.in_turns(measure.Pair(*sides[1]), repeats)
    reads = bytes_per_step(params, model, rows, PLACES[size] + QUESTION[size] + new)
    return found | {
        "first": first,
        "step": steps(found["seconds"], first["seconds"], new),
        "facts": {"pairs": pairs, "rows": rows, "new": new, "quantise": quantise, **reads},
    }


def steps(whole: Mapping[str, Sequence], first: Mapping[str, Sequence], new: int) -> dict:
    """Seconds of one further token on either side, and their ratio."""
    each = {
        side: [(w - f) / (new - 1) for w, f in zip(whole[side], first[side], strict=True)]
        for side in whole
    }
    ratios = [t / o for o, t in zip(each["ours"], each["theirs"], strict=True)]
    return {side: measure.spread(found) for side, found in each.items()} | {
        "ratio": measure.spread(ratios)
    }


def bytes_per_step(params: dict, model: Llama, rows: int, slots: int) -> dict[str, int]:
    """What ours must read for one further token; of an untied table of words only the head."""
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if not model.tied:
        weights -= params["embedding"].nbytes
    place = 2 * model.depth * model.kv_heads * model.head_width * jnp.dtype(model.dtype).itemsize
    return {"weights_bytes": weights, "cache_bytes": rows * slots * place}


def read_rate(setting: Setting, repeats: int = 10) -> float:
    """Bytes a second that all cores, or the GPU, read at best."""
    size = READ[setting.device]
    memory = torch.ones(size // 4, device=setting.torch_device)
    call = waited(setting, memory.sum)
    call()
    return size / min(measure.seconds(call) for _ in range(repeats))


def run(
    only: Sequence[str] = (),
    size: str = "real",
    repeats: int = 5,
    threads: int = 2,
    new: int = 64,
    say: Callable[[str], Any] = print,
    device: str = "cpu",
    dtype: str = "float32",
    unstack_layers: bool = False,
) -> dict[str, Any]:
    """Measure the cases `only` (none: all), with our layers stacked or `unstack_layers`.

    UserError for an unknown one, for a device that is not there and a dtype that it does not take.
    """
    for name in only:
        if name not in CASES:
            raise UserError(f"--only={name}: expected some of {', '.join(CASES)}")
    towers.prepare(device, dtype, threads)
    setting = Setting(size, device, narrow=dtype == "bfloat16")
    theirs = lora.peer_model(SIZES[size], setting.torch_device, setting.narrow)
    whole = our_decoder(theirs, setting.dtype)
    report: dict[str, Any] = {
        "setting": measure.setting(*towers.machine(device, threads)),
        "size": size,
        "dtype": dtype,
        "unstack_layers": unstack_layers,
        "repeats": repeats,
        "prompt": {"prefix": PLACES[size], "question": QUESTION[size]},
        "cases": {},
    }
    for name in only or CASES:
        say(f"{name} ...")
        before = read_rate(setting)
        found = case(setting, whole, theirs, *CASES[name], new, repeats, unstack_layers)
        found["read_bytes_per_second"] = max(before, read_rate(setting))
        found["bandwidth"] = bandwidth(found)
        report["cases"][name] = found
        say(row(name, found))
    return report


def bandwidth(found: Mapping[str, Any]) -> dict[str, float]:
    """The part of the rate of reading that a step of ours reaches, and its bytes a second."""
    facts = found["facts"]
    rate = (facts["weights_bytes"] + facts["cache_bytes"]) / found["step"]["ours"]["median"]
    return {"bytes_per_second": rate, "of_reading": rate / found["read_bytes_per_second"]}


HEAD = (
    "| case | ours, tokens/s | torch | ratio | first token, ours | torch | ratio | step, ours "
    "| torch | ratio | read at, of memory |\n|" + "---|" * 11
)


def row(name: str, found: Mapping[str, Any]) -> str:
    """A line of the table."""
    first, step, speed = found["first"], found["step"], found["bandwidth"]
    rates = [f"{found[side]['tokens_per_second']:,.1f}" for side in ("ours", "theirs")]
    cells = [name, *rates, measure.told(found["ratio"])]
    for part in (first, step):
        cells += [f"{1e3 * part[side]['median']:,.1f} ms" for side in ("ours", "theirs")]
        cells.append(measure.told(part["ratio"]))
    reads = f"{speed['bytes_per_second'] / 1e9:.1f} GB/s, {100 * speed['of_reading']:.0f} %"
    differ = found["agreement"]["tokens that differ"]
    more = f"; {100 * differ:.0f} % of tokens differ" if differ else ""
    return "| " + " | ".join([*cells, reads + more]) + " |"


def main(_: list[str]) -> None:
    """Read the flags, measure, write."""
    given = flags.FLAGS
    try:
        report = run(given.only, given.size, given.repeats, given.threads, given.new,
                     lambda line: print(line, flush=True), given.device, given.dtype,
                     given.unstack_layers)  # fmt: skip
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    if given.out:
        Path(given.out).write_text(json.dumps(report, indent=1) + "\n")
    lines = [row(name, found) for name, found in report["cases"].items()]
    print("\n".join([HEAD, *lines]), flush=True)


if __name__ == "__main__":
    flags.DEFINE_list("only", [], f"Cases, some of: {', '.join(CASES)}.")
    flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where both sides run.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What they compute in.")
    flags.DEFINE_enum("size", "real", [*SIZES], "SmolLM2-135M's, Llama-2-7B's, or tiny for tests.")
    flags.DEFINE_bool("unstack_layers", False, "Layers of ours by themselves.")
    flags.DEFINE_integer("repeats", 5, "Pairs of calls that are timed.", lower_bound=1)
    flags.DEFINE_integer("threads", 2, "Cores of either side on a CPU.", lower_bound=1)
    flags.DEFINE_integer("new", 64, "Tokens of an answer.", lower_bound=2)
    flags.DEFINE_string("out", None, "Where the JSON goes; default: nowhere.")
    app.run(main)
