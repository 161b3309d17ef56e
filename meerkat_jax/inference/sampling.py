"""Batched generation: one prefix per pair, a key-value cache, one program per shape bucket.

A pair is encoded once; the cache of its prefix is filled once and broadcast to the pair's
questions; the questions follow, padded at the right; then one token per row and turn, in
a loop on the device that ends when every row has ended. Batches are padded up to few sizes
(`bucket`), so that few programs are compiled; a padded row has ended before it begins.

A row's answer does not depend on the other rows: it attends to its own slots only, and draws from a
key of its own. A row may have a form of its own, too (inference/grammar.py): what it must not
write then is left out of the choice.

Letters: B pairs, R rows (questions of all pairs), T question tokens, N new tokens, V, A, P, C as in
meerkat.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.build import Assembly
from meerkat_jax.data.tokenizer import Tokenizer
from meerkat_jax.inference.grammar import (
    Grammars,
    GrammarState,
    TransitionTables,
    advance,
    compile_grammars,
    constrain,
)
from meerkat_jax.meerkat import Meerkat
from meerkat_jax.models.llama import Cache, Llama, init_cache
from meerkat_jax.nn.attention import NEGATIVE

QUESTION_STEP = 16  # questions are padded to a multiple of it


@dataclasses.dataclass(frozen=True)
class Generated:
    """The new tokens of one row, without the end token; `ended` is False if it was cut off at N."""

    ids: tuple[int, ...]
    ended: bool


def bucket(count: int) -> int:
    """`count` rounded up to 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: at most a third is padding."""
    power = 1 << max(count - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def question_room(length: int) -> int:
    """The length to which questions of up to `length` tokens are padded: one of few."""
    return QUESTION_STEP * bucket(-(-length // QUESTION_STEP))


class Sampler:
    """Generates answers with the model of `assembly` and its parameters `params`."""

    def __init__(self, assembly: Assembly, params: dict[str, Any], max_new: int = 64):
        """`max_new` is N, the most tokens of an answer."""
        self.assembly, self.params, self.max_new = assembly, params, max_new
        self._suppress = suppress_mask(assembly.tokenizer)
        self._sizes: dict[str, set[int]] = {"pairs": set(), "rows": set()}
        self._encode_and_align = jax.jit(functools.partial(_encode_and_align, assembly))
        self._prefill = jax.jit(functools.partial(prefill_prefix, assembly.model))
        self._answer = jax.jit(functools.partial(_answer, assembly, max_new), static_argnums=0)

    @functools.cached_property
    def grammars(self) -> Grammars:
        """The grammars for this tokenizer and clip length."""
        return compile_grammars(self.assembly.tokenizer, self.assembly.shapes.seconds)

    @functools.cached_property
    def tables(self) -> TransitionTables:
        """The tables of the grammars, on the device."""
        return jax.device_put(self.grammars.tables)

    def encode_and_align(self, image: np.ndarray, audio: np.ndarray) -> dict[str, jax.Array]:
        """Images uint8[B, H, W, 3] and audio float[B, samples] -> `Meerkat.encode_and_align`.

        Returns its entries and `mel` float[B, F, mels] in dB, on the device; B is rounded up to a
        bucket.
        """
        size = self._size("pairs", len(image))
        batch = {"image": padded(image, size), "audio": padded(audio, size)}
        return self._encode_and_align(self.params, batch)

    def prefill(self, aligned: dict[str, jax.Array]) -> Cache:
        """The cache of the prefixes of B pairs; as `aligned["cache"]` it is not computed again."""
        return self._prefill(self.params, aligned["image"], aligned["audio"])

    def answer(
        self,
        aligned: dict[str, jax.Array],
        pair_ids: Sequence[int],
        questions: Sequence[Sequence[int]],
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        grammars: Sequence[str | None] | None = None,
    ) -> list[Generated]:
        """Answer R `questions` (token ids), the r-th about pair `pair_ids[r]` of `aligned`.

        `temperature` 0 is greedy; above it row r is drawn with `seeds[r]` (default: 0). Row r is
        held to `grammars[r]`, one of `grammar.FORMS` (None, the default: to nothing).

        Raises UserError for a form that is unknown or too long for N tokens.
        """
        if not questions:
            return []
        rows = self._size("rows", len(questions))
        longest = max(map(len, questions))
        tokens = np.full((rows, question_room(longest)), self.assembly.tokenizer.pad_id)
        lengths = np.ones(rows, np.int32)
        for row, ids in enumerate(questions):
            tokens[row, : len(ids)] = ids
            lengths[row] = len(ids)
        guide: tuple[()] | tuple[TransitionTables, GrammarState] = ()
        if grammars is not None and any(grammar is not None for grammar in grammars):
            grammar_state = self.grammars.begin(
                [*grammars, *[None] * (rows - len(grammars))], self.max_new
            )
            guide = (self.tables, grammar_state)
        seeds = np.zeros(rows, np.int32) if seeds is None else padded(np.array(seeds), rows)
        found = self._answer(
            temperature > 0,
            self.params,
            decoder_inputs(aligned),
            {
                "pair_ids": padded(np.array(pair_ids, np.int32), rows),
                "tokens": tokens.astype(np.int32),
                "lengths": lengths,
                "idle": np.arange(rows) >= len(questions),
                "seeds": seeds.astype(np.uint32),
            },
            self._suppress,
            np.float32(max(temperature, 1e-6)),
            *guide,
        )
        texts, ends = jax.device_get(found)
        said = [strip_eos(ids, self.assembly.tokenizer.eos_id) for ids in texts[: len(questions)]]
        return [Generated(ids, bool(e)) for ids, e in zip(said, ends, strict=False)]

    def trace(
        self, media: dict[str, jax.ShapeDtypeStruct]
    ) -> tuple[dict[str, jax.stages.Traced], Any]:
        """Both programs, traced for abstract pairs with one greedy question each, and the cache.

        media: image uint8[B, H, W, 3] and audio float[B, samples]; `params` may be shapes too.
        Returns {"encode_and_align", "answer"} and the decoder's cache as shapes.
        """
        shapes, (device,) = self.assembly.shapes, media["image"].sharding.device_set
        place = jax.sharding.SingleDeviceSharding(device)
        rows, length = (
            media["image"].shape[0],
            question_room(shapes.pack_length - shapes.max_target_tokens),
        )

        def at(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

        encode_and_align = self._encode_and_align.trace(self.params, media)
        tokens = {name: at(encode_and_align.out_info[name]) for name in ("image", "audio")}
        asked = {
            "pair_ids": np.zeros(rows, np.int32),
            "tokens": np.zeros((rows, length), np.int32),
            "lengths": np.ones(rows, np.int32),
            "idle": np.zeros(rows, bool),
            "seeds": np.zeros(rows, np.uint32),
        }
        asked, few = jax.tree.map(at, asked), jax.tree.map(at, (self._suppress, np.zeros((), "f4")))
        answer = self._answer.trace(False, self.params, tokens, asked, *few)
        slots = self.assembly.model.prefix_length + length + self.max_new
        llama = self.assembly.model.llama
        cache = jax.tree.map(at, jax.eval_shape(lambda: init_cache(llama, rows, slots)))
        return {"encode_and_align": encode_and_align, "answer": answer}, cache

    def _size(self, what: str, count: int) -> int:
        """The size to which `count` is padded: one already compiled, if at most twice as large."""
        used = [size for size in self._sizes[what] if count <= size <= 2 * count]
        size = min(used, default=bucket(count))
        self._sizes[what].add(size)
        return size


def strip_eos(ids: np.ndarray, end: int) -> tuple[int, ...]:
    """The ids before the first end token."""
    ends = np.flatnonzero(ids == end)
    return tuple(ids[: ends[0] if len(ends) else None].tolist())


def suppress_mask(tokenizer: Tokenizer) -> np.ndarray:
    """bool[C], True for tokens that no answer contains: markers and vocabulary padding."""
    table = np.arange(tokenizer.padded_vocab_size) >= tokenizer.vocab_size
    for name, token in tokenizer.specials.items():
        table[token] = name != tokenizer.roles.end
    return table


def decoder_inputs(aligned: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The pairs' prefix cache if there is one, else their image and audio tokens."""
    names = ("cache",) if "cache" in aligned else ("image", "audio")
    return {name: aligned[name] for name in names}


