"""The generate command: one question, manifests, drawn answers, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.generate import answer_manifest, answer_one, read_manifest
from tests.inference.made import fast_compilation, made, make_image, model, png, tone, wav

PROMPT = "What makes this sound?"


@pytest.fixture(scope="module", autouse=True)
def quick():
    with fast_compilation():
        yield


@pytest.fixture
def media(tmp_path):
    """A folder with good and bad images and audio clips."""
    folder = tmp_path / "media"
    folder.mkdir()
    files = {
        "a.png": png(0),
        "b.png": png(1),
        "a.wav": wav(tone(440)),
        "b.wav": wav(tone(1500)),
        "long.wav": wav(tone(440, 12.5)),
        "empty.png": b"",
        "cut.png": png(0)[:100],
        "text.png": b"this is no image",
        "empty.wav": b"",
        "text.wav": b"this is no audio",
        "cut.wav": wav(tone(440))[:9000],
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_lines(path, *lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- manifests ----


def test_a_manifest_is_answered_in_order_as_single_questions_are(tmp_path, media):
    manifest = write_lines(
        media / "ask.jsonl",
        {"image": "a.png", "audio": "a.wav", "prompt": PROMPT, "id": "x"},
        {"image": "a.png", "audio": "a.wav", "instruction": "Describe the clip."},
        "",
        {"image": str(media / "b.png"), "prompt": PROMPT},
        {"audio": "long.wav", "prompt": PROMPT, "id": 0},
    )
    out, told = tmp_path / "out.jsonl", []
    count = answer_manifest(model, manifest, out, batch=2, say=told.append)
    rows = read_lines(out)
    assert count == 4 and [row["id"] for row in rows] == ["x", 2, 4, 0]
    assert all(set(row) == {"id", "text", "boxes", "segments", "verdict", "notes"} for row in rows)
    asked = [("a.png", "a.wav", PROMPT), ("a.png", "a.wav", "Describe the clip.")]
    asked += [("b.png", None, PROMPT), (None, "long.wav", PROMPT)]
    for row, (image, audio, prompt) in zip(rows, asked, strict=True):
        answer = model().ask(image and media / image, audio and media / audio, prompt)
        assert {"id": row["id"], **answer.to_json()} == row
    assert any("12.5 s long" in note for note in rows[3]["notes"])
    assert told[-2].startswith("ask.jsonl: questions 4/4") and told[-1] == f"4 answers: {out}"
    assert not list(tmp_path.glob("*.part"))


def test_drawn_answers_do_not_depend_on_the_batch(tmp_path, media):
    line = {"image": "a.png", "audio": "a.wav", "prompt": PROMPT}
    manifest = write_lines(media / "ask.jsonl", *[line] * 3, line | {"image": "b.png"})
    texts = []
    for batch in (1, 4):
        out = tmp_path / f"{batch}.jsonl"
        answer_manifest(model, manifest, out, temperature=1.5, seed=3, batch=batch, say=list)
        texts.append([row["text"] for row in read_lines(out)])
    assert texts[0] == texts[1] and len(set(texts[0])) > 2


def test_all_faults_of_a_manifest_are_told_before_the_model_is_loaded(tmp_path, media):
    good = {"image": "a.png", "audio": "a.wav", "prompt": PROMPT}
    manifest = write_lines(
        media / "ask.jsonl",
        good,
        "{",
        "[1]",
        good | {"image": "absent.png"},
        good | {"image": "cut.png", "audio": "text.wav"},
        good | {"audio": "cut.wav"},
        good | {"prompt": "  "},
        good | {"instruction": "Two of them?"},
        {"image": "a.png", "audio": "a.wav"},
        {"prompt": PROMPT},
        good | {"audo": "a.wav"},
        good | {"image": 7},
        good | {"id": ["x"]},
        good | {"id": "twice"},
        good | {"id": "twice"},
    )
    out, told = tmp_path / "out.jsonl", []
    with pytest.raises(UserError, match="ask.jsonl: 13 faults, told above.*nothing was answered"):
        answer_manifest(lambda: pytest.fail("loaded"), manifest, out, say=told.append)
    expected = [
        "line 2: not JSON",
        "line 3: a list; expected an object",
        "line 4: .*absent.png: cannot open",
        "line 5: .*cut.png: the image cannot be decoded.*; and .*text.wav: not audio",
        "line 6: .*cut.wav: the audio is cut off",
        "line 7: prompt ' +'",
        "line 8: expected one of prompt and instruction",
        "line 9: expected one of prompt and instruction",
        "line 10: neither image nor audio",
        "line 11: unknown key 'audo'",
        "line 12: image 7; expected the path",
        r"line 13: id \['x'\]",
        "id 'twice' is there twice",
    ]
    assert len(told) == len(expected)
    for line, pattern in zip(told, expected, strict=True):
        assert re.match(pattern, line), (pattern, line)
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"", "holds no questions"), (b"\xff\xfe{}", "not a text in UTF-8")],
)
def test_a_manifest_that_is_none(tmp_path, content, message):
    path = tmp_path / "ask.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"--manifest={path}.*{message}"):
        read_manifest(path)


def test_answers_that_are_there_are_not_lost(tmp_path, media):
    manifest = write_lines(media / "ask.jsonl", {"image": "a.png", "prompt": PROMPT})
    out = tmp_path / "out.jsonl"
    out.write_text("precious")
    with pytest.raises(UserError, match="is there already; --overwrite replaces it"):
        answer_manifest(lambda: pytest.fail("loaded"), manifest, out)
    assert out.read_text() == "precious"
    answer_manifest(model, manifest, out, overwrite=True, say=list)
    assert len(read_lines(out)) == 1
    for wrong in (tmp_path, tmp_path / "absent" / "out.jsonl"):
        with pytest.raises(UserError, match=f"--out={wrong}"):
            answer_manifest(lambda: pytest.fail("loaded"), manifest, wrong)


# ---- drawn ----


def test_the_drawn_picture_keeps_its_proportions_and_is_upright(tmp_path, media):
    wide = make_image(0).resize((90, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    wide.save(media / "wide.jpg", exif=exif)
    heights = {}
    for name in ("wide.jpg", "a.png"):
        out = tmp_path / f"{name}.drawn.png"
        answer_one(model(), str(media / name), str(media / "a.wav"), PROMPT, annotated=out)
        heights[name] = Image.open(out).size[1]
    # the answers below the two images may differ by a few lines
    assert heights["wide.jpg"] - heights["a.png"] == pytest.approx(640 * 3 - 640, abs=150)
    with pytest.raises(UserError, match="--annotate=.*absent.*not writable"):
        answer_one(
            model(), None, str(media / "a.wav"), PROMPT, annotated=tmp_path / "absent" / "x.png"
        )


# ---- the command ----


def test_the_command_answers_and_draws(cli, tmp_path, media):
    drawn = tmp_path / "drawn.png"
    done = cli(
        "generate", f"--checkpoint={made().workdir}", f"--image={media / 'a.png'}",
        f"--audio={media / 'long.wav'}", f"--prompt={PROMPT}", f"--annotate={drawn}", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer == model().ask(media / "a.png", media / "long.wav", PROMPT).to_json()
    assert Image.open(drawn).format == "PNG"


@pytest.mark.slow
def test_several_prompts_are_a_conversation(cli, media):
    asked = f"--checkpoint={made().workdir}", f"--image={media / 'a.png'}"
    prompts = [f"--prompt={prompt}" for prompt in (PROMPT, "Describe the clip.")]
    done = cli("generate", *asked, *prompts, "--json")
    assert done.returncode == 0, done.stderr
    talk = model().converse(media / "a.png", None)
    expected = [talk.ask(prompt).to_json() for prompt in (PROMPT, "Describe the clip.")]
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected
    done = cli("generate", *asked, *prompts, "--annotate=x.png")
    assert done.returncode == 2 and "--annotate has no meaning with several" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "missing --checkpoint"),
        (("--checkpoint=absent",), "missing --prompt"),
        (("--checkpoint=absent", "--image=a.png", "--promt=x"), "promt"),
        (("--checkpoint=absent", "--image=absent.png", f"--prompt={PROMPT}"), "absent.png: cannot"),
        (("--checkpoint=absent", "--manifest=x.jsonl"), "--manifest needs --out"),
        (("--checkpoint=absent", "--manifest=x.jsonl", "--image=a.png"), "--image has no meaning"),
        (("--checkpoint=absent", "--image={a.png}", f"--prompt={PROMPT}"), "absent is no folder"),
        (("--checkpoint=absent", "--image={cut.png}", f"--prompt={PROMPT}"), "cannot be decoded"),
        (("--checkpoint=absent", "--audio={empty.wav}", f"--prompt={PROMPT}"), "audio is empty"),
    ],
)
def test_a_mistake_of_the_user_is_one_line(cli, media, flags, message):
    flags = [
        flag if "{" not in flag else f"{flag.split('{')[0]}{media / flag.split('{')[1][:-1]}"
        for flag in flags
    ]
    done = cli("generate", *flags)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], done.stderr
