"""CLAP's audio tower, HTSAT (Wu et al. 2023, arXiv 2211.06687; Chen et al. 2022, arXiv 2202.00874).

A log-mel spectrogram is cut into `fold` time segments that are stacked into a square image, the
input of four Swin stages. Clips longer than the window have a fused front end:
one squeezed view of the whole clip and three crops of it, mixed by attentional feature fusion (Dai
et al. 2021). The structure is that of the published checkpoints, one leaf per source tensor; there
is no dropout, since the tower is frozen or trained at its inference statistics.

Letters: B batch, F mel frames, M mel bins, A audio tokens, D width of the last stage.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.models.swin import PatchMerging, SwinStage, layer_norm
from meerkat_jax.nn.dense import LECUN, Dense

CROPS = 3  # local views beside the global one


@functools.cache
def bicubic_taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Four-tap cubic interpolation with aligned corners: (int[4, target] indices, float32 weights).

    Positions are computed in float32, as in the reference: at frame 1000 float64 changes the sixth
    digit of the result.
    """
    scale = np.float32(source - 1) / np.float32(max(target - 1, 1))
    return cubic_taps(np.arange(target, dtype=np.float32) * scale, source)


def cubic_taps(position: np.ndarray, source: int) -> tuple[np.ndarray, np.ndarray]:
    """Cubic interpolation at `position` float32[N] of `source` samples: int, float32[4, N].

    The four nearest samples and their weights: Keys' kernel with a = -0.75, the edge repeated.
    """
    below = np.floor(position).astype(int)
    part = position - below.astype(np.float32)
    offsets = np.arange(-1, 3)[:, None]
    indices = np.clip(below + offsets, 0, source - 1)
    gap = np.abs(part - offsets.astype(np.float32))
    a = np.float32(-0.75)
    near = ((a + 2) * gap - (a + 3)) * gap * gap + 1
    far = ((a * gap - 5 * a) * gap + 8 * a) * gap - 4 * a
    return indices, np.where(gap <= 1, near, far).astype(np.float32)


def resize_frames(mel: jax.Array, frames: int) -> jax.Array:
    """Stretch time by bicubic interpolation: float[..., F, M] -> float[..., frames, M]."""
    if mel.shape[-2] == frames:
        return mel
    indices, weights = bicubic_taps(mel.shape[-2], frames)
    taps = zip(indices, weights, strict=True)
    return sum(mel[..., p, :] * w[:, None].astype(mel.dtype) for p, w in taps)


