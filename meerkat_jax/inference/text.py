"""The language model alone: text in, text out, straight from a store of published weights.

Before anything is trained this is what the published model says, which is how one sees that its
weights, its tokenizer and its chat template arrived whole.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import unflatten
from meerkat_jax.data.prompt import make_prompt
from meerkat_jax.data.tokenizer import Tokenizer
from meerkat_jax.inference.decoder_weights import prepare_decoder
from meerkat_jax.inference.sampling import (
    Generated,
    choose,
    decode_loop,
    extend_text,
    strip_eos,
    suppress_mask,
)
from meerkat_jax.models.llama import Llama, init_cache
from meerkat_jax.weights.convert import build
from meerkat_jax.weights.store import Store


class Speaker:
    """The language model of a store and its tokenizer."""

    def __init__(
        self,
        model: Llama,
        params: dict,
        tokenizer: Tokenizer,
        max_new: int = 64,
        quantise: str = "none",
        unstack_layers: bool = False,
    ):
        """`max_new` is the most tokens of an answer; the rest is as of `Meerkat.load`."""
        model, params = prepare_decoder(model, params, quantise, unstack_layers)
        self.tokenizer, self.max_new = tokenizer, max_new
        self._params, self._suppress = params, suppress_mask(tokenizer)
        self._answer = jax.jit(functools.partial(_answer, model, tokenizer.eos_id, max_new))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        dtype: str = "float32",
        max_new: int = 64,
        quantise: str = "none",
        unstack_layers: bool = False,
    ) -> Speaker:
        """The store at `folder`, computing in `dtype`; UserError if it has no language model."""
        store = Store.open(folder)
        if "llama" not in store.parts:
            raise UserError(f"{folder} holds {', '.join(store.parts)}, but no language model")
        tokenizer = Tokenizer.load(folder)
        fields = store.parts["llama"]["config"]
        model = build("llama", fields | {"dtype": dtype}, tokenizer.padded_vocab_size)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        paths = [path for path in store.leaves if path.startswith("llama/")]
        params = unflatten({path: store.place(path, here) for path in paths})["llama"]
        rows = tokenizer.padded_vocab_size - model.pretrained
        params["added"] = jnp.zeros((rows, model.width))  # markers, which occur in no text
        return cls(model, params, tokenizer, max_new, quantise, unstack_layers)

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """Greedy answers to text questions, in the model's own chat template."""
        prompt = make_prompt(self.tokenizer, self.tokenizer.style)
        found = self.answer([prompt.text_ids(text) for text in prompts])
        return [self.tokenizer.decode(one.ids).strip() for one in found]

    def answer(self, texts: Sequence[Sequence[int]]) -> list[Generated]:
        """Greedy continuations of `texts` (token ids)."""
        length = max(map(len, texts))
        tokens = np.full((len(texts), length), self.tokenizer.pad_id, np.int32)
        for row, ids in enumerate(texts):
            tokens[row, : len(ids)] = ids
        lengths = np.array([len(ids) for ids in texts], np.int32)
        found, ended = jax.device_get(self._answer(self._params, tokens, lengths, self._suppress))
        end = self.tokenizer.eos_id
        return [
            Generated(strip_eos(ids, end), bool(e)) for ids, e in zip(found, ended, strict=True)
        ]


def _answer(model: Llama, end: int, max_new: int, params, tokens, lengths, suppress_mask):
    """int32[R, T] -> new tokens int32[R, max_new] and bool[R], as in `sampling.decode_loop`."""

    def extend(tokens, positions, valid, cache, slot, last):
        return model.apply(
            {"params": params}, tokens, positions, valid, cache, slot, last, method=extend_text
        )

    count, length = tokens.shape
    rows = {"tokens": tokens, "lengths": lengths, "idle": jnp.zeros(count, bool)}
    cache = init_cache(model, count, length + max_new)
    pick = functools.partial(choose, False, suppress_mask, 1.0, None)
    return decode_loop(extend, pick, cache, 0, rows, max_new, end)
