"""The pages in a real browser: the demo as a visitor uses it, the report and the data page.

Nothing may be asked of another host, nothing may be wider than a phone, nothing may be logged.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meerkat_jax.evaluation.benchmark import score
from meerkat_jax.report import browse
from meerkat_jax.report.report import write_report
from tests.conftest import ROOT, cli_environment, free_port
from tests.evaluation.test_report import CHROMIUM, shown
from tests.inference.made import made, write_media

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1300, "height": 900}
WAIT = 60_000  # ms; the first answer compiles
QUESTION = "Find the object that makes the audio."
DROP = """([selector, name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const held = new DataTransfer();
  held.items.add(new File([bytes], name, { type }));
  document.querySelector(selector).dispatchEvent(
    new DragEvent("drop", { dataTransfer: held, bubbles: true, cancelable: true }));
}"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """`visit(address, size)` -> a page; whatever it asked for and complained of is checked."""
    asked, said, opened = [], [], []

    def open_page(address, size=DESK, **how):
        context = browser.new_context(viewport=size, **how)
        context.on("request", lambda request: asked.append(request.url))
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        opened.append((context, address))
        return page

    yield open_page
    for context, address in opened:
        context.close()
        own = (address.split("?")[0], "data:", f"blob:{address}")
        assert [url for url in asked if not url.startswith(own)] == []
    assert said == []


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(address, the folder of temporary files) of a running demo; both are looked at in the end."""
    home, address = tmp_path_factory.mktemp("home"), f"http://127.0.0.1:{(port := free_port())}/"
    command = [sys.executable, "-m", "meerkat_jax.demo", f"--checkpoint={made().workdir}"]
    command += [f"--port={port}", "--megabytes=1", "--slots=2"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=cli_environment(made().cache) | {"TMPDIR": str(home)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        line = next((line for line in process.stdout if "The demo is at" in line), "")
        assert address in line, "the demo did not start"
        yield address, home
        assert [*home.glob("meerkat_demo_*/sent/*")]
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0, rest
    assert rest.endswith("ended; all that was sent is deleted\n")
    assert [*home.iterdir()] == []


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Two images and two sounds on disk."""
    folder = tmp_path_factory.mktemp("media")
    write_media(folder)
    return folder


def drop(page, where, path):
    kind = {"png": "image/png", "wav": "audio/wav"}[path.suffix[1:]]
    content = base64.b64encode(path.read_bytes()).decode()
    page.locator(f"{where} input[type=file]").wait_for(state="attached")
    page.evaluate(DROP, [f"{where} button:has(input), {where} button", path.name, kind, content])


def give(page, folder, number):
    drop(page, "#image", folder / f"{number}.png")
    page.locator("#image img").wait_for()
    drop(page, "#audio", folder / f"{number}.wav")
    page.locator("#audio .waveform-container, #audio audio").first.wait_for(state="attached")


def ask(page, grammar):
    page.get_by_label(grammar, exact=True).check()
    page.locator("#question textarea, #question input").fill(QUESTION)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator(".meerkat .figures").wait_for()


def answers(folder, grammars):
    """What the generate command answers about pair i, held to forms[i]."""
    found = []
    for number, grammar in enumerate(grammars):
        command = [sys.executable, "-m", "meerkat_jax.generate", f"--checkpoint={made().workdir}"]
        command += [f"--image={folder / f'{number}.png'}", f"--audio={folder / f'{number}.wav'}"]
        command += [f"--prompt={QUESTION}", f"--grammar={grammar}", "--json"]
        environment = cli_environment(made().cache)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        found.append(json.loads(done.stdout))
    return found


def plain(text):
    return " ".join(text.split())


def width(page):
    return page.evaluate("document.documentElement.scrollWidth")


def box_of(page):
    """Corners in 0..1 of the first drawn box."""
    rect = page.locator(".meerkat .image rect.answer").first
    image = page.locator(".meerkat .image").first.get_attribute("viewBox").split()
    x, y, w, h = (float(rect.get_attribute(name)) for name in ("x", "y", "width", "height"))
    return [x / 300, y / float(image[3]), (x + w) / 300, (y + h) / float(image[3])]


# ---- the demo ----


def test_two_visitors_at_once_each_get_their_own_answer_drawn(visit, demo, media):
    pages = [visit(demo[0]) for _ in range(2)]
    for number, page in enumerate(pages):
        give(page, media, number)
    for page, grammar in zip(pages, ("places", "times"), strict=True):
        page.get_by_label(grammar, exact=True).check()
        page.locator("#question textarea, #question input").fill(QUESTION)
    for page in pages:
        page.get_by_role("button", name="Ask", exact=True).click()
    for page in pages:
        page.locator(".meerkat .figures").wait_for()
    places, times = answers(media, ("boxes", "segments"))
    for page, answer in zip(pages, (places, times), strict=True):
        assert page.locator(".meerkat .talk b").text_content() == answer["text"]
        assert plain(answer["text"]) in plain(page.locator("#chat").text_content())
    box = places["boxes"][0]
    drawn = box_of(pages[0])
    assert drawn == pytest.approx([box[name] for name in ("x0", "y0", "x1", "y1")], abs=2e-3)
    bar = pages[1].locator(".meerkat .bar.answer").first.get_attribute("style")
    left, wide = (float(number) for number in re.findall(r"([0-9.]+)%", bar))
    segment = times["segments"][0]
    assert left / 10 == pytest.approx(segment["start"], abs=0.01)
    assert wide / 10 == pytest.approx(max(segment["end"] - segment["start"], 0.05), abs=0.01)


def test_the_plan_lights_up_and_the_sound_plays(visit, demo, media):
    page = visit(demo[0])
    give(page, media, 0)
    ask(page, "free")
    page.locator(".plan .heard rect").nth(1).hover()
    lit = "[...document.querySelectorAll('.plan .seen rect')].filter(r => r.style.fillOpacity > 0)"
    assert page.evaluate(f"{lit}.length") >= 1
    assert "goes most with the patch in row" in page.locator(".plan [role=status]").inner_text()
    page.locator(".plan .seen").focus()
    page.keyboard.press("ArrowRight")
    assert "The patch in row 1, column 2 goes most" in page.locator(".plan").inner_text()
    page.locator(".meerkat .spectrogram").click()
    page.wait_for_function("document.querySelector('.meerkat audio').currentTime > 4")


def test_a_keyboard_suffices(visit, demo):
    page = visit(demo[0])
    page.locator("#question").wait_for()

    def press(name):
        for _ in range(80):
            page.keyboard.press("Tab")
            if name in page.evaluate("document.activeElement.innerText || ''"):
                return page.keyboard.press("Enter")
        raise AssertionError(f"no way to {name} by keyboard")

    press("two things, one sounds")
    page.locator("#image img").wait_for()
    press("Describe both")
    page.locator(".meerkat .figures").wait_for()


def test_a_phone_shows_it_all_and_refusals_are_told(visit, demo, media, tmp_path):
    page = visit(demo[0], PHONE, has_touch=True)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("give an image or an audio clip first").wait_for()
    (tmp_path / "no.png").write_text("no image")
    drop(page, "#image", tmp_path / "no.png")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Describe both").click()
    page.get_by_text("not an image").wait_for()
    page.reload()
    give(page, media, 0)
    ask(page, "times")
    assert width(page) <= PHONE["width"]
    sides = "[...document.querySelectorAll('.meerkat *')].map(e => e.getBoundingClientRect().right)"
    assert page.evaluate(f"Math.max(...{sides})") <= PHONE["width"]


def test_no_file_of_the_server_and_no_address_is_read(demo, browser):
    ask = browser.new_context().request
    for path in (made().workdir / "config.json", "/etc/passwd"):
        assert ask.get(f"{demo[0]}gradio_api/file={path}").status in (403, 404)
    functions = ask.get(f"{demo[0]}config").json()["dependencies"]
    number = next(f["id"] for f in functions if len(f["inputs"]) == 6)
    for session, path in (("one", "/etc/passwd"), ("two", f"{demo[0]}config")):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        sent = {"data": ["What?", None, file, None, "free", True], "fn_index": number}
        joined = ask.post(f"{demo[0]}gradio_api/queue/join", data=sent | {"session_hash": session})
        assert joined.ok
        told = ask.get(f"{demo[0]}gradio_api/queue/data?session_hash={session}").text()
        assert '"success":false' in told.replace(" ", "") and "root:" not in told


# ---- the other pages ----


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    examples = [shown(), shown("igatl", "[dog, 1.0, 3.0]"), shown("avfact3", "False")]
    path = tmp_path_factory.mktemp("report") / "report.html"
    benchmark = score([one.answered for one in examples])
    return write_report(path, benchmark, [{"step": 1, "loss": 2.0}], examples, {"a": 1})


@pytest.fixture(scope="module")
def data_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("browse") / "browse.html"
    browse.write_page(made().data.folder, path, say=lambda line: None)
    return path


@pytest.mark.parametrize("name", ["report", "data_page"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_a_page_on_disk_opens_whole(name, size, visit, request):
    path: Path = request.getfixturevalue(name)
    page = visit(path.as_uri(), size)
    assert page.locator("svg.image").count() and width(page) <= size["width"]
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
