"""The page: what stands where, and which button does what. Gradio draws it.

A content security policy in the page's head forbids the browser every other host, and no font,
analytics or share link is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio_client.utils import is_http_url_like
from starlette.middleware import Middleware

from meerkat_jax.core.errors import UserError
from meerkat_jax.demo_page.limits import Limits
from meerkat_jax.demo_page.media import split_video
from meerkat_jax.demo_page.samples import Sample
from meerkat_jax.demo_page.talk import Desk, Talk
from meerkat_jax.mini.templates import instruction
from meerkat_jax.serving.guard import HostGuard

HERE = Path(__file__).parent
CSP = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'"
)
HEAD = f'<meta http-equiv="Content-Security-Policy" content="{CSP}"><script>{{script}}</script>'
TITLE = """# Who makes that sound, where, and when?
Give an image and an audio clip, then ask. Answers can point: at a place in the image, at a time in
the audio."""
TASKS = (
    ("Where does it sound?", "arig"),
    ("When does it sound?", "igatl"),
    ("Is it seen? True or false", "avfact2"),
    ("Describe both", "avc"),
)
GRAMMARS = {"free": None, "places": "boxes", "times": "segments"}
IDLE = '<p class="meerkat idle">What the answer points at is drawn here.</p>'


def build_page(desk: Desk, samples: Sequence[Sample], source: str, slots: int) -> gr.Blocks:
    """The page, not launched; `source` says where the media of `samples` come from.

    As many questions are asked at a time as the engine has `slots`, others wait in Gradio's queue.
    """
    limits = desk.limits
    with gr.Blocks(title="Meerkat", analytics_enabled=False) as page:
        gr.Markdown(TITLE)
        state = gr.State(Talk(), time_to_live=round(60 * limits.keep_minutes))
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                image = gr.Image(
                    label="Image", type="filepath", height=260, elem_id="image",
                    sources=["upload", "webcam", "clipboard"], buttons=[],
                )  # fmt: skip
                audio = gr.Audio(
                    label="Audio", type="filepath", elem_id="audio", buttons=[],
                    sources=["upload", "microphone"],
                )  # fmt: skip
                video = gr.UploadButton(
                    "Take both from a video", file_types=["video"], size="sm", elem_id="video"
                )
                for component in (image, audio, video):
                    _as_sent(component)
                gr.Markdown("Or begin with an example:")
                with gr.Row(elem_classes="few"):
                    examples = [gr.Button(sample.title, size="sm") for sample in samples]
            with gr.Column(min_width=300):
                chat = gr.Chatbot(
                    label="Conversation", height=340, render_markdown=False, buttons=[],
                    feedback_options=None, elem_id="chat", layout="bubble",
                )  # fmt: skip
                with gr.Row(elem_classes="few"):
                    tasks = [gr.Button(title, size="sm", min_width=130) for title, _ in TASKS]
                question = gr.Textbox(
                    label="Question", placeholder="Which object makes the audio?", lines=1,
                    max_length=limits.characters, elem_id="question",
                )  # fmt: skip
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    anew = gr.Button("Begin anew", elem_id="anew")
                grammar = gr.Radio(
                    list(GRAMMARS),
                    value="free",
                    label="Hold answers to well-formed",
                    elem_id="grammar",
                )
                follow = gr.Checkbox(
                    False, label="Let the model read the questions and answers before",
                    info="For models that were trained on conversations", elem_id="follow",
                )  # fmt: skip
        drawn = gr.HTML(IDLE, elem_id="drawn")
        gr.Markdown(_small_print(limits, source), elem_classes="fine")

        inputs, outputs = [state, image, audio, grammar, follow], [state, chat, drawn]
        answer = functools.partial(_answer, desk)
        asking = {"concurrency_limit": slots, "concurrency_id": "ask", "show_progress": "minimal"}
        asking |= {"api_visibility": "private"}
        for listen in (ask.click, question.submit):
            listen(answer, [question, *inputs], outputs, **asking)
        for button, (_, task) in zip(tasks, TASKS, strict=True):
            fixed = functools.partial(answer, instruction(task, "train", 0))
            button.click(fixed, inputs, outputs, **asking)
        for button, sample in zip(examples, samples, strict=True):
            values = str(sample.image), str(sample.audio), sample.question
            button.click(functools.partial(tuple, values), None, [image, audio, question])
        split = functools.partial(_split, desk)
        video.upload(split, video, [image, audio], concurrency_limit=4, api_visibility="private")
        anew.click(lambda: (Talk(), [], IDLE), None, outputs)
    return page


def launch(
    page: gr.Blocks,
    host: str,
    port: int,
    limits: Limits,
    waiting: int,
    given: Path,
    allowed_hosts: Sequence[str] = (),
) -> str:
    """Serve the page in threads of its own; returns its address. `given` is the examples' folder.

    It answers to the name `host` and to `allowed_hosts` (serving/guard.py).
    Raises UserError when the address cannot be had.
    """
    gr.set_static_paths([given])
    page.queue(max_size=waiting, api_open=False)
    guard = Middleware(HostGuard, host=host, allowed_hosts=allowed_hosts)
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False,
            max_file_size=round(limits.megabytes * 2**20), footer_links=[], ssr_mode=False,
            pwa=False, mcp_server=False, enable_monitoring=False, run_history=False, theme=_theme(),
            css_paths=HERE / "page.css", app_kwargs={"middleware": [guard]},
            head=HEAD.format(script=(HERE / "page.js").read_text(encoding="utf-8")),
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"--host={host} --port={port} cannot be had ({error})") from None
    return address


def _as_sent(component: gr.components.Component) -> None:
    """Let the files of a component stay as they came, and come from the visitor alone.

    Gradio would decode an image before its pixels are counted, and fetch what an address names
    that a forged request gives instead of a file. (A class of its own would make Gradio write a
    stub beside this module.)
    """
    keep = component.async_move_resource_to_block_cache

    async def keep_files(path: str | None) -> str | None:
        if path and is_http_url_like(path):
            raise gr.Error("a file is expected, not an address", print_exception=False)
        return await keep(path)

    component.async_move_resource_to_block_cache = keep_files
    component.preprocess = lambda payload: payload and payload.path


def _answer(
    desk: Desk,
    question: str,
    talk: Talk,
    image: str | None,
    audio: str | None,
    grammar: str,
    follow: bool,
) -> Iterator[tuple[Talk, list[dict], Any]]:
    try:
        for now, drawn in desk.ask(talk, image, audio, question, GRAMMARS[grammar], follow):
            yield now, _messages(now), gr.skip() if drawn is None else drawn
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _messages(talk: Talk) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for turn in talk.turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _split(desk: Desk, video: str) -> tuple[str, str | None]:
    try:
        image, audio, note = split_video(video, desk.seconds, desk.limits)
    except UserError as error:
        raise gr.Error(str(error).replace(video, Path(video).name), print_exception=False) from None
    gr.Info(note)
    return str(image), audio and str(audio)


def _small_print(limits: Limits, source: str) -> str:
    return (
        f"Files of at most {limits.megabytes:g} MB, images of at most {limits.megapixels:g} "
        f"million pixels, sounds and videos of at most {limits.seconds:g} s. What you send is kept "
        f"in a temporary folder of this computer and deleted after {limits.keep_minutes:g} "
        f"minutes, and when the page is shut down; nothing goes to any other. Examples: {source}."
    )


def _theme() -> gr.Theme:
    """Fonts of the visitor's own system: Gradio's themes name some that would be fetched."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
    return gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=fonts,
        font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"],
    )  # fmt: skip
