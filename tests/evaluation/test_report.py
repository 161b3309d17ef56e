"""The report: self-contained, complete, inert whatever the texts hold."""

import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from meerkat_jax.evaluation.benchmark import score
from meerkat_jax.report import charts, figures, tables
from meerkat_jax.report.report import write_report
from tests.evaluation.made import shown

EVIL = '<script>alert("x")</script><img src=http://example.com/x onerror=alert(1)>$overview'
BROWSERS = ("chromium", "chromium-browser", "chromium-headless-shell")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
VOID = {"meta", "img", "br", "input", "image", "rect", "line", "path", "circle", "i"}


class Page(HTMLParser):
    """Collects tags, attributes and text; checks that elements are closed in order."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page_of(tmp_path, examples, rows=(), config=None, notes=()):
    benchmark = score([one.answered for one in examples])
    path = write_report(tmp_path / "report.html", benchmark, rows, examples, config or {}, notes)
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    return text, page


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    examples = [
        shown(),
        shown(text="[dog, 0.6, 0.6, 0.9, 0.9]"),
        shown("igatl", "[dog, 1.0, 3.0]"),
        shown("avfact3", "False", instruction="Is [0.1, 0.1, 0.5, 0.5] heard between 1.0 and 2.5?"),
        shown("avc", EVIL, name="<b>dog</b>", instruction=EVIL, response=EVIL),
    ]
    rows = [
        {
            "step": s,
            "loss": 2.0 / (s + 1),
            "loss/avopt": 0.5,
            "scores/compositions/arig/ciou": 0.1 * s,
        }
        for s in range(5)
    ]
    rows.append({"step": 5, "loss": None, "lr": 0.1, "note": EVIL})
    return page_of(
        tmp_path_factory.mktemp("report"), examples, rows, {"model": {"width": EVIL}}, [EVIL]
    )


def test_nothing_is_loaded_from_anywhere(full):
    text, page = full
    sources = [v for _, name, v in page.attributes if name in ("src", "href", "xlink:href", "data")]
    assert sources and all(s.startswith(("data:", "#")) for s in sources)
    assert "default-src 'none'" in text
    assert "@import" not in text and "url(" not in text
    assert not {"link", "script", "iframe", "object"} & set(page.tags)


def test_texts_of_the_data_are_inert(full):
    _, page = full
    assert "script" not in page.tags
    assert not [a for a in page.attributes if a[1].startswith("on")]
    shown_text = "".join(page.words)
    assert shown_text.count(EVIL) == 5  # question, answer, expected, note, setting
    assert "<b>dog</b>" in shown_text


def test_page_holds_scores_curves_and_cards(full):
    text, page = full
    words = " ".join(page.words)
    assert "0.500" in words  # one of two boxes is right
    assert "New compositions" in words and "the same box every time" in words
    assert text.count('<article class="card right"') == 2
    assert text.count('<article class="card wrong"') == 3
    assert "Total loss" in words and "AVOpT: distance" in words
    assert page.tags.count("audio") == 5
    # every in-page link has its target
    targets = {value for _, name, value in page.attributes if name == "id"}
    links = {v[1:] for tag, name, v in page.attributes if tag == "a" and name == "href"}
    assert links and links <= targets


def test_true_answered_and_asked_boxes_and_segments_are_drawn(full):
    text, page = full
    roles = [value for tag, name, value in page.attributes if tag == "rect" and name == "class"]
    assert {"true", "answer", "asked"} <= set(roles)
    bars = [value for tag, name, value in page.attributes if tag == "span" and "bar " in value]
    assert {"bar context", "bar true", "bar answer", "bar asked"} <= set(bars)
    asked = re.search(r'class="bar asked" style="left:(.*?)%;width:(.*?)%"', text)
    assert [float(x) for x in asked.groups()] == [10.0, 15.0]


def test_every_picture_is_named_for_who_cannot_see_it(full):
    _, page = full
    images = page.tags.count("img")
    assert images == sum(tag == "img" and name == "alt" for tag, name, _ in page.attributes)


def test_an_empty_run_still_gives_a_page(tmp_path):
    path = write_report(tmp_path / "report.html", {}, [], [], {})
    assert "No scores yet" in path.read_text()
    assert "No curves" in path.read_text() and "No examples" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_unknown_splits_metrics_and_baselines_are_shown(tmp_path):
    benchmark = {"my_split/own": {"accuracy": 0.25, "n": 3, "baselines": {"coin_toss": 0.125}}}
    text = write_report(tmp_path / "r.html", benchmark, [], [], {}).read_text()
    assert all(part in text for part in ("My split", "own", "0.250", "0.125", "coin toss"))


def test_transport_plan_maps_by_hand():
    # 1 x 2 patches, 2 frequency groups x 2 time columns; token = group * 2 + column
    plan = np.array([[0.3, 0.0, 0.1, 0.1], [0.0, 0.1, 0.0, 0.4]])
    maps, spans, peak = figures.plan_maps(plan, (1, 2, 2, 2), seconds=4.0)
    np.testing.assert_allclose(maps, [[[2.0, 0.0]], [[1 / 3, 5 / 3]]])
    assert spans == [(0.0, 2.0), (2.0, 4.0)] and peak == pytest.approx(2.0)
    with pytest.raises(ValueError, match="does not fit"):
        figures.plan_maps(plan, (2, 2, 2, 2), 4.0)


def test_spectrogram_has_low_pitch_at_the_bottom_and_time_to_the_right():
    logmel = np.full((100, 64), -60.0)
    logmel[80:, :16] = 0.0  # late and low
    uri = figures.spectrogram_uri(logmel)
    with Image.open(io.BytesIO(figures.base64.b64decode(uri.split(",")[1]))) as image:
        bright = np.asarray(image.convert("L")).astype(float)
    assert bright[-8:, 90:].min() > 200 > 40 > bright[:64].max()
    assert bright[-8:, :70].max() < 40


def test_heat_scale_rises_in_lightness_and_survives_nan():
    lightness = figures.heat(np.linspace(0, 1, 50)).mean(-1)
    assert (np.diff(lightness) >= -0.5).all() and lightness[-1] - lightness[0] > 150
    assert (figures.heat(np.array([np.nan])) == figures.heat(np.array([0.0]))).all()


@pytest.mark.parametrize("content", [None, b"", b"MZ..not sound", b"RIFF" + bytes(700_000)])
def test_no_player_without_a_small_known_clip(content):
    assert figures.audio_player(content) == ""


def test_series_keep_finite_numbers_of_nested_rows():
    rows = [
        {"step": 1, "loss": 2.0, "scores": {"arig": 0.5}, "flag": True, "text": "a"},
        {"step": 2, "loss": float("nan"), "scores": {"arig": None}},
        {"loss": 3.0},
    ]
    assert charts.series(rows) == {"loss": [(1.0, 2.0)], "scores/arig": [(1.0, 0.5)]}


def test_what_is_held_out_stands_beside_training_in_one_chart():
    keys = ("loss/answer", "eval/loss/answer", "token_accuracy", "eval/token_accuracy")
    losses, scores = charts.panels({key: [(0.0, 1.0), (1.0, 0.5)] for key in keys})
    assert [list(lines) for lines in losses.values()] == [["training", "new compositions"]]
    assert list(scores["all tasks"]) == ["token accuracy", "token accuracy, new compositions"]
    (drawn,) = (charts.line_chart(title, lines) for title, lines in losses.items())
    assert "Answer tokens" in drawn and "new compositions" in drawn


def test_a_line_does_not_cross_a_phase_that_did_not_measure_it():
    points = [(float(step), 1.0) for step in (100, 200, 3300, 3400, 3450)]
    drawn = charts.line_chart("Answer tokens", {"training": points})
    assert [path.count(",") for path in re.findall('polyline points="([^"]*)"', drawn)] == [2, 3]


def test_panels_sort_losses_and_scores_and_leave_out_the_rest():
    keys = ("loss", "loss/avace", "learning_rate", "new/arig/ciou", "token_accuracy", "mfu")
    losses, scores = charts.panels({key: [(0.0, 1.0)] for key in keys})
    assert len(losses) == 2
    assert scores == {
        "arig": {"new ciou": [(0.0, 1.0)]},
        "all tasks": {"token accuracy": [(0.0, 1.0)]},
    }


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0.037), (-2, 7), (0, 12345), (5, 5), (0, 0), (-1e-9, 1e-9)]
)
def test_ticks_cover_the_range_in_few_round_steps(low, high):
    found = charts.ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert 2 <= len(found) <= 7
    np.testing.assert_allclose(np.diff(found), found[1] - found[0])


def test_table_order_is_reading_order():
    keys = ("instances/avc", "compositions/avqa/count", "compositions/arig", "compositions/avqa")
    ordered = tables.by_split({key: {"n": 1} for key in keys})
    assert list(ordered) == ["compositions", "instances"]
    assert list(ordered["compositions"]) == ["arig", "avqa", "avqa/count"]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_chromium_draws_the_page_without_network(full, tmp_path):
    page, screenshot = tmp_path / "report.html", tmp_path / "page.png"
    page.write_text(full[0], encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--window-size=1280,1200", f"--screenshot={screenshot}"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    # The page's own complaints (blocked loads, broken images) are logged as CONSOLE lines.
    assert ":CONSOLE" not in done.stderr
    with Image.open(screenshot) as image:
        assert image.size == (1280, 1200)
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert (0, 0x72, 0xB2) in colours and (0xC2, 0x57, 0) in colours  # the meters of the scores
