"""The whole model: two towers, two alignment modules, two connectors, one language model.

    picture -> CLIP  -> tokens -+-> connector -> AVACE -+
                                | AVOpT                 +-> prefix -> Llama -> answers
    sound   -> HTSAT -> tokens -+-> connector -> AVACE -+

Source: Meerkat (arXiv 2407.01851), figure 2 and section 3. One code for all sizes; what differs
between the mini and the 7B model is in the fields of the parts. The connector of the authors'
release (`conv_align`) leaves fewer tokens than there are places, and so comes after AVACE.

Letters: B pairs, R runs of T tokens that hold the questions of a pair, V image tokens, A audio
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
from meerkat_jax.models.connectors import AlignConfig, Connector, ConvAlign, left
from meerkat_jax.models.llama import Layout, Llama
from meerkat_jax.nn.layers import RMSNorm


class NormAndPosition(nn.Module):
    """Connected tokens at one size, and a learned position embedding of each: an option.

    HTSAT carries no absolute time and a tower trained from names little position. The norm comes
    first: tokens 20 times as large as their positions hide where they are.
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
    """Means over side x side neighbours in a square grid, row by row.

    float[B, V, D] -> float[B, V / side^2, D].
    """
    batch, count, width = tokens.shape
    rows = math.isqrt(count) // side
    squares = tokens.reshape(batch, rows, side, rows, side, width)
    return squares.mean((2, 4)).reshape(batch, rows**2, width)