def padded(array: np.ndarray, size: int) -> np.ndarray:
    """Repeat the first entry at the end, up to `size` entries."""
    array = np.asarray(array)
    return np.concatenate([array, np.repeat(array[:1], size - len(array), axis=0)])


def _encode_and_align(assembly: Assembly, params: dict, batch: dict) -> dict[str, jax.Array]:
    pixels, mel = assembly.inputs(batch)
    out = assembly.model.apply({"params": params}, pixels, mel, method="encode_and_align")
    return out | {"mel": mel}


def _answer(
    assembly: Assembly,
    max_new: int,
    draws: bool,
    params: dict,
    pairs: dict[str, jax.Array],
    rows: dict[str, jax.Array],
    suppress_mask: jax.Array,
    temperature: jax.Array,
    tables: TransitionTables | None = None,
    grammar_state: GrammarState | None = None,
) -> tuple[jax.Array, jax.Array]:
    """New tokens int32[R, N], filled up with the end token, and bool[R]: whether the row ended."""
    model, length = assembly.model, rows["tokens"].shape[1]

    def extended(*tokens_to_last):
        return model.apply({"params": params}, *tokens_to_last, method=extend)

    cache = pairs["cache"] if "cache" in pairs else prefill_prefix(model, params, **pairs)
    cache = broadcast_prefix(cache, rows["pair_ids"], length + max_new)
    pick = functools.partial(choose, draws, suppress_mask, temperature, rows["seeds"])
    end = assembly.tokenizer.eos_id
    prefix = model.prefix_length
    return decode_loop(extended, pick, cache, prefix, rows, max_new, end, tables, grammar_state)