def mel_to_image(mel: jax.Array, fold: int) -> jax.Array:
    """Stack `fold` time segments, low frequencies first.

    float[..., F, M] -> float[..., fold * M, F / fold]; row = segment * M + bin.
    """
    *lead, frames, bins = mel.shape
    # [..., F, M] -> [..., fold, M, F / fold]
    mel = mel.reshape(*lead, fold, frames // fold, bins).swapaxes(-1, -2)
    return mel.reshape(*lead, fold * bins, frames // fold)


class BatchNorm(nn.Module):
    """Batch norm over the last axis with stored statistics always: float[..., M] -> same.

    The statistics are plain parameters (`bn_mean`, `bn_var`) behind a stop_gradient, so that the
    tower is a pure function of its parameters. `mean` and `var` are their initial values.
    """

    mean: float = 0.0
    var: float = 1.0
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise, then scale and shift, in float32."""
        size = x.shape[-1:]
        mean = self.param("bn_mean", nn.initializers.constant(self.mean), size)
        var = self.param("bn_var", nn.initializers.constant(self.var), size)
        scale = self.param("scale", nn.initializers.ones, size)
        bias = self.param("bias", nn.initializers.zeros, size)
        mean, var = jax.lax.stop_gradient((mean, var))
        y = (x.astype(jnp.float32) - mean) * (scale * jax.lax.rsqrt(var + self.eps)) + bias
        return y.astype(self.dtype)


class PatchProjection(nn.Module):
    """A convolution whose stride is its kernel, as one matrix product over cut-out patches.

    float[..., h, w] -> float[..., h // height, w // width, features]; what does not fill a patch at
    the right edge is dropped. Parameters: kernel float[height, width, 1, features], bias.
    """

    height: int
    width: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Project every patch of float[..., h, w]."""
        *lead, h, w = x.shape
        down, right, size = h // self.height, w // self.width, self.height * self.width
        x = x[..., : down * self.height, : right * self.width]
        # [..., h, w] -> [..., rows, columns, height, width] -> [..., rows, columns, size]
        x = x.reshape(*lead, down, self.height, right, self.width).swapaxes(-3, -2)
        x = x.reshape(*lead, down, right, size).astype(self.dtype)
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (self.height, self.width, 1, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return x @ kernel.reshape(size, -1).astype(self.dtype) + bias.astype(self.dtype)


class FusionGate(nn.Module):
    """Attentional feature fusion: a gate in 0..1 per position and channel mixes two maps.

    (float[B, h, w, C], float[B, h, w, C]) -> float[B, h, w, C]: 2 (g x + (1 - g) y), with g from
    a bottleneck on x + y at every position and another on its mean over the map.
    """

    ratio: int = 4
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Mix the global map x with the local map y."""
        both = x + y
        gate = self._bottleneck("local", both)
        gate += self._bottleneck("pooled", both.mean(axis=(1, 2), keepdims=True))
        gate = nn.sigmoid(gate)
        return 2 * (x * gate + y * (1 - gate))

    def _bottleneck(self, name: str, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        for part, size in (("in", width // self.ratio), ("out", width)):
            x = Dense(size, dtype=self.dtype, name=f"{name}_{part}")(x)
            x = BatchNorm(eps=self.eps, dtype=self.dtype, name=f"{name}_{part}_norm")(x)
            x = nn.relu(x) if part == "in" else x
        return x


class PatchEmbed(nn.Module):
    """The image's patches as tokens, with the crops of a longer clip fused in.

    images float[B, 1 or 4, S, S] (the whole clip first, then three crops), longer bool[B] ->
    float[B, S/patch, S/patch, width].
    """

    patch: int
    width: int
    fused: bool
    gate_ratio: int = 4
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, longer: jax.Array | None = None) -> jax.Array:
        """Embed; the fusion runs for every row and `where` keeps it for the longer ones."""
        project = PatchProjection(self.patch, self.patch, self.width, self.dtype, name="projection")
        x = project(images[:, 0])
        if self.fused:
            gate = FusionGate(self.gate_ratio, self.eps, self.dtype, name="fusion")
            fused = gate(x, self._local(images[:, 1:], x.shape[2]))
            x = jnp.where(longer[:, None, None, None], fused, x)
        return layer_norm("norm", self.eps, self.dtype)(x)

    def _local(self, crops: jax.Array, columns: int) -> jax.Array:
        """Crops through patches three times as wide, side by side, zeros up to `columns`."""
        wide = PatchProjection(
            self.patch,
            self.patch * CROPS,
            self.width,
            self.dtype,
            name="local_projection",
        )
        # [B, crops, rows, columns, width] -> [B, rows, crops * columns, width]
        y = wide(crops).swapaxes(1, 2)
        y = y.reshape(*y.shape[:2], -1, self.width)
        return jnp.pad(y, ((0, 0), (0, 0), (0, columns - y.shape[2]), (0, 0)))


class ClapAudio(nn.Module):
    """HTSAT: log-mel float[B, F, mel_bins] -> tokens float[B, A, D].

    Defaults are the sizes of `clap-htsat-fused` (A = 64 = 2 x 32, D = 768); `fused=False` is
    `clap-htsat-unfused`. `mel_mean` and `mel_var` (dB, dB^2) initialise the statistics of the
    input's batch norm: an untrained tower needs them, since a log-mel is far from zero mean.
    """

    spec_size: int = 256
    mel_bins: int = 64
    patch_size: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 8
    mlp_ratio: float = 4.0
    fused: bool = True
    gate_ratio: int = 4
    eps: float = 1e-5
    mel_mean: float = 0.0
    mel_var: float = 1.0
    dtype: jnp.dtype = jnp.float32
    residual_init: Callable = LECUN

    @property
    def fold(self) -> int:
        """Time segments that are stacked in the image."""
        return self.spec_size // self.mel_bins

    @property
    def frames(self) -> int:
        """Mel frames of a full image; shorter inputs are stretched to it."""
        return self.spec_size * self.fold

    @property
    def grid(self) -> tuple[int, int]:
        """(frequency rows, time columns) of the output tokens."""
        side = self.spec_size // self.patch_size // 2 ** (len(self.depths) - 1)
        return side // self.fold, side * self.fold

    @property
    def features(self) -> int:
        """D, the width of the output tokens."""
        return self.width * 2 ** (len(self.depths) - 1)

    @nn.compact
    def __call__(self, mel: jax.Array, longer: jax.Array | None = None) -> dict:
        """Encode log-mels in dB.

        mel float[B, F, mel_bins] with F <= `frames`, or when fused float[B, 4, F, mel_bins] (whole
        clip, then three crops) with longer bool[B]. A fused tower takes float[B, F, mel_bins]
        without `longer` when no clip is longer.

        Returns `tokens` float[B, A, D] (index = frequency * time columns + time), `grid`
        (frequency, time), `pooled` float[B, D] their mean, `patches` float[B, h, w, width] and
        `stages`, the output of each stage before merging. Raises UserError on sizes that do not
        fit.
        """
        self._check_sizes()
        mel, longer = self._views(mel, longer)
        norm = BatchNorm(self.mel_mean, self.mel_var, self.eps, self.dtype, name="mel_norm")
        # The published order, norm first, is the same (the taps sum to 1), but its gradient would
        # pass through the stretching, a quarter of the tower's time on CPU.
        images = mel_to_image(norm(resize_frames(mel, self.frames)), self.fold)
        embed = PatchEmbed(
            self.patch_size,
            self.width,
            self.fused,
            self.gate_ratio,
            self.eps,
            self.dtype,
            name="patch_embed",
        )
        patches = x = embed(images, longer)
        stages = []
        for i, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if i:
                x = PatchMerging(self.eps, self.dtype, name=f"merge_{i - 1}")(x)
            stage = SwinStage(
                depth,
                heads,
                self.window_size,
                self.mlp_ratio,
                self.eps,
                self.dtype,
                self.residual_init,
                name=f"stage_{i}",
            )
            x = stage(x)
            stages.append(x)
        tokens = self._unfold(layer_norm("norm", self.eps, self.dtype)(x))
        return {
            "tokens": tokens,
            "grid": self.grid,
            "pooled": tokens.mean(axis=1),
            "patches": patches,
            "stages": tuple(stages),
        }

    def _unfold(self, x: jax.Array) -> jax.Array:
        """Join the stacked segments into one time axis: float[B, s, s, D] -> float[B, A, D]."""
        b, side, _, d = x.shape
        # [B, fold * rows, side, D] -> [B, rows, fold, side, D] -> [B, A, D]
        x = x.reshape(b, self.fold, side // self.fold, side, d).swapaxes(1, 2)
        return x.reshape(b, side * side, d)

    def _views(self, mel: jax.Array, longer: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """mel as float[B, views, F, M], and longer bool[B] (or None where it has no meaning)."""
        views = 1 + CROPS if self.fused else 1
        if mel.ndim == 3 and longer is None:
            longer = jnp.zeros(mel.shape[0], bool)
            mel = jnp.broadcast_to(mel[:, None], (mel.shape[0], views, *mel.shape[1:]))
        expected = f"[B, {views}, F <= {self.frames}, {self.mel_bins}]"
        fits = mel.ndim == 4 and mel.shape[1] == views and mel.shape[3] == self.mel_bins
        if not fits or mel.shape[2] > self.frames:
            raise UserError(
                f"mel has shape {list(mel.shape)}, expected {expected}: "
                "crop the clip, or change spec_size, mel_bins or fused"
            )
        if self.fused and longer is None:
            raise UserError(
                "mel holds crops but longer is missing: pass longer bool[B], true for clips that "
                "were cut to the window"
            )
        return mel, longer

    def _check_sizes(self) -> None:
        widths = [self.width * 2**i for i in range(len(self.depths))]
        fits = len(self.heads) == len(widths)
        if not fits or any(w % h for w, h in zip(widths, self.heads, strict=True)):
            raise UserError(
                f"heads={self.heads} must hold one divisor of each stage's width {tuple(widths)}"
            )
        for name in ("mel_bins", "patch_size"):
            if self.spec_size % getattr(self, name):
                raise UserError(
                    f"spec_size={self.spec_size} must be a multiple of {name}={getattr(self, name)}"
                )
        side = self.spec_size // self.patch_size
        sides = [side // 2**i for i in range(len(self.depths))]
        whole = side % 2 ** (len(self.depths) - 1) == 0 and sides[-1] % self.fold == 0
        if not whole or any(s > self.window_size and s % self.window_size for s in sides):
            raise UserError(
                f"token grids {sides} do not fit window_size={self.window_size} and {self.fold} "
                "stretches of time: choose spec_size / patch_size as a power of two"
            )