class Meerkat(nn.Module):
    """Answers questions about a picture and a sound.

    `prefix` says how a sequence begins: runs of token ids and the words "image" and "audio" for the
    places of the tokens that the towers give (data/prompt.py). An image token is the mean over
    image_pool x image_pool patches: a small tower learns far more from fine patches, and all that
    is behind it costs by the token. `conv_align` has the sizes of the connector of that name, which
    attends to the first `words` rows of the language model's table (None: to all of them).
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
        """The places and connectors of both token sets."""
        patches = self.image_tower.image_size // self.image_tower.patch_size
        if self.image_pool < 1 or patches % self.image_pool:
            raise UserError(
                f"model.image_pool {self.image_pool!r} does not divide the picture's "
                f"{patches} x {patches} patches; use a divisor of {patches}, 1 for no pooling"
            )
        width, dtype = self.llama.width, self.llama.dtype
        if self.aligns:
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
    def aligns(self) -> bool:
        """Whether the connectors are the release's: fewer tokens, behind AVACE."""
        return self.connector == "conv_align"

    @property
    def image_grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tokens that AVOpT and AVACE see."""
        tower = self.image_tower
        return (tower.image_size // tower.patch_size // self.image_pool,) * 2

    @property
    def grids(self) -> dict[str, tuple[int, int]]:
        """(rows, columns) of the places that coordinates and seconds name."""
        return {"coordinate": self.image_grid, "seconds": self.audio_tower.grid}

    @property
    def prefix_length(self) -> int:
        """P: markers, and the tokens of picture and sound that the connectors leave."""
        grids = {"image": self.image_grid, "audio": self.audio_tower.grid}
        places = {name: math.prod(grid) for name, grid in grids.items()}
        if self.aligns:
            places = {name: left(n, *getattr(self.conv_align, name)) for name, n in places.items()}
        return sum(places[part] if isinstance(part, str) else len(part) for part in self.prefix)

    def sense(
        self, pixels: jax.Array, mel: jax.Array, longer: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Both towers alone: image tokens float[B, V, I] and audio tokens float[B, A, J].

        pixels float[B, H, W, 3] normalised; mel float[B, F, mels] in dB (or [B, 4, F, mels] with
        longer bool[B], fused tower).
        """
        image_tokens = pool(self.image_tower(pixels)["tokens"], self.image_pool)
        return image_tokens, self.audio_tower(mel, longer)["tokens"]

    def meet(
        self, image_tokens: jax.Array, audio_tokens: jax.Array, matched: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Both alignment modules and both connectors, on what `sense` gives.

        matched bool[B] are the pairs that set AVOpT's threshold of costs, if it has one.
        Returns image float[B, V, D] and audio float[B, A, D] (connected), attention float[B, V]
        (AVACE's map, a mean over the sound), map float[B, A, V], distance float[B] and plan
        float[B, V, A] (AVOpT), image_tokens, audio_tokens (of the towers); image_alone and
        audio_alone: connected, without places and AVACE, so that neither knows of the other. With
        `conv_align` the connected ones are fewer, attention, map and plan are not.
        """
        transport = self.avopt(image_tokens, audio_tokens, matched=matched)
        join = self._align_then_connect if self.aligns else self._connect_then_align
        return {
            "image_tokens": image_tokens,
            "audio_tokens": audio_tokens,
            "distance": transport["distance"],
            "plan": transport["plan"],
            **join(image_tokens, audio_tokens),
        }

    def _connect_then_align(self, image_tokens, audio_tokens):
        """Connected, then joined by AVACE: connected tokens are of one space, that of words.

        So what is heard finds what is seen.
        """
        image, audio = self.image_connector(image_tokens), self.audio_connector(audio_tokens)
        positions = {}
        if self.position_embedding:
            image, positions["image_positions"] = self.image_position(image)
            audio, positions["audio_positions"] = self.audio_position(audio)
        exchange = self.avace(image, audio, **positions)
        return {
            "attention": exchange["attention"],
            "map": exchange["map"],
            "image": exchange["image"],
            "audio": exchange["audio"],
            "image_alone": image,
            "audio_alone": audio,
        }

    def _align_then_connect(self, image_tokens, audio_tokens):
        """Joined by AVACE, then connected: what is left after that has no place in the picture.

        The towers' tokens carry positions already. Where AVACE is untrained and adds no attention
        embedding, the language model gets what the release gives it.
        """
        exchange = self.avace(image_tokens, audio_tokens)
        count = self.llama.vocab_size if self.words is None else self.words
        table = self.llama.embed(jnp.arange(count))
        return {
            "attention": exchange["attention"],
            "map": exchange["map"],
            "image": self.image_connector(exchange["image"], table),
            "audio": self.audio_connector(exchange["audio"], table),
            "image_alone": self.image_connector(image_tokens, table),
            "audio_alone": self.audio_connector(audio_tokens, table),
        }

    def perceive(
        self, pixels: jax.Array, mel: jax.Array, longer: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """`meet` of `sense`: all that comes before the language model."""
        return self.meet(*self.sense(pixels, mel, longer))

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

    def names(self, ids: jax.Array, weights: jax.Array) -> jax.Array:
        """Class names as the language model's own word vectors.

        ids int[N, W], weights float[N, W] (1 on a name's words, 0 on padding) -> means float[N, D].
        """
        return jnp.einsum("nwd,nw->nd", self.llama.embed(ids), weights / weights.sum(1)[:, None])

    def __call__(
        self,
        pixels: jax.Array,
        mel: jax.Array,
        tokens: jax.Array,
        owners: jax.Array | None = None,
        places: jax.Array | None = None,
        longer: jax.Array | None = None,
        deterministic: bool = True,
    ) -> dict[str, jax.Array]:
        """Training forward: tokens int[B, R, T] (question, answer, end) behind one shared prefix.

        owners int[B, R, T] tells the questions of a run apart (without: a run is one question).
        Returns `meet`'s entries, `hidden` float[B, R, T, D] and `logits` float[B, R, T, C];
        logits at place t are for the token at t + 1. With places int[B, R, N] only theirs are made:
        both are float[B, R, N, ...].
        """
        senses = self.sense(pixels, mel, longer)
        return self.respond(*senses, tokens, owners, places, deterministic)

    def respond(
        self,
        image_tokens: jax.Array,
        audio_tokens: jax.Array,
        tokens: jax.Array,
        owners: jax.Array | None = None,
        places: jax.Array | None = None,
        deterministic: bool = True,
        matched: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """`__call__` behind the towers, on what `sense` gives; matched as of `meet`."""
        out = self.meet(image_tokens, audio_tokens, matched)
        prefix = self.embed_prefix(out["image"], out["audio"])
        return out | self._say(prefix, tokens, owners, places, deterministic)

    def speak(
        self,
        tokens: jax.Array,
        owners: jax.Array | None = None,
        places: jax.Array | None = None,
        deterministic: bool = True,
    ) -> dict[str, jax.Array]:
        """`__call__` without picture and sound, `hidden` and `logits` only: words among words."""
        nothing = jnp.zeros((len(tokens), 0, self.llama.width), self.llama.dtype)
        prefix = self.embed_prefix(nothing, nothing)
        return self._say(prefix, tokens, owners, places, deterministic)

    def _say(self, prefix, tokens, owners, places, deterministic):
        """`hidden` and `logits` of the runs behind prefix float[B, P, D]."""
        pairs, runs, length = tokens.shape
        layout = Layout(prefix.shape[1], runs, length)
        if owners is None:
            owners = jnp.zeros_like(tokens)
        text = self.llama.embed(tokens).reshape(pairs, runs * length, -1)
        row = jnp.concatenate([prefix, text], axis=1)
        hidden = self.llama(
            row, layout.positions(owners), layout, owners=owners, deterministic=deterministic
        )["hidden"]
        hidden = hidden[:, layout.prefix :].reshape(*tokens.shape, -1)
        if places is not None:
            hidden = jnp.take_along_axis(hidden, places[..., None], axis=2)
        return {"hidden": hidden, "logits": self.llama.logits(hidden)}

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float[..., D] of `respond` or `speak` -> float32[..., C]."""
        return self.llama.logits(hidden)