def choose(draws: bool, suppress_mask, temperature, seeds, logits: jax.Array, turn) -> jax.Array:
    """The next token int32[R] of logits float[R, C]: greedy or sampled.

    temperature float[] or float[R], above 0; turn int[] or int[R], tokens before this one.
    """
    logits = jnp.where(suppress_mask, NEGATIVE, logits)
    if not draws:
        return logits.argmax(-1).astype(jnp.int32)

    def draw(seed, turn, row):
        return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), turn), row)

    turns, heat = jnp.broadcast_to(turn, seeds.shape), jnp.reshape(temperature, (-1, 1))
    return jax.vmap(draw)(seeds, turns, logits / heat).astype(jnp.int32)


def decode_loop(
    extend: Callable,
    choose: Callable,
    cache: Cache,
    prefix: int,
    rows: dict,
    max_new: int,
    end: int,
    tables: TransitionTables | None = None,
    grammar_state: GrammarState | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Questions behind the `prefix` slots that `cache` holds, then one token per row and turn.

    rows: tokens int32[R, T], lengths int32[R], idle bool[R]; the cache has prefix + T + max_new
    slots. extend(tokens, positions, valid, cache, slot, last) -> (logits float[R, C] at `last`,
    cache); choose(logits, turn) -> int32[R]. With `rules`, each row writes what its `marks` allow.
    Returns what `_answer` does.
    """
    count, length = rows["tokens"].shape
    places = jnp.arange(length)[None]
    logits, cache = extend(
        rows["tokens"],
        jnp.broadcast_to(prefix + places, (count, length)),
        places < rows["lengths"][:, None],
        cache,
        prefix,
        rows["lengths"] - 1,
    )

    def turn(state):
        i, logits, ended, texts, cache, grammar_state = state
        if tables is not None:
            logits = constrain(tables, grammar_state, logits, max_new - i)
        token = jnp.where(ended, end, choose(logits, i))
        if tables is not None:
            grammar_state = advance(tables, grammar_state, token)
        texts = jax.lax.dynamic_update_slice_in_dim(texts, token[:, None], i, axis=1)
        position = (prefix + rows["lengths"] + i)[:, None]
        valid, last = jnp.ones((count, 1), bool), jnp.zeros(count, jnp.int32)
        logits, cache = extend(token[:, None], position, valid, cache, prefix + length + i, last)
        return i + 1, logits, ended | (token == end), texts, cache, grammar_state

    texts = jnp.full((count, max_new), end, jnp.int32)
    state = (jnp.int32(0), logits, rows["idle"], texts, cache, grammar_state)
    state = jax.lax.while_loop(lambda s: (s[0] < max_new) & ~s[2].all(), turn, state)
    return state[3], state[2]


def prefill_prefix(model: Meerkat, params: dict, image: jax.Array, audio: jax.Array) -> Cache:
    """The cache of the prefixes of B pairs (tokens as in `Meerkat.encode_and_align`)."""
    return model.apply({"params": params}, image, audio, method=_prefill)


def _prefill(model: Meerkat, image: jax.Array, audio: jax.Array) -> Cache:
    """The cache of the prefixes, without room for more."""
    return prefill(model.llama, model.embed_prefix(image, audio))


def prefill(llama: Llama, row: jax.Array) -> Cache:
    """The cache of float[B, P, D], without room for more."""
    # The barrier keeps the compiler from constant-folding attention to the empty cache.
    empty = jax.lax.optimization_barrier(init_cache(llama, *row.shape[:2]))
    return llama(row, jnp.arange(row.shape[1])[None], cache=empty, slot=0)["cache"]


def extend(model: Meerkat, tokens, positions, valid, cache, slot, last):
    """`extend_text` with the language model of a whole model."""
    return extend_text(model.llama, tokens, positions, valid, cache, slot, last)


def extend_text(llama: Llama, tokens, positions, valid, cache, slot, last):
    """Tokens int[R, T] at `positions` int[R, T] into the cache's slots from `slot` on.

    valid bool[R, T] is False on padding. Returns the logits float[R, C] of one place `last` int[R]
    per row, and the cache.
    """
    out = llama(llama.embed(tokens), positions, None, valid, cache, slot)
    hidden = jnp.take_along_axis(out["hidden"], last[:, None, None], axis=1)[:, 0]
    return llama.logits(hidden), out["cache"]


def broadcast_prefix(cache: Cache, pair_ids: jax.Array, more: int) -> Cache:
    """Row r gets the prefix of pair pair_ids[r] and `more` empty slots behind it."""
    axes = {"k": (1, 3), "v": (1, 3), "valid": (0, 1)}

    def grown(array: jax.Array, row: int, slot: int) -> jax.Array:
        array = jnp.take(array, pair_ids, axis=row)
        widths = [(0, more if axis == slot else 0) for axis in range(array.ndim)]
        return jnp.pad(array, widths)

    return {name: grown(array, *axes[name]) for name, array in cache.items()}
