"""The demo behind its page: limits, what is drawn, whose answer it is, and what is left on disk."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
import time

import numpy as np
import pytest
import soundfile
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box, Segment
from meerkat_jax.demo_page.drawing import draw_answer
from meerkat_jax.demo_page.limits import Limits
from meerkat_jax.demo_page.media import read_image_file, split_video
from meerkat_jax.demo_page.samples import KINDS, compose_samples
from meerkat_jax.demo_page.scratch import Scratch
from meerkat_jax.demo_page.talk import Desk, Talk
from meerkat_jax.inference.answers import Answer, View
from meerkat_jax.inference.engine import Engine
from tests.conftest import free_port
from tests.data.sources.fill import video as write_video
from tests.inference.made import fast_compilation, model, write_media
from tests.serving.test_guard import ask

QUESTION = "Find the object that makes the audio."


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(two images, two sounds) as paths."""
    folder = tmp_path_factory.mktemp("files")
    write_media(folder)
    return [[str(folder / f"{i}.{kind}") for i in range(2)] for kind in ("png", "wav")]


@pytest.fixture(scope="module")
def desk():
    with fast_compilation(), Engine(model(), slots=2) as engine:
        yield Desk(engine, model().seconds, Limits())


# ---- asking ----


def pair(files, number=0):
    return files[0][number], files[1][number]


def last(steps):
    return [*steps][-1][0]


def test_an_answer_grows_and_its_boxes_are_drawn_at_the_end(desk, files):
    steps = [*desk.ask(Talk(), *pair(files), QUESTION, "boxes")]
    texts = [talk.turns[-1][1] for talk, _ in steps]
    assert len(texts) > 2 and all(b.startswith(a) for a, b in zip(texts, texts[1:], strict=False))
    assert [drawn is None for _, drawn in steps] == [True] * (len(steps) - 1) + [False]
    expected = desk.engine.ask(*pair(files), QUESTION, grammar="boxes").answer()
    assert texts[-1] == expected.text and expected.boxes
    assert steps[-1][1].count('<rect class="answer"') == 2 * len(expected.boxes)  # and on the heat


def test_a_talk_goes_on_about_the_same_pair_and_begins_anew_with_another(desk, files):
    talk = last(desk.ask(Talk(), *pair(files), QUESTION))
    talk = last(desk.ask(talk, *pair(files), QUESTION, "segments"))
    expected = desk.engine.ask(*pair(files), QUESTION, grammar="segments").answer().text
    assert talk.turns[1] == (QUESTION, expected) != talk.turns[0]
    other = last(desk.ask(talk, files[0][1], files[1][0], QUESTION))
    assert len(other.turns) == 1 and other.turns != talk.turns[:1]


@pytest.mark.slow
def test_the_model_reads_the_turns_before_if_it_is_to(desk, files):
    talk = last(desk.ask(Talk(), *pair(files), QUESTION))
    following = last(desk.ask(talk, *pair(files), QUESTION, follow=True))
    expected = desk.engine.ask(*pair(files), QUESTION, turns=talk.turns).answer().text
    assert following.turns[1][1] == expected


def test_who_leaves_gives_the_place_free(desk, files):
    steps = desk.ask(Talk(), *pair(files), QUESTION)
    next(steps)
    steps.close()
    deadline = time.monotonic() + 5
    while desk.engine.busy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not desk.engine.busy


def test_an_answer_that_takes_too_long_is_stopped_and_says_so(desk, files):
    hasty = Desk(desk.engine, desk.seconds, dataclasses.replace(desk.limits, answer_seconds=1e-9))
    try:
        talk, drawn = [*hasty.ask(Talk(), *pair(files), QUESTION)][-1]
        assert "stopped after 1e-09 s" in drawn
    except UserError as error:  # before the image was looked at
        assert "stopped after 1e-09 s" in str(error)


