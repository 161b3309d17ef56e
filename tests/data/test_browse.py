"""The page about a data set: complete, inert, right in its places, and its counts made by hand."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from array_record.python import array_record_module
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.build import shards
from meerkat_jax.data.example import TASKS, Box, Example, Question, Segment, to_bytes
from meerkat_jax.data.sources.entry import Entry, Options, Place, Plan
from meerkat_jax.data.sources.skips import Skips
from meerkat_jax.data.split import open_split
from meerkat_jax.data.statistics import GRID, Statistics, asked_boxes, asked_interval
from meerkat_jax.report import browse
from meerkat_jax.report.statistics_html import histogram, statistics_html
from tests.conftest import cli_environment

EVIL = '<script>alert("x")</script><img src=http://example.com/x onerror=alert(1)>$style'
NAME = "<b>dog</b> & 'cat'"
BOX = Box(NAME, 0.25, 0.5, 0.75, 1.0)
OTHER = Box("bus", 0.0, 0.0, 0.25, 0.5)


class Page(HTMLParser):
    """Collects the tags, the attributes of each and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag, **wanted):
        return [
            attributes
            for found, attributes in self.attributes
            if found == tag and all(attributes.get(key) == one for key, one in wanted.items())
        ]


def listed(*boxes):
    return [list(vars(box).values()) for box in boxes]


def claim(task, answer, interval=None, objects=(), instruction="True or False?"):
    truth = {"kind": task, "answer": answer}
    truth |= {"interval": list(interval)} if interval else {}
    truth |= {"objects": listed(*objects)} if objects else {}
    return Question(task, instruction, f"{answer}.", truth=truth)


def all_tasks():
    where = "Is [0.000, 0.000, 0.250, 0.500] heard? True or False?"
    return (
        Question("arig", EVIL, EVIL, (BOX,), truth={"kind": "arig", "answer": None}),
        Question(
            "igatl",
            "When?",
            "then",
            segments=(Segment(NAME, 0.2, 0.6), Segment(NAME, 0.6, 0.9)),
            truth={"kind": "igatl", "answer": None, "sounds": [[NAME, 0.2, 0.9]]},
        ),
        claim("avfact1", True, objects=(OTHER,)),
        claim("avfact2", False),
        claim("avfact3", False, (0.1, 0.3), (OTHER, BOX), where),
        claim("avfact4", True, (0.5, 1.0)),
        Question("avqa", "How many?", "two", truth={"kind": "count", "answer": "two"}),
        Question(
            "avc",
            "What is it?",
            "a dog",
            truth={"kind": "avc", "answer": None, "references": [EVIL, "b"]},
        ),
    )


