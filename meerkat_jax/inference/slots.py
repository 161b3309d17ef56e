"""Continuous batching: rows of one cache that start and end independently.

Batches of `Sampler` begin and end together. Here a question takes a free row while the others are
in the middle of their answers (continuous batching, Yu et al. 2022, Orca), and one compiled step
moves all rows by a token. A row of the cache is

    [ prefix, P slots | ring, N slots | question, room for T tokens ]

All rows write their new token to the same slot of the ring, which goes round. A row writes at most
N tokens and forgets the ring before it begins, so that it never meets a slot of its own. Where a
token stands in the sequence its position says, not its slot. The question's room stands last, so
that it can grow.

Letters: S rows, P, T, N, C as in inference/sampling.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.inference.grammar import GrammarState, TransitionTables, advance, constrain
from meerkat_jax.inference.sampling import (
    Sampler,
    broadcast_prefix,
    choose,
    extend,
    question_room,
    suppress_mask,
)
from meerkat_jax.meerkat import Meerkat
from meerkat_jax.models.llama import Cache, init_cache

COLD = 1e-6  # the temperature of greedy rows, to avoid a division by 0


class Slot(NamedTuple):
    """The state of all rows, one entry per row.

    logits float32[S, C] of the next token; position int32[S], where that stands; turn int32[S],
    tokens so far, of at most `most` int32[S]; temperature float32[S] (0: the likeliest) and seed
    uint32[S] of what is drawn; marks, how far a form has got; busy bool[S], False when it is over.
    """

    logits: Any
    position: Any
    turn: Any
    most: Any
    temperature: Any
    seed: Any
    grammar_state: GrammarState
    busy: Any


class Question(NamedTuple):
    """A prepared question: token ids and sampling options."""

    ids: list[int]
    most: int
    temperature: float
    seed: int
    grammar_state: GrammarState


class Slots:
    """S rows on the device, and the compiled programs that fill and advance them."""

    def __init__(self, sampler: Sampler, rows: int):
        """Nothing is allocated before the first question."""
        self.sampler, self.rows = sampler, rows
        assembly, model = sampler.assembly, sampler.assembly.model
        self._usual = question_room(assembly.shapes.pack_length - assembly.shapes.max_target_tokens)
        self._suppress = suppress_mask(assembly.tokenizer)
        self._model, self._end = model, assembly.tokenizer.eos_id
        self.clear()

    @functools.cached_property
    def tables(self) -> TransitionTables | None:
        """The tables of all grammars; None if the tokenizer supports none."""
        try:
            return self.sampler.tables
        except UserError:  # a question with a grammar gets the error in `begin`
            return None

    def begin(self, grammar: str | None, most: int) -> GrammarState:
        """The grammar state before up to `most` tokens; UserError as in `Grammars`."""
        if grammar is None and self.tables is None:
            return GrammarState(np.zeros(1, np.int32), np.zeros((1, 4), np.int32))
        return self.sampler.grammars.begin([grammar], most)

    def clear(self) -> None:
        """Forget all rows."""
        self._cache: Cache | None = None
        self._seats: Slot | None = None
        self._size, self._clock = self._usual, 0

    def rest(self) -> None:
        """Free the slots that long questions took, when no row is in use."""
        if self._size > self._usual:
            self.clear()

    def seat(self, row: int, prefix: Cache, question: Question) -> None:
        """Put a question into `row`, behind the `prefix` of its pair (one row, P slots)."""
        assert len(prefix["valid"]) == 1  # a second row would overwrite the next row
        room = question_room(len(question.ids))
        tokens = np.full((1, room), self.sampler.assembly.tokenizer.pad_id, np.int32)
        tokens[0, : len(question.ids)] = question.ids
        length = np.full(1, len(question.ids), np.int32)
        logits, asked = _read(self._model, self.sampler.params, prefix, tokens, length)
        new = Slot(
            logits=logits,
            position=length + self._model.prefix_length,
            turn=np.zeros(1, np.int32),
            most=np.full(1, question.most, np.int32),
            temperature=np.full(1, question.temperature, np.float32),
            seed=np.full(1, question.seed, np.uint32),
            grammar_state=question.grammar_state,
            busy=np.ones(1, bool),
        )
        self._make_room(room, new)
        spans = (0, prefix), (self._model.prefix_length + self.sampler.max_new, asked)
        at = np.int32(row)
        self._cache, self._seats = _place(self._cache, self._seats, spans, new, at)

    def step(self) -> np.ndarray:
        """One more token int32[S] per row; those of finished rows are meaningless."""
        self._cache, self._seats, tokens = _step(
            self._model,
            self._end,
            self.sampler.params,
            self._cache,
            self._seats,
            np.int32(self._clock),
            self._suppress,
            self.tables,
        )
        self._clock = (self._clock + 1) % self.sampler.max_new
        return np.asarray(tokens)

    def _make_room(self, room: int, new: Slot) -> None:
        """Make the cache large enough for questions of `room` tokens, and row states like `new`."""
        if self._cache is None:
            self._size = max(room, self._usual)
            slots = self._model.prefix_length + self.sampler.max_new + self._size
            self._cache = init_cache(self._model.llama, self.rows, slots)
            self._seats = jax.tree.map(
                lambda one: jnp.zeros((self.rows, *one.shape[1:]), one.dtype), new
            )
        elif room > self._size:
            self._cache = _grow(self._cache, room - self._size)
            self._size = room


@functools.partial(jax.jit, static_argnums=0)
def _read(model: Meerkat, params: dict, prefix: Cache, tokens, length) -> tuple[jax.Array, Cache]:
    """A question int32[1, T] behind its prefix: logits float[1, C] and its part of the cache."""
    start, places = model.prefix_length, jnp.arange(tokens.shape[1])[None]
    logits, cache = model.apply(
        {"params": params},
        tokens,
        start + places,
        places < length[:, None],
        broadcast_prefix(prefix, jnp.zeros(1, jnp.int32), tokens.shape[1]),
        start,
        length - 1,
        method=extend,
    )
    own = {name: cache[name][:, :, :, start:] for name in ("k", "v")}
    return logits, own | {"valid": cache["valid"][:, start:]}


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _place(cache: Cache, seats: Slot, spans: Sequence, new: Slot, row) -> tuple[Cache, Slot]:
    """Write the spans, (slot, part of a cache) each, and a row state into `row`."""
    nothing = jnp.zeros((1, cache["valid"].shape[1]), bool)
    cache = cache | {"valid": jax.lax.dynamic_update_slice(cache["valid"], nothing, (row, 0))}
    for slot, part in spans:
        starts = {"k": (0, row, 0, slot, 0), "v": (0, row, 0, slot, 0), "valid": (row, slot)}
        cache = {
            name: jax.lax.dynamic_update_slice(cache[name], part[name], start)
            for name, start in starts.items()
        }
    return cache, jax.tree.map(lambda old, one: old.at[row].set(one[0]), seats, new)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4))
def _step(
    model: Meerkat,
    end: int,
    params: dict,
    cache: Cache,
    seats: Slot,
    clock: jax.Array,
    suppress_mask: jax.Array,
    tables: TransitionTables | None,
) -> tuple[Cache, Slot, jax.Array]:
    """The next token int32[S] of each row, written to slot `clock` of the ring."""
    logits, grammar_state = seats.logits, seats.grammar_state
    if tables is not None:
        logits = constrain(tables, grammar_state, logits, (seats.most - seats.turn)[:, None])
    likeliest = choose(False, suppress_mask, None, seats.seed, logits, seats.turn)
    drawn = seats.busy & (seats.temperature > 0)
    heat = jnp.maximum(seats.temperature, COLD)
    token = jax.lax.cond(
        drawn.any(),
        lambda: choose(True, suppress_mask, heat, seats.seed, logits, seats.turn),
        lambda: likeliest,
    )
    token = jnp.where(seats.busy, jnp.where(drawn, token, likeliest), end)
    if tables is not None:
        grammar_state = advance(tables, grammar_state, token)
    logits, cache = model.apply(
        {"params": params},
        token[:, None],
        seats.position[:, None],
        seats.busy[:, None],
        cache,
        model.prefix_length + clock,
        jnp.zeros_like(token),
        method=extend,
    )
    turn = seats.turn + 1
    busy = seats.busy & (token != end) & (turn < seats.most)
    moved = seats._replace(
        logits=logits,
        position=seats.position + 1,
        turn=turn,
        grammar_state=grammar_state,
        busy=busy,
    )
    return cache, moved, token


@functools.partial(jax.jit, static_argnums=1)
def _grow(cache: Cache, more: int) -> Cache:
    """`more` empty slots at the end of each row."""
    axes = {"k": 3, "v": 3, "valid": 1}
    widths = {
        name: [(0, more if axis == axes[name] else 0) for axis in range(array.ndim)]
        for name, array in cache.items()
    }
    return {name: jnp.pad(array, widths[name]) for name, array in cache.items()}