def test_what_is_over_a_limit_is_refused_in_one_line(desk, files, tmp_path):
    image, audio = pair(files)
    Image.new("L", (3000, 2000)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    soundfile.write(tmp_path / "long.wav", np.zeros(9000), 1000)
    small = Desk(desk.engine, desk.seconds, Limits(0.2, 5, 8, 60, 10, 20))
    (tmp_path / "big.wav").write_bytes(bytes(300_000))
    for asked, words in (
        ((None, None, "What?"), "give an image or an audio clip first"),
        ((image, audio, " "), "ask something"),
        ((image, audio, "x" * 21), "21 characters; at most 20"),
        ((str(tmp_path / "large.png"), audio, "What?"), "large.png: 6 million pixels; at most 5"),
        ((str(tmp_path / "text.png"), audio, "What?"), "image: not an image"),
        ((image, str(tmp_path / "long.wav"), "What?"), "long.wav: 9.0 s long; at most 8 s"),
        ((image, str(tmp_path / "big.wav"), "What?"), "big.wav: 0.3 MB; at most 0.2 MB"),
        ((image, str(tmp_path / "gone.wav"), "What?"), "gone.wav is not here any more"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            next(small.ask(Talk(), *asked))
        assert "\n" not in str(refused.value) and str(tmp_path) not in str(refused.value)


# ---- drawing ----


def view(plan):
    rng = np.random.default_rng(0)
    return View(
        image=rng.integers(0, 256, (64, 64, 3), np.uint8),
        logmel=rng.normal(size=(101, 64)).astype("f4"),
        attention=rng.random((2, 3)),
        plan=plan,
        grid=(2, 3, 2, 4),
        seconds=10.0,
    )


def test_boxes_segments_and_plan_stand_where_they_belong():
    plan = np.zeros((6, 8))
    plan[5, 7] = 0.5
    answer = Answer(
        "[<b>, 0.1, 0.2, 0.6, 0.7], [<b>, 2.0, 4.5]",
        (Box("<b>", 0.1, 0.2, 0.6, 0.7),),
        (Segment("<b>", 2.0, 4.5),),
        True,
        ("note <i>",),
        view=view(plan),
    )
    html = draw_answer(answer, "<script>", np.zeros((50, 100, 3), np.uint8), b"RIFF")
    assert 'x="30.0" y="30.0" width="150.0" height="75.0"' in html  # of 300 by 150
    assert "left:20.00%;width:25.00%" in html and "It says: true" in html
    assert not {"<b>, 0", "<script>", "<i>"} & set(re.findall(r"<script>|<i>|<b>, 0", html))
    seen, heard = (part.split("</svg>")[0] for part in html.split('<svg class="')[-2:])
    cells = [re.findall(r'<rect x="(\d)" y="(\d)"', part) for part in (seen, heard)]
    assert cells[0][5] == ("2", "1") and cells[1][7] == ("3", "0")  # high notes on top
    assert 'data-plan="' + "AAAA" * 31 + 'AP//"' in html  # 48 numbers, none but the last above 0


def test_a_picture_is_shown_in_its_proportions():
    folder = tempfile.mkdtemp()
    Image.new("RGB", (1000, 500)).save(f"{folder}/wide.png")
    assert read_image_file(open(f"{folder}/wide.png", "rb").read()).shape == (320, 640, 3)


# ---- who may use it ----


def test_only_pages_of_its_own_may_use_it(tmp_path):
    with Scratch(60):
        import gradio as gr

        from meerkat_jax.demo_page.page import launch

        with gr.Blocks(analytics_enabled=False) as page:
            gr.Markdown("A page.")
        port = free_port()
        launch(page, "127.0.0.1", port, Limits(), 4, tmp_path, ["demo.example"])
        try:
            url, upload = f"http://127.0.0.1:{port}", "/gradio_api/upload"
            own = f"127.0.0.1:{port}"
            assert ask(url, Host=own)[0] == ask(url, Host="demo.example")[0] == 200
            assert ask(url, Host="evil.example")[1]["error"]["code"] == "host_not_allowed"
            code, found = ask(url, "POST", upload, b"x", Host=own, Origin="http://evil.example")
            assert (code, found["error"]["code"]) == (403, "origin_not_allowed")
            assert ask(url, "POST", upload, b"x", Host=own, Origin=url)[0] not in (403, 404)
        finally:
            page.close(verbose=False)


# ---- files ----


def test_a_video_gives_a_frame_and_a_sound(tmp_path):
    write_video(tmp_path / "v.mp4", 3.0)
    image, audio, note = split_video(str(tmp_path / "v.mp4"), 2.0, Limits())
    assert Image.open(image).size and soundfile.info(audio).duration == pytest.approx(2.0)
    assert "frame at 1.0 s" in note and "first 2.0 s" in note
    with pytest.raises(UserError, match="v.mp4: 2.9 s long; at most 2 s"):
        split_video(str(tmp_path / "v.mp4"), 2.0, Limits(seconds=2))
    write_video(tmp_path / "dumb.mp4", 1.0, audio_clips=False)
    image, audio, note = split_video(str(tmp_path / "dumb.mp4"), 2.0, Limits())
    assert audio is None and note.endswith("dumb.mp4: the file has no audio")


def test_what_is_sent_is_gone_after_minutes_and_all_at_the_end():
    before = os.environ.get("GRADIO_TEMP_DIR"), tempfile.tempdir
    with Scratch(60) as scratch:
        assert os.environ["GRADIO_TEMP_DIR"] == tempfile.gettempdir() == str(scratch.sent)
        old, new, given = (
            scratch.sent / "a" / "old.png",
            scratch.sent / "new.png",
            scratch.given / "x",
        )
        old.parent.mkdir()
        for path in (old, new, given):
            path.write_bytes(b"x")
        os.utime(old, (time.time() - 61,) * 2)
        scratch.sweep()
        assert not old.exists() and new.exists() and given.exists()
        scratch.sweep(time.time() + 61)
        assert [*scratch.sent.iterdir()] == [] and given.exists()
    assert not scratch.folder.exists()
    assert (os.environ.get("GRADIO_TEMP_DIR"), tempfile.tempdir) == before


def test_examples_are_composed_without_a_network(tmp_path):
    samples, source = compose_samples(tmp_path, model().config, tmp_path / "nothing")
    assert len(samples) == len(KINDS) and "procedural" in source
    for sample in samples:
        assert Image.open(sample.image).size == (200, 200)
        assert soundfile.info(sample.audio).duration == 10.0 and sample.question.strip()
