"""Images of the report: boxes, attention, spectrogram, segments and transport plan.

Everything becomes HTML or inline SVG with the pixels as data URIs, so a page needs no other file.
Only Pillow is needed. Solid blue is an answer, dashed orange the truth, dotted white what a
question asks about: colours that stay apart for colour-blind eyes, and never colour alone.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from meerkat_jax.data.example import Box, Segment

# Control points of a dark-to-light scale whose lightness rises evenly, for heat maps.
_SCALE = ((8, 8, 32), (60, 15, 110), (150, 40, 110), (225, 85, 60), (252, 165, 35), (250, 250, 165))
MAX_MAPS = 8
MAX_SPECTROGRAM_WIDTH = 480
SIGNATURES = {b"RIFF": "audio/wav", b"OggS": "audio/ogg", b"fLaC": "audio/flac"}


def data_uri(content: bytes, kind: str) -> str:
    """The bytes as a data URI of MIME type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image_uri(pixels: np.ndarray) -> str:
    """uint8[H,W,3] as a JPEG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return data_uri(buffer.getvalue(), "image/jpeg")


def heat(values: np.ndarray) -> np.ndarray:
    """float[...] in 0..1 to colours uint8[...,3] of the scale; NaN reads as 0."""
    points = np.linspace(0, 1, len(_SCALE))
    values = np.clip(np.nan_to_num(values), 0, 1)
    channels = [np.interp(values, points, channel) for channel in zip(*_SCALE, strict=True)]
    return np.stack(channels, -1).round().astype(np.uint8)


def spectrogram_uri(logmel: np.ndarray) -> str:
    """float[F,64] in dB as a paletted PNG, low frequencies at the bottom, time to the right."""
    logmel = np.nan_to_num(np.asarray(logmel, np.float32))
    top, bottom = np.percentile(logmel, [99.5, 5]) if logmel.size else (0.0, 0.0)
    bottom = max(bottom, top - 80)  # quieter than 80 dB under the loudest is silence to the eye
    scaled = np.clip((logmel - bottom) / max(top - bottom, 1e-6), 0, 1)
    levels = Image.fromarray((scaled.T[::-1] * 255).astype(np.uint8))
    width = min(levels.width, MAX_SPECTROGRAM_WIDTH)
    levels = levels.resize((width, levels.height * 2), Image.Resampling.BILINEAR)
    levels.putpalette(heat(np.linspace(0, 1, 256)).tobytes())
    buffer = io.BytesIO()
    levels.save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def overlay(image: np.ndarray, weights: np.ndarray, size: int | None = None) -> np.ndarray:
    """uint8[H,W,3] image under a heat map float[h,w] in 0..1; `size` shrinks the longest side."""
    grey = Image.fromarray(image).convert("L").convert("RGB")
    if size:
        grey.thumbnail((size, size))
    grid = Image.fromarray(np.nan_to_num(np.asarray(weights, np.float32)))
    smooth = np.clip(np.asarray(grid.resize(grey.size, Image.Resampling.BICUBIC)), 0, 1)
    opacity = (0.45 + 0.4 * smooth)[..., None]
    return (opacity * heat(smooth) + (1 - opacity) * np.asarray(grey)).astype(np.uint8)


def image_figure(
    image: np.ndarray, boxes: Sequence[tuple[str, Box]], description: str, heated=None
) -> str:
    """SVG of an image (or of its overlay with `heated` float[h,w]) with boxes drawn on it.

    `boxes` are (role, box), the role being "true", "answer" or "asked".
    """
    shown = image
    if heated is not None:
        largest = float(np.nanmax(heated)) if np.size(heated) else 0.0
        shown = overlay(image, np.asarray(heated) / max(largest, 1e-12))
    height = 300 * image.shape[0] / image.shape[1]
    # Truth last: its dashes stay visible on top of an answer that is exactly right.
    order = sorted(boxes, key=lambda item: item[0] == "true")
    drawn = "".join(_box_svg(role, box, height) for role, box in order)
    return (
        f'<svg class="image" viewBox="0 0 300 {height:.0f}" role="img" '
        f'aria-label="{escape(description)}"><image href="{image_uri(shown)}" width="300" '
        f'height="{height:.0f}" preserveAspectRatio="none"/>{drawn}</svg>'
    )


def clip_figure(
    logmel: np.ndarray, tracks: Sequence[tuple[str, str, Sequence[Segment]]], seconds: float
) -> str:
    """Log-mel spectrogram float[F,64] with tracks under it on one time axis.

    `tracks` are (row title, role, segments); the role, "context" or one of the roles of boxes, sets
    the style.
    """
    rows = "".join(_track(title, role, segments, seconds) for title, role, segments in tracks)
    return (
        '<div class="clip"><div class="row"><span class="title">pitch<br>low to high</span>'
        f'<img class="spectrogram" src="{spectrogram_uri(logmel)}" '
        f'alt="Spectrogram of the clip, {seconds:g} seconds"></div>{rows}{_axis(seconds)}</div>'
    )


def plan_figure(
    image: np.ndarray, plan: np.ndarray, grid: tuple[int, int, int, int], seconds: float
) -> str:
    """Transport plan float[V,A] as one small heat map over the image per stretch of time.

    `grid` is (rows, columns) of the patches and (frequency groups, time columns) of the audio
    tokens, whose index is group * columns + column. Raises ValueError when it does not fit.
    """
    maps, spans, peak = plan_maps(plan, grid, seconds)
    cells = "".join(
        f'<img src="{image_uri(overlay(image, m / max(peak, 1e-12), 96))}" '
        f'alt="Transport between {a:.1f} and {b:.1f} seconds">'
        for m, (a, b) in zip(maps, spans, strict=True)
    )
    return (
        '<div class="clip"><div class="row"><span class="title">transport plan</span>'
        f'<div class="strip">{cells}</div></div></div><p class="fine">Each small image shows '
        "where the plan carries that stretch of the sound. The brightest patch gets "
        f"{peak:.1f} times an even share.</p>"
    )


def plan_maps(plan: np.ndarray, grid: tuple[int, int, int, int], seconds: float):
    """Maps float[n,h,w] in multiples of an even share, their (start, end) in s, and the peak."""
    h, w, groups, columns = grid
    plan = np.nan_to_num(np.asarray(plan, np.float64))
    if plan.shape != (h * w, groups * columns):
        raise ValueError(f"plan {plan.shape} does not fit grid {grid}: expected [h*w, freq*time]")
    by_time = plan.reshape(h, w, groups, columns).sum(2)
    parts = np.array_split(np.arange(columns), min(MAX_MAPS, columns))
    maps = np.stack([by_time[..., part].sum(-1) for part in parts])
    totals = maps.sum((1, 2), keepdims=True)
    maps = maps / np.where(totals > 0, totals, 1) * h * w
    spans = [(p[0] * seconds / columns, (p[-1] + 1) * seconds / columns) for p in parts]
    return maps, spans, float(maps.max())


def audio_player(content: bytes | None, most: int = 600_000) -> str:
    """A player with the clip inside the page; empty when there is none or it is too large."""
    kind = SIGNATURES.get((content or b"")[:4])
    if not kind or len(content) > most:
        return ""
    return f'<audio controls preload="none" src="{data_uri(content, kind)}"></audio>'


def _box_svg(role: str, box: Box, height: float) -> str:
    x, y = 300 * box.x0, height * box.y0
    w, h = 300 * (box.x1 - box.x0), height * (box.y1 - box.y0)
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(w, 1):.1f}" height="{max(h, 1):.1f}"'
    # True names stand over the box, answered ones in it at the bottom, so that both can be read.
    text_y = y + h - 6 if role == "answer" else (y - 5 if y > 16 else y + 14)
    label = f'<text x="{x + 4:.1f}" y="{text_y:.1f}" class="{role}">{escape(box.label)}</text>'
    halo = "" if role == "true" else f'<rect class="halo" {place}/>'
    return f'{halo}<rect class="{role}" {place}/>{label}'


def _track(title: str, role: str, segments: Sequence[Segment], seconds: float) -> str:
    drawn = []
    for lane in _lanes(segments) or [[]]:
        bars = "".join(_bar(role, segment, seconds) for segment in lane)
        bars = bars or '<span class="none">none</span>'
        drawn.append(
            f'<div class="row"><span class="title">{escape(title)}</span>'
            f'<div class="track">{bars}</div></div>'
        )
        title = ""
    return "".join(drawn)


def _lanes(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments in as few rows as keep them from covering each other."""
    lanes: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda s: s.start):
        free = next((lane for lane in lanes if lane[-1].end <= segment.start), None)
        if free is None:
            lanes.append([segment])
        else:
            free.append(segment)
    return lanes


def _bar(role: str, segment: Segment, seconds: float) -> str:
    start, end = (min(max(t / seconds, 0), 1) * 100 for t in (segment.start, segment.end))
    # A name too long for its bar is cut by CSS; the full text stays in the title.
    words = f"{segment.label} {segment.start:.1f} to {segment.end:.1f} s"
    return (
        f'<span class="bar {role}" style="left:{start:.2f}%;width:{max(end - start, 0.5):.2f}%" '
        f'title="{escape(words.strip())}">{escape(segment.label)}</span>'
    )


def _axis(seconds: float) -> str:
    step = next(s for s in (1, 2, 5, 10, 30, 60, 600, 3600) if seconds / s <= 6)
    ticks = np.arange(0, seconds + 1e-6, step)
    marks = "".join(
        f'<span style="left:{100 * t / seconds:.2f}%">{t:g}{" s" if t == ticks[-1] else ""}</span>'
        for t in ticks
    )
    return f'<div class="row"><span class="title"></span><div class="axis">{marks}</div></div>'
