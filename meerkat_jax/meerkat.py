"""The whole model: two towers, two alignment modules, two connectors, one language model.

    image -> CLIP  -> tokens -+-> connector -> AVACE -+
                              | AVOpT                 +-> prefix -> Llama -> answers
    audio -> HTSAT -> tokens -+-> connector -> AVACE -+

Source: Meerkat (arXiv 2407.01851), figure 2 and section 3. The same code serves all sizes, which
differ in the fields of the parts. The connector of the authors' release (`conv_align`) shortens the
token sequences and therefore comes after AVACE.

Letters: B pairs, R packs of T tokens that hold the questions of a pair, V image tokens, A audio
tokens, P prefix tokens, D width of the language model, C vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from meerkat_jax.alignment.avace import AVACE
from meerkat_jax.alignment.avopt import AVOpT
from meerkat_jax.core.errors import UserError
from meerkat_jax.models.clap import ClapAudio
from meerkat_jax.models.clip import ClipVision
from meerkat_jax.models.connectors import AlignConfig, Connector, ConvAlign, output_length
from meerkat_jax.models.llama import Layout, Llama
from meerkat_jax.nn.norms import RMSNorm


class NormAndPosition(nn.Module):
    """RMSNorm of the connected tokens and a learned position embedding for AVACE: an option.

    HTSAT encodes no absolute time, and a tower that learns from class names alone little position.
    The norm comes first because positions are lost beside tokens of 20 times their size.
    """

    grid: tuple[int, int]
    dtype: jnp.dtype = jnp.float32
    position_init: Callable = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float[B, N, D] -> the same normed, and the position embedding float[N, D]."""
        tokens = RMSNorm(dtype=self.dtype, name="norm")(tokens)
        positions = self.param("position_embedding", self._init, tokens.shape[-1])
        return tokens, positions.astype(self.dtype)

    def _init(self, key: jax.Array, width: int) -> jax.Array:
        # [rows, columns, D] -> [N, D]
        return self.position_init(key, (*self.grid, width)).reshape(-1, width)


def pool(tokens: jax.Array, side: int) -> jax.Array:
    """Mean pooling of a square token grid: float[B, V, D] -> float[B, V / side^2, D]."""
    batch, count, width = tokens.shape
    rows = math.isqrt(count) // side
    # [B, V, D] -> [B, rows, side, columns, side, D]
    squares = tokens.reshape(batch, rows, side, rows, side, width)
    return squares.mean((2, 4)).reshape(batch, rows**2, width)


