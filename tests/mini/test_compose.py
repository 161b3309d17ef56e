"""Scenes: drawn in the stated shares, rendered where the plan says, each from its own seed."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import soundfile
from PIL import Image

from meerkat_jax.mini import compose
from meerkat_jax.mini.procedural import make_media
from meerkat_jax.mini.thing import Media

RATE = 16000
SCENES = 3000  # planning is cheap; three standard deviations of a share are 2.7 % then


@pytest.fixture(scope="module")
def parts() -> dict[str, Media]:
    made = make_media(RATE)
    names = sorted(name for name, instance in made if instance == "a")[:20]
    return {name: made[name, "a"] for name in names}


@pytest.fixture(scope="module")
def aspect(parts) -> dict[str, float]:
    return {name: part.image.shape[1] / part.image.shape[0] for name, part in parts.items()}


@pytest.fixture(scope="module")
def plans(aspect) -> list[compose.Plan]:
    return [plan(aspect, index) for index in range(SCENES)]


def plan(aspect, index, split="train") -> compose.Plan:
    rng = compose.scene_generator(0, split, index)
    return compose.plan_scene(rng, sorted(aspect), aspect, split)


def share(cases) -> float:
    return float(np.mean(list(cases)))


# ---- the plan ----


def test_shares_of_matched_mismatched_and_quiet_scenes(plans):
    matched = share(bool(p.both) for p in plans)
    quiet = share(not p.sounds for p in plans)
    assert matched == pytest.approx(compose.SHARE_MATCHED, abs=0.03)
    assert 1 - matched - quiet == pytest.approx(compose.SHARE_MISMATCHED, abs=0.03)
    assert share(p.quiet == "noise" for p in plans if not p.sounds) == pytest.approx(0.5, abs=0.1)
    assert all(bool(p.sounds) != bool(p.quiet) for p in plans)


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", compose.SHARE_TWO_SOUNDS_TRAIN), ("compositions", compose.SHARE_TWO_SOUNDS)],
)
def test_shares_of_one_and_two_sounds(aspect, split, expected):
    plans = [plan(aspect, index, split) for index in range(SCENES)]
    sounding = [p for p in plans if p.sounds]
    two = [p for p in sounding if len(p.sounds) == 2]
    assert {len(p.sounds) for p in sounding} == {1, 2}
    assert len(two) / len(sounding) == pytest.approx(expected, abs=0.03)
    # half are made to sound together; of the others three in five do so by chance
    together = share(overlap(*p.sounds) >= 0.5 - 1e-9 for p in two)
    assert together == pytest.approx(compose.SHARE_SIMULTANEOUS + 0.5 * 0.6, abs=0.05)


def overlap(a, b) -> float:
    return min(a.end, b.end) - max(a.start, b.start)


def test_number_of_objects_and_no_name_twice(plans):
    numbers = Counter(len(p.objects) for p in plans)
    assert [round(numbers[n] / SCENES, 1) for n in (1, 2, 3)] == [0.3, 0.4, 0.3]
    assert all(
        len(set(p.image_labels)) == len(p.image_labels)
        and len(set(p.audio_labels)) == len(p.audio_labels)
        for p in plans
    )


def test_the_sound_belongs_to_each_pictured_object_equally_often(plans):
    """No place in the list of objects, and no size, may tell which one sounds."""
    single = [p for p in plans if len(p.objects) == 2 and len(p.both) == 1]
    larger = [max(p.objects, key=lambda b: (b.x1 - b.x0) * (b.y1 - b.y0)) for p in single]
    fair = share(box.label in p.both for box, p in zip(larger, single, strict=True))
    assert fair == pytest.approx(0.5, abs=0.08)


def test_every_class_is_seen_and_heard_about_equally_often(plans, parts):
    for names in ((p.image_labels for p in plans), (p.audio_labels for p in plans)):
        counts = Counter(name for scene in names for name in scene)
        mean = sum(counts.values()) / len(parts)
        assert all(0.7 * mean < counts[name] < 1.3 * mean for name in parts)


def test_boxes_lie_in_the_picture_and_apart(plans, aspect):
    for p in plans[:500]:
        for i, box in enumerate(p.objects):
            assert 0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1
            assert (box.x1 - box.x0) / (box.y1 - box.y0) == pytest.approx(aspect[box.label])
            for other in p.objects[:i]:
                wide = min(box.x1, other.x1) - max(box.x0, other.x0)
                high = min(box.y1, other.y1) - max(box.y0, other.y0)
                assert wide <= 0 or high <= 0


def test_segments_lie_in_the_clip_on_tenths_of_a_second(plans):
    for sound in (sound for p in plans for sound in p.sounds):
        assert 0 <= sound.start < sound.end <= compose.CLIP_SECONDS
        assert 1.5 - 1e-9 <= sound.end - sound.start <= 4.5 + 1e-9
        assert sound.start == round(sound.start, 1) and sound.end == round(sound.end, 1)


def test_a_scene_depends_on_seed_split_and_index_alone(aspect):
    assert plan(aspect, 7) == plan(aspect, 7)
    assert len({plan(aspect, 7), plan(aspect, 8), plan(aspect, 7, "compositions")}) == 3


# ---- the picture ----


def image(p, parts, index=0, new=False):
    data, boxes = compose.render_image(
        compose.scene_generator(1, "train", index), p, parts, new_augmentations=new
    )
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float), boxes


@pytest.mark.parametrize("new", [False, True])
def test_boxes_are_where_pixels_were_pasted(parts, aspect, plans, new, monkeypatch):
    """On a plain grey background, what is not grey fills the boxes to their edges."""
    grey = np.full((compose.IMAGE_SIZE, compose.IMAGE_SIZE, 3), 128, np.uint8)
    monkeypatch.setattr(compose, "_background", lambda rng: grey)
    side = compose.IMAGE_SIZE
    for index, p in enumerate(plans[:25]):
        pixels, boxes = image(p, parts, index, new)
        assert [box.label for box in boxes] == [box.label for box in p.objects]
        changed = np.abs(pixels - 128).max(-1) > 40
        inside = np.zeros_like(changed)
        for box in boxes:
            x0, y0, x1, y1 = (round(v * side) for v in (box.x0, box.y0, box.x1, box.y1))
            inside[max(0, y0 - 4) : y1 + 4, max(0, x0 - 4) : x1 + 4] = True  # JPEG smears
            rows = np.flatnonzero(changed[y0:y1, x0:x1].any(1))
            columns = np.flatnonzero(changed[y0:y1, x0:x1].any(0))
            slack = 3 + 0.1 * max(y1 - y0, x1 - x0)  # thin tips fade out, blur more so
            assert rows[0] <= slack and rows[-1] >= y1 - y0 - 1 - slack
            assert columns[0] <= slack and columns[-1] >= x1 - x0 - 1 - slack
        assert not (changed & ~inside).any()


def test_boxes_have_three_decimals_and_stay_near_the_plan(parts, plans):
    for index, p in enumerate(plans[:25]):
        _, boxes = image(p, parts, index)
        for box, planned in zip(boxes, p.objects, strict=True):
            for corner in ("x0", "y0", "x1", "y1"):
                value = getattr(box, corner)
                assert value == round(value, 3)
                assert value == pytest.approx(getattr(planned, corner), abs=1.5 / 224 + 0.001)


def test_backgrounds_vary(parts, plans):
    means = [image(plans[0], parts, index)[0][:8, :8].mean((0, 1)) for index in range(20)]
    assert np.std(means, axis=0).min() > 20


def test_new_augmentations_change_the_picture_and_the_sound(parts, plans):
    p = next(p for p in plans if p.sounds)
    assert not np.array_equal(image(p, parts)[0], image(p, parts, new=True)[0])
    assert not np.array_equal(sound(p, parts), sound(p, parts, new=True))


# ---- the sound ----


def sound(p, parts, index=0, new=False) -> np.ndarray:
    rng = compose.scene_generator(2, "train", index)
    data = compose.render_audio(rng, p, parts, RATE, new_augmentations=new)
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == RATE and samples.shape == (round(compose.CLIP_SECONDS * RATE),)
    return samples


def level(samples) -> float:
    return 20 * np.log10(np.sqrt(np.mean(samples.astype(float) ** 2)) + 1e-12)


def test_sounds_stand_out_in_their_segments_and_nowhere_else(parts, plans):
    for index, p in enumerate([p for p in plans if p.sounds][:20]):
        samples = sound(p, parts, index)
        assert np.abs(samples).max() < 1.0
        heard = np.zeros(len(samples), bool)
        for segment in p.sounds:
            piece = slice(round(segment.start * RATE), round(segment.end * RATE))
            heard[piece] = True
            assert level(samples[piece]) > -40
        assert level(samples[~heard]) < -44


def test_silence_is_silent_and_noise_is_not(parts, plans):
    quiet = {kind: next(p for p in plans if p.quiet == kind) for kind in ("silence", "noise")}
    assert not sound(quiet["silence"], parts).any()
    assert -41 < level(sound(quiet["noise"], parts)) < -19


def test_mu_law_changes_a_sound_by_a_thirtieth_at_most(parts, plans, monkeypatch):
    p = next(p for p in plans if p.sounds)
    coarse, write = sound(p, parts), soundfile.write
    exact = {"subtype": "FLOAT"}
    monkeypatch.setattr(compose.soundfile, "write", lambda *a, **k: write(*a, **k | exact))
    fine = sound(p, parts)
    # mu-law has a signal-to-noise ratio of 30 to 38 dB; any finer format would fail too
    assert -40 < level(coarse - fine) - level(fine) < -30