def write_media(root):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (root / "media").mkdir(exist_ok=True)
        pixels = rng.integers(0, 255, (60, 120, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"media/{name}.png")
    for name, seconds in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        wave = rng.normal(size=round(48_000 * seconds)) * 0.1
        soundfile.write(root / f"media/{name}.wav", wave, 48_000)


def entry(name, image, audio, questions, split="train", **fields):
    places = (Place("media", image),), (Place("media", audio),)
    return Entry(name, split, *places, questions, (f"image:{name}",), **fields)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with four records to train on and one to test on."""
    root = tmp_path_factory.mktemp("source")
    write_media(root)
    entries = [
        entry(
            f"one{EVIL}",
            "a",
            "a",
            all_tasks(),
            image_labels=(NAME,),
            audio_labels=(NAME, "bus"),
            boxes=(BOX,),
        ),
        entry("two", "a", "b", (claim("avfact2", True),), audio_labels=("bus",), matched=False),
        entry("three", "b", "c", (claim("avfact2", True), claim("avfact2", False))),
        entry("four", "a", "a", (claim("avfact4", False, (0.0, 0.5)),), image_labels=("bus",)),
        entry("five", "c", "b", (claim("avfact2", True),), "test"),
        entry("gone", "no", "b", (claim("avfact2", True),)),
    ]
    skips = Skips()
    skips.used = 6
    skips.add(f"rows.csv:7 {EVIL}", f"no box {EVIL}")
    skips.drop("row twice", 3)
    out = root / "built"
    shards.build(
        "tiny",
        Plan(entries, (), skips),
        root,
        out,
        Options(),
        shards.Settings(),
        1,
        0.5,
        say=lambda line: None,
    )
    return out


@pytest.fixture(scope="module")
def page(built):
    said = []
    found = browse.write_page(built, built / "browse.html", say=said.append)
    text = (built / "browse.html").read_text(encoding="utf-8")
    return found, text, Page(text), said


def test_nothing_is_loaded_from_anywhere_and_data_is_inert(page):
    _, text, parsed, said = page
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text
    sources = [
        value
        for _, attributes in parsed.attributes
        for key, value in attributes.items()
        if key in ("src", "href")
    ]
    assert sources and all(one.startswith(("data:", "#")) for one in sources)
    assert not {"script", "link", "iframe", "b>dog"} & set(parsed.tags)
    assert not any(key.startswith("on") for _, found in parsed.attributes for key in found)
    words = "".join(parsed.words)
    # instruction, response, reference; every card's id; reason of the skip
    assert words.count(EVIL) >= 2 + 1 + len(TASKS) + 1 and NAME in words
    assert said[-1].startswith("reading records: 4/4")


def test_every_task_has_its_examples(page):
    _, text, parsed, _ = page
    parts = re.split(r'<h3 id="task-(\w+)">', text.split('<section id="statistics">')[0])[1:]
    cards = {
        task: part.count("<article") for task, part in zip(parts[::2], parts[1::2], strict=True)
    }
    assert cards == dict.fromkeys(TASKS, 1) | {"avfact2": 3, "avfact4": 2}
    assert len(parsed.all("audio")) == len(parsed.all("img")) == sum(cards.values())
    assert text.count("<span>not matched</span>") == 1


def card(built, place):
    """The card of a question of the first record."""
    (example,) = [one for one in open_split(built, "train") if one.id.startswith("one")]
    return Page(browse.card(example, place))


def boxes(parsed):
    return {
        found["class"]: tuple(float(found[key]) for key in ("x", "y", "width", "height"))
        for found in parsed.all("rect")
        if found["class"] != "halo"
    }


def test_boxes_are_where_they_belong(built):
    # an image of 120 x 60 is drawn 300 x 150
    (drawn,) = card(built, 0).all("svg")
    assert drawn["viewbox"] == "0 0 300 150"
    assert boxes(card(built, 0)) == {"true": (75, 75, 150, 75)}
    assert boxes(card(built, 1)) == {"scene": (75, 75, 150, 75)}
    claimed = {"asked": (0, 0, 75, 75), "scene": (75, 75, 150, 75)}
    assert boxes(card(built, 2)) == boxes(card(built, 4)) == claimed
    assert "bus" in card(built, 2).words and NAME in card(built, 2).words


def bars(parsed):
    return [
        (found["class"], *map(float, re.findall(r"[\d.]+", found["style"])))
        for found in parsed.all("span")
        if found.get("class", "").startswith("bar ")
    ]


def test_times_are_where_they_belong(built):
    assert bars(card(built, 1)) == [
        ("bar context", 20, 70),
        ("bar true", 20, 40),
        ("bar true", 60, 30),
    ]
    assert bars(card(built, 4)) == [("bar asked", 10, 20)]
    assert bars(card(built, 5)) == [("bar asked", 50, 50)]
    assert bars(card(built, 3)) == []


def test_sound_and_spectrogram_are_those_of_the_record(built):
    (example,) = [one for one in open_split(built, "train") if one.id == "three"]
    parsed = Page(browse.card(example, 0))
    (player,) = parsed.all("audio")
    kind, content = player["src"].split(",")
    assert kind == "data:audio/flac;base64" and "controls" in player
    assert base64.b64decode(content) == example.audio
    assert soundfile.info(io.BytesIO(base64.b64decode(content))).duration == 2.0
    (drawn,) = parsed.all("img")
    with Image.open(io.BytesIO(base64.b64decode(drawn["src"].split(",")[1]))) as image:
        assert image.format == "PNG" and image.size == (201, 128)


def test_counts_are_those_made_by_hand(page):
    found = page[0]
    assert found.records == 4 and found.matched == {True: 3, False: 1}
    assert found.kinds == {
        **dict.fromkeys(("arig/arig", "igatl/igatl", "avqa/count", "avc/avc"), 1),
        **{"avfact1/avfact1": 1, "avfact2/avfact2": 4, "avfact3/avfact3": 1},
        "avfact4/avfact4": 2,
    }
    assert found.holding["avfact2/avfact2"] == 3
    assert found.verdicts == {
        ("avfact1/avfact1", True): 1,
        ("avfact2/avfact2", True): 2,
        ("avfact2/avfact2", False): 2,
        ("avfact3/avfact3", False): 1,
        ("avfact4/avfact4", True): 1,
        ("avfact4/avfact4", False): 1,
    }
    assert found.claims == {
        ("avfact1", "bus", True): 1,  # what is in the box
        ("avfact2", NAME, False): 1,  # what is heard
        ("avfact2", "bus", False): 1,
        ("avfact2", "bus", True): 1,
        ("avfact3", "bus", False): 1,
        ("avfact4", NAME, True): 1,
        ("avfact4", "bus", True): 1,
    }
    assert found.image_labels == {NAME: 1, "bus": 1} and found.audio_labels == {NAME: 1, "bus": 2}
    assert found.boxes == 2 and found.boxes_each == {0: 3, 2: 1}
    assert found.areas == {25: 1, 12: 1}
    half, quarter = GRID // 2, GRID // 4
    expected = np.zeros((GRID, GRID))
    expected[half:, quarter:-quarter] = 1
    expected[:half, :quarter] = 1
    np.testing.assert_allclose(found.places, expected)
    assert found.seconds == {1.0: 3, 2.0: 1} and found.unread == 0
    assert found.segments == {2: 1} and found.lengths == {0.4: 1, 0.3: 1}
    assert found.intervals == {0.2: 1, 0.5: 2}
    assert found.instructions[len("True or False?")] == 7
    assert found.responses[len("True.")] == 4 + 1  # and "a dog"
    assert found.distinct("instruction") == 6 and found.distinct("response") == 6


def test_the_page_has_the_style_of_the_report(page):
    sheet = re.search(r"<style>(.*?)</style>", page[1], re.DOTALL)[1]
    assert ".spectrogram { width: 100%" in sheet and ".image rect.scene" in sheet
    assert "$" not in sheet


def test_duplicates_are_found_and_named(page):
    found, text, _, _ = page
    assert found.repeats("image") == (2, 2, 1, [(0, 3)])
    assert found.repeats("sound") == (3, 1, 1, [(0, 2)])
    assert found.repeats("image with sound") == (3, 1, 1, [(0, 2)])
    assert found.repeats("id") == (4, 0, 0, [])
    assert "onerror=alert(1)&gt;$style: 3 times" in text


def test_the_same_id_twice_is_found():
    found = Statistics()
    for image in (b"a", b"b", b"c"):
        found.add(Example("same", "s", "train", image, b"no audio", ()))
    assert found.repeats("id") == (1, 2, 1, [(0, 3)]) and found.unread == 3
    assert "3 sounds cannot be opened" in statistics_html(found, {}, {})


def test_what_the_build_left_out_is_told(page):
    words = " ".join(page[2].words)
    assert all(one in words for one in ("row twice", "image is not there", "skipped rows"))


def test_a_claims_box_may_stand_in_its_words_alone():
    words = "Does [0.1, 0.2, 0.3, 0.4] sound between 1.0 and 2.5?"
    assert asked_boxes(claim("avfact3", True, instruction=words)) == [Box("", 0.1, 0.2, 0.3, 0.4)]
    (interval,) = asked_interval(claim("avfact3", True, instruction=words))
    assert (interval.start, interval.end) == (1.0, 2.5)
    assert asked_boxes(claim("avfact2", True, objects=(BOX,))) == []


def test_examples_are_drawn_by_the_seed_from_all_records():
    asked = (claim("avfact2", True), claim("avfact2", False))
    records = [Example(str(i), "s", "train", b"", b"", asked) for i in range(50)]
    draw = [browse.survey(records, range(50), 4, seed, lambda line: None)[1] for seed in range(40)]
    assert draw[0] == browse.survey(records, range(50), 4, 0, lambda line: None)[1]
    assert all(len({row for row, _ in one["avfact2"]}) == 4 for one in draw)
    rows = [row for one in draw for row, _ in one["avfact2"]]
    assert len(set(rows)) > 40 and 20 < np.mean(rows) < 29
    assert {place for one in draw for _, place in one["avfact2"]} == {0, 1}


def test_limit_spreads_over_the_split(built, tmp_path):
    found = browse.write_page(built, tmp_path / "p.html", count=0, limit=2, say=lambda line: None)
    assert found.records == 2 and found.repeats("image").distinct == 2  # the first and third
    text = (tmp_path / "p.html").read_text()
    assert "2 of 4 records" in text and "<article" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["p.html"]


def test_a_folder_without_skips_and_with_broken_media_has_a_page(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"config": {"seed": 0}}))
    example = Example("x", "mini", "later", b"no", b"no", (claim("avfact2", True),))
    path = tmp_path / "later-00000-of-00001.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    writer.write(to_bytes(example))
    writer.close()
    browse.write_page(tmp_path, tmp_path / "page.html", say=lambda line: None)
    text = (tmp_path / "page.html").read_text()
    assert "x: not an image" in text and "x: not audio" in text
    assert "does not tell of any" in text and "no boxes" in text


@pytest.mark.parametrize("highest", [0.0, 0.3, 17, 420, 9e5])
def test_histograms_have_few_bars_and_lose_nothing(highest):
    counts = {0.0: 2, highest / 3: 3, highest: 4}
    drawn = histogram("Lengths", counts)
    found = [int(n) for n in re.findall(r"<td>(\d+)</td>", drawn)]
    assert sum(found) == sum(counts.values()) and len(found) <= 20


def test_mistakes_are_told(built, tmp_path):
    with pytest.raises(UserError, match="not a built data set"):
        browse.write_page(tmp_path, tmp_path / "page.html")
    with pytest.raises(UserError, match="no split 'val'; it holds test, train"):
        browse.write_page(built, tmp_path / "page.html", "val")
    for out in (tmp_path, tmp_path / "no/page.html"):
        with pytest.raises(UserError, match="cannot be written.*name another --out"):
            browse.write_page(built, out)
    assert list(tmp_path.iterdir()) == []


def test_the_door(built, tmp_path):
    out = tmp_path / "page.html"
    command = [sys.executable, "-m", "meerkat_jax.report.browse", str(built), "--split=test"]
    command += [f"--out={out}", "--count=1", "--seed=3", "--limit=1"]
    done = subprocess.run(
        command, env=cli_environment(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.splitlines()[-1] == f"open {out} in a browser"
    assert "five · tiny · test" in out.read_text() and "with seed 3" in out.read_text()