class Meerkat(nn.Module):
    """Answers questions about a pair of an image and an audio clip.

    `prefix` is the beginning of every sequence: tuples of token ids, and the strings "image" and
    "audio" where the tokens of the towers go (data/prompt.py). An image token is the mean over
    image_pool x image_pool patches. `conv_align` has the sizes of the connector of that name, which
    attends to the first `words` rows of the language model's embedding (None: to all of them).
    `position_embedding` puts a `NormAndPosition` between connector and AVACE.
    """

    image_tower: ClipVision
    audio_tower: ClapAudio
    llama: Llama
    avopt: AVOpT
    avace: AVACE
    prefix: tuple
    connector: str = "linear"
    image_pool: int = 1
    conv_align: AlignConfig = AlignConfig()
    words: int | None = None
    position_embedding: bool = False
    position_init: Callable = nn.initializers.normal(0.02)

    def setup(self):
        """Connectors and, if asked for, position embeddings of both modalities."""
        patches = self.image_tower.image_size // self.image_tower.patch_size
        if self.image_pool < 1 or patches % self.image_pool:
            raise UserError(
                f"model.image_pool {self.image_pool!r} does not divide the image's "
                f"{patches} x {patches} patches; use a divisor of {patches}, 1 for no pooling"
            )
        width, dtype = self.llama.width, self.llama.dtype
        if self.uses_conv_align:
            sizes = self.conv_align
            self.image_connector = ConvAlign(width, *sizes.image, sizes.heads, dtype)
            self.audio_connector = ConvAlign(width, *sizes.audio, sizes.heads, dtype)
            return
        if self.position_embedding:
            init = self.position_init
            self.image_position = NormAndPosition(self.image_grid, dtype, init)
            self.audio_position = NormAndPosition(self.audio_tower.grid, dtype, init)
        self.image_connector = Connector(width, self.connector, dtype)
        self.audio_connector = Connector(width, self.connector, dtype)

    @property
    def uses_conv_align(self) -> bool:
        """Whether the connectors are the release's, behind AVACE and with fewer output tokens."""
        return self.connector == "conv_align"

    @property
    def image_grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tokens in AVOpT and AVACE."""
        tower = self.image_tower
        return (tower.image_size // tower.patch_size // self.image_pool,) * 2

    @property
    def grids(self) -> dict[str, tuple[int, int]]:
        """(rows, columns) of the token grids, by the unit of the numbers that refer to them."""
        return {"coordinate": self.image_grid, "seconds": self.audio_tower.grid}

    @property
    def prefix_length(self) -> int:
        """P: markers, image tokens and audio tokens, as long as the connectors leave them."""
        grids = {"image": self.image_grid, "audio": self.audio_tower.grid}
        counts = {name: math.prod(grid) for name, grid in grids.items()}
        if self.uses_conv_align:
            sizes = self.conv_align
            counts = {name: output_length(n, *getattr(sizes, name)) for name, n in counts.items()}
        return sum(counts[part] if isinstance(part, str) else len(part) for part in self.prefix)

    def encode(
        self, pixels: jax.Array, mel: jax.Array, longer: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Both towers: image tokens float[B, V, I] and audio tokens float[B, A, J].

        pixels float[B, H, W, 3] normalised; mel float[B, F, mels] in dB (or [B, 4, F, mels] with
        longer bool[B], fused tower).
        """
        image_tokens = pool(self.image_tower(pixels)["tokens"], self.image_pool)
        return image_tokens, self.audio_tower(mel, longer)["tokens"]

    def align(
        self, image_tokens: jax.Array, audio_tokens: jax.Array, matched: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """AVOpT, AVACE and the connectors, on the tokens of `encode`.

        matched bool[B] are the pairs that set AVOpT's threshold of costs, if it has one.
        Returns image float[B, V, D] and audio float[B, A, D] (connected), attention float[B, V]
        (AVACE's map, a mean over the audio tokens), map float[B, A, V], distance float[B] and plan
        float[B, V, A] (AVOpT), image_tokens and audio_tokens (of the towers), image_alone and
        audio_alone (connected, before AVACE and without positions: each modality by itself). With
        `conv_align` the connected tokens are fewer; attention, map and plan keep their sizes.
        """
        transport = self.avopt(image_tokens, audio_tokens, matched=matched)
        join = self._align_then_connect if self.uses_conv_align else self._connect_then_align
        return {
            "image_tokens": image_tokens,
            "audio_tokens": audio_tokens,
            "distance": transport["distance"],
            "plan": transport["plan"],
            **join(image_tokens, audio_tokens),
        }

    def _connect_then_align(self, image_tokens, audio_tokens):
        """The paper's order: AVACE compares tokens that are both in the word embedding space."""
        image, audio = self.image_connector(image_tokens), self.audio_connector(audio_tokens)
        positions = {}
        if self.position_embedding:
            image, positions["image_positions"] = self.image_position(image)
            audio, positions["audio_positions"] = self.audio_position(audio)
        exchanged = self.avace(image, audio, **positions)
        return {
            "attention": exchanged["attention"],
            "map": exchanged["map"],
            "image": exchanged["image"],
            "audio": exchanged["audio"],
            "image_alone": image,
            "audio_alone": audio,
        }

    def _align_then_connect(self, image_tokens, audio_tokens):
        """The order for `conv_align`, whose output tokens have no place in the image any more.

        The towers' tokens carry positions already. With an untrained AVACE the language model gets
        what it gets in the release.
        """
        exchanged = self.avace(image_tokens, audio_tokens)
        count = self.llama.vocab_size if self.words is None else self.words
        table = self.llama.embed(jnp.arange(count))
        return {
            "attention": exchanged["attention"],
            "map": exchanged["map"],
            "image": self.image_connector(exchanged["image"], table),
            "audio": self.audio_connector(exchanged["audio"], table),
            "image_alone": self.image_connector(image_tokens, table),
            "audio_alone": self.audio_connector(audio_tokens, table),
        }

    def encode_and_align(
        self, pixels: jax.Array, mel: jax.Array, longer: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """All that comes before the language model: `align` on the tokens of `encode`."""
        return self.align(*self.encode(pixels, mel, longer))

    def embed_prefix(self, image: jax.Array, audio: jax.Array) -> jax.Array:
        """Connected tokens float[B, V, D] and float[B, A, D] among markers -> float[B, P, D]."""
        filled = {"image": image, "audio": audio}
        parts = []
        for part in self.prefix:
            if isinstance(part, str):
                parts.append(filled[part])
            else:
                row = self.llama.embed(jnp.asarray(part))
                parts.append(jnp.broadcast_to(row, (image.shape[0], *row.shape)))
        return jnp.concatenate(parts, axis=1)

    def embed_class_names(self, ids: jax.Array, weights: jax.Array) -> jax.Array:
        """Class names as mean word embeddings.

        ids int[N, W], weights float[N, W] (1 on a name's tokens, 0 on padding) -> float[N, D].
        """
        return jnp.einsum("nwd,nw->nd", self.llama.embed(ids), weights / weights.sum(1)[:, None])

    def __call__(
        self,
        pixels: jax.Array,
        mel: jax.Array,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        longer: jax.Array | None = None,
        deterministic: bool = True,
    ) -> dict[str, jax.Array]:
        """Training forward: tokens int[B, R, T] (question, answer, end) behind one shared prefix.

        segment_ids int[B, R, T] number the questions of a pack (without: a pack is one question).
        Returns the entries of `align`, `hidden` float[B, R, T, D] and `logits` float[B, R, T, C];
        logits at position t are for the token at t + 1. With positions int[B, R, N] only those are
        computed: both are float[B, R, N, ...].
        """
        features = self.encode(pixels, mel, longer)
        return self.forward_from_features(*features, tokens, segment_ids, positions, deterministic)

    def forward_from_features(
        self,
        image_tokens: jax.Array,
        audio_tokens: jax.Array,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        deterministic: bool = True,
        matched: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """`__call__` from the tokens of `encode` on; `matched` as in `align`."""
        out = self.align(image_tokens, audio_tokens, matched)
        prefix = self.embed_prefix(out["image"], out["audio"])
        return out | self._decode_text(prefix, tokens, segment_ids, positions, deterministic)

    def forward_text(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        deterministic: bool = True,
    ) -> dict[str, jax.Array]:
        """`__call__` without image and audio tokens: `hidden` and `logits` only."""
        no_tokens = jnp.zeros((len(tokens), 0, self.llama.width), self.llama.dtype)
        prefix = self.embed_prefix(no_tokens, no_tokens)
        return self._decode_text(prefix, tokens, segment_ids, positions, deterministic)

    def _decode_text(self, prefix, tokens, segment_ids, positions, deterministic):
        """`hidden` and `logits` of the packs behind prefix float[B, P, D]."""
        layout = Layout(prefix.shape[1], *tokens.shape[1:])
        if segment_ids is None:
            segment_ids = jnp.zeros_like(tokens)
        # [B, R, T] -> [B, R * T, D]
        text = self.llama.embed(tokens.reshape(len(tokens), -1))
        # [B, P + R * T, D]
        row = jnp.concatenate([prefix, text], axis=1)
        hidden = self.llama(
            row,
            layout.positions(segment_ids),
            layout,
            segment_ids=segment_ids,
            deterministic=deterministic,
        )["hidden"]
        # [B, P + R * T, D] -> [B, R, T, D]
        hidden = hidden[:, layout.prefix :].reshape(*tokens.shape, -1)
        if positions is not None:
            # [B, R, T, D] -> [B, R, N, D]
            hidden = jnp.take_along_axis(hidden, positions[..., None], axis=2)
        return {"hidden": hidden, "logits": self.llama.logits(hidden)}

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float[..., D] of `forward_from_features` or `forward_text` -> float32[..., C]."""
        return self.llama.logits(hidden)
