"""The Python API: loading, asking, what the notes say, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile

from meerkat_jax.api import Meerkat, Request
from meerkat_jax.core.errors import UserError
from meerkat_jax.inference.inputs import spell
from meerkat_jax.mini.tokenizer import build_mini_tokenizer
from tests import tiny
from tests.inference.made import STEP, fast_compilation, made, make_image, model, png, tone, wav

PROMPT = "What makes this sound?"
OTHER = "Count the things that you see."


@pytest.fixture(scope="module", autouse=True)
def quick():
    with fast_compilation():
        yield


@pytest.fixture(scope="module")
def clip() -> bytes:
    return wav(tone(440))


@pytest.fixture
def copied(tmp_path):
    """A work directory of one's own, to damage."""
    return shutil.copytree(made().workdir, tmp_path / "run")


# ---- loading ----


def test_the_names_of_the_library_are_there_and_cost_nothing():
    code = (
        "import sys, meerkat_jax; assert 'jax' not in sys.modules; "
        "assert {'Answer', 'Box', 'Meerkat', 'Segment'} <= set(dir(meerkat_jax)); "
        "from meerkat_jax import Box; assert 'jax' not in sys.modules; Box('dog', 0, 0, 1, 1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import meerkat_jax

    assert meerkat_jax.Meerkat is Meerkat
    with pytest.raises(AttributeError, match="meerkat_jax.*no attribute 'Meercat'"):
        _ = meerkat_jax.Meercat


def test_loaded_parameters_are_those_that_were_saved_and_the_frozen_ones_those_of_the_seed():
    jax.tree.map(np.testing.assert_array_equal, model().params, made().params)
    assert model().step == STEP and model().seconds == 10.0


def rewrite(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def other_tokenizer(run):
    build_mini_tokenizer(["entirely other words"], ["zebra"]).save(run)


DAMAGES = {
    "no config": (lambda run: (run / "config.json").unlink(), "config.json is not there"),
    "foreign config": (lambda run: (run / "config.json").write_text("{}"), "config.json is not"),
    "not json": (lambda run: (run / "config.json").write_text("{"), "config.json is not"),
    "no model": (
        lambda run: rewrite(run / "config.json", lambda c: c.pop("model")),
        "config.json.*model",
    ),
    "unknown field": (
        lambda run: rewrite(run / "config.json", lambda c: c["model"]["image"].update(colour=1)),
        "model.image.colour",
    ),
    "other size": (
        lambda run: rewrite(run / "config.json", lambda c: c["model"]["llama"].update(mlp_dim=64)),
        r"checkpoint.*does not fit.*expected float32\[1,16,64\], found float32\[1,16,32\]",
    ),
    "no tokenizer": (lambda run: (run / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    "broken tokenizer": (
        lambda run: (run / "tokenizer.json").write_text("{}"),
        "tokenizer.json: not a tokenizer",
    ),
    "other tokenizer": (other_tokenizer, "checkpoint.*does not fit.*tokenizer"),
    "no checkpoints": (
        lambda run: shutil.rmtree(run / "checkpoints"),
        "checkpoint folder .* is not there",
    ),
    "no step": (
        lambda run: shutil.rmtree(run / "checkpoints" / str(STEP)),
        "holds no checkpoint",
    ),
    "emptied step": (
        lambda run: [shutil.rmtree(run / "checkpoints" / str(STEP) / "trainable")],
        "no checkpoint in .* can be read",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_or_foreign_work_directory_is_a_clear_error(copied, name):
    damage, message = DAMAGES[name]
    damage(copied)
    with pytest.raises(UserError, match=message) as caught:
        Meerkat.load(copied)
    assert str(copied) in str(caught.value) or "model.image" in str(caught.value)


@pytest.mark.parametrize("kind", ["absent", "file", "empty"])
def test_what_is_no_work_directory_is_a_clear_error(tmp_path, kind):
    path = tmp_path / "it"
    if kind == "file":
        path.write_text("text")
    if kind == "empty":
        path.mkdir()
    with pytest.raises(UserError, match=f"{path}.*(no folder|is not there).*work directory"):
        Meerkat.load(path)


# ---- asking ----


def test_any_form_of_a_picture_and_a_sound_gives_the_same_answer(tmp_path, clip):
    (tmp_path / "p.png").write_bytes(png(3))
    (tmp_path / "s.wav").write_bytes(clip)
    samples, _ = soundfile.read(io.BytesIO(clip), dtype="int16")  # to the last bit
    images = [png(3), tmp_path / "p.png", str(tmp_path / "p.png")]
    images += [make_image(3), np.asarray(make_image(3))]
    audio_clips = [clip, tmp_path / "s.wav", str(tmp_path / "s.wav"), (samples, 16000)]
    audio_clips += [(np.stack([samples / 32768] * 2, axis=1), 16000)]
    answers = model().ask_batch(list(zip(images, audio_clips, [PROMPT] * 5, strict=True)), batch=5)
    assert len({answer.text for answer in answers}) == 1 and answers[0].text
    assert {answer.notes for answer in answers} == {answers[0].notes}


def test_batches_of_any_size_give_what_single_questions_give(clip):
    other = wav(tone(1500))
    questions = [
        (png(0), clip, PROMPT),
        (png(0), clip, OTHER),
        {"image": png(1), "audio": other, "prompt": PROMPT},
        (png(1), None, OTHER),
        {"audio": other, "prompt": OTHER},
    ]
    for temperature in (0.0, 1.5):
        alone = []
        for i, question in enumerate(questions):
            parts = question.values() if isinstance(question, dict) else question
            parts = [None, *parts] if len(parts) == 2 else parts
            alone.append(model().ask(*parts, temperature=temperature, seed=5 + i).text)
        assert len(set(alone)) > 2
        for batch in (1, 3, 16):
            found = model().ask_batch(questions, temperature, seed=5, batch=batch)
            assert [answer.text for answer in found] == alone


def test_an_answer_shows_what_the_model_saw(clip):
    answer = model().ask(png(0), clip, PROMPT)
    view, side = answer.view, model().assembly.shapes.image_size
    rows, columns, freq, time = view.grid
    logmel = model().assembly.logmel
    rate = logmel.sample_rate // logmel.hop  # frames a second
    assert view.image.shape == (side, side, 3)
    assert view.logmel.shape == (10 * rate + 1, logmel.mels)
    assert answer.attention.shape == (rows, columns)
    assert view.plan.shape == (rows * columns, freq * time)
    np.testing.assert_allclose(view.plan.sum(), 1.0, rtol=1e-3)
    tone_part, silence = view.logmel[: 2 * rate], view.logmel[3 * rate :]
    assert tone_part.max() > silence.max() + 40  # a tone of 2 s, then silence
    quiet = next(model().stream([Request(png(0), clip, [PROMPT])], views=False))[0]
    assert quiet.view is None and quiet.text == answer.text


@pytest.mark.parametrize(
    ("image", "audio", "note"),
    [
        (png(0), None, "no audio was given: the model heard silence"),
        (None, wav(tone(440)), "no image was given: the model saw plain grey"),
        (png(0), wav(tone(440, 12.5)), "the audio is 12.5 s long: heard were its first 10 s"),
        (png(0), wav(np.zeros(16000)), "the audio is silent"),
        (
            png(0),
            (np.stack([tone(440), -tone(440)], 1), 16000),
            "the audio's channels cancel each other: the loudest alone is heard",
        ),
        (
            png(0),
            (16384 * tone(440) / np.abs(tone(440)).max(), 16000),
            "the audio is above full scale: divided by its peak (-84.3 dB)",
        ),
    ],
)
def test_notes_tell_what_the_answer_rests_on(image, audio, note):
    assert note in model().ask(image, audio, PROMPT).notes


def test_only_the_first_seconds_of_a_long_sound_are_heard():
    long = np.concatenate([tone(440, 10), tone(2000, 5)])
    answers = model().ask_batch([(png(0), wav(long[:160000]), PROMPT), (png(0), wav(long), PROMPT)])
    assert answers[0].text == answers[1].text
    assert not any("long" in note for note in answers[0].notes)


def test_a_prompt_longer_than_any_in_training_and_a_cut_answer_are_noted(clip):
    notes = model().ask(png(0), clip, "Is it a " + "very " * 60 + "big dog?").notes
    data = tiny.get_config().data
    assert any(f"tokens, more than any in training ({data.pack_length})" in note for note in notes)
    assert any(f"cut off after {data.max_answer_tokens} tokens" in note for note in notes)


def test_special_tokens_in_a_prompt_are_plain_text(clip):
    texts = [f"What{special} makes this sound?" for special in ("", "</s>", "<image>", "[/INST]")]
    ids = [spell(model().assembly, text) for text in texts]
    ends = 1  # [/INST]
    special = set(map(model().assembly.tokenizer.token_id, ("</s>", "<image>", "[/INST]")))
    assert all(not special & set(row[:-ends]) for row in ids)


# ---- refusing ----


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ((None, None, PROMPT), "neither an image nor an audio clip"),
        ((b"no image", None, PROMPT), "not an image"),
        ((png(0)[:200], None, PROMPT), "cannot be decoded"),
        (("absent.png", None, PROMPT), "absent.png: cannot open"),
        ((np.zeros((4, 4)), None, PROMPT), r"image array float64\(4, 4\); expected uint8"),
        ((7, None, PROMPT), "image is a int"),
        ((None, b"no audio", PROMPT), "not audio"),
        ((None, b"", PROMPT), "empty"),
        ((None, np.zeros(9), PROMPT), "sound is a ndarray; expected a path"),
        ((None, (np.zeros((2, 2, 2)), 16000), PROMPT), "sound: not .samples, sample rate."),
        ((None, (np.full(999, np.nan), 16000), PROMPT), "not finite"),
        ((png(0), None, "  "), "prompt is '  '"),
        ((png(0), None, None), "prompt is None"),
        ((png(0), None, "dog " * 2000), "tokens; expected at most 1024"),
        ((png(0), PROMPT), "question 0 is"),
        ({"image": png(0), "question": PROMPT}, "question 0 has the keys image, question"),
    ],
)
def test_bad_input_is_a_clear_error(question, message):
    with pytest.raises(UserError, match=message):
        model().ask_batch([question])


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none(clip, temperature):
    with pytest.raises(UserError, match="temperature"):
        model().ask(png(0), clip, PROMPT, temperature)


def test_nothing_asked_nothing_answered():
    assert model().ask_batch([]) == []
