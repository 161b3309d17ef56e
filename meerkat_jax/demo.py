"""A page in the browser: give an image and an audio clip, ask, and see what the answer points at.

    python -m meerkat_jax.demo --checkpoint=runs/mini [--host=127.0.0.1 --port=7860]

Needs Gradio: pip install 'meerkat_jax[demo]'. Nothing is fetched and nothing is sent elsewhere;
what visitors send lies in a temporary folder, and is deleted after minutes and at the end. Ctrl-C
or SIGTERM ends it. docs/demo.md has the limits and the rest.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from meerkat_jax.api import Meerkat, cache_programs, define_storage_flags
from meerkat_jax.core.cli import run_command
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.files import default_cache
from meerkat_jax.demo_page.limits import Limits
from meerkat_jax.demo_page.samples import compose_samples
from meerkat_jax.demo_page.scratch import Scratch
from meerkat_jax.demo_page.talk import Desk
from meerkat_jax.inference.engine import Engine
from meerkat_jax.parallel.devices import find_devices

OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


def serve(
    model: Meerkat,
    cache: Path,
    stop: threading.Event,
    host: str = "127.0.0.1",
    port: int = 7860,
    slots: int = 8,
    waiting: int = 64,
    limits: Limits | None = None,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Serve the page until `stop` is set; nothing that was sent is left then.

    `slots` questions are answered side by side and at most `waiting` wait; `cache` is where media
    for examples may lie; `allowed_hosts` are more names of this server (serving/guard.py). Raises
    UserError when the address cannot be had.
    """
    limits = limits or Limits()
    os.environ |= OFFLINE
    with Scratch(60 * limits.keep_minutes) as scratch, Engine(model, slots, waiting) as engine:
        from meerkat_jax.demo_page import page as pages  # it imports Gradio, which finds the folder

        samples, source = compose_samples(scratch.given, model.config, cache)
        page = pages.build_page(Desk(engine, model.seconds, limits), samples, source, slots)
        address = pages.launch(page, host, port, limits, waiting, scratch.given, allowed_hosts)
        try:
            print(f"The demo is at {address} (Ctrl-C ends it)", flush=True)
            stop.wait()
        finally:
            page.close(verbose=False)
    print("ended; all that was sent is deleted", flush=True)


def define_flags() -> None:
    """The flags of the command line."""
    limits = Limits()
    flags.DEFINE_string("checkpoint", None, "Work directory of training.")
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0: all of this machine.")
    flags.DEFINE_integer("port", 7860, "Port to listen on.", lower_bound=1, upper_bound=65535)
    flags.DEFINE_list("allowed_hosts", [], "More names of this server, of its pages; *: any.")
    flags.DEFINE_integer("slots", 8, "Questions answered side by side.", lower_bound=1)
    flags.DEFINE_integer("waiting", 64, "Most questions that wait.", lower_bound=1)
    flags.DEFINE_float("megabytes", limits.megabytes, "Largest file.", lower_bound=0.1)
    flags.DEFINE_float("megapixels", limits.megapixels, "Largest image.", lower_bound=0.1)
    flags.DEFINE_float("seconds", limits.seconds, "Longest sound or video.", lower_bound=0.1)
    flags.DEFINE_float("answer_seconds", limits.answer_seconds, "Longest answer.", lower_bound=0.1)
    flags.DEFINE_float("keep_minutes", limits.keep_minutes, "Until files go.", lower_bound=0.1)
    define_storage_flags()
    flags.DEFINE_string("data_dir", None, "Cache of programs and media; else $MEERKAT_CACHE.")


def main(_: list[str]) -> None:
    """Read the flags, load the model and serve."""
    given = flags.FLAGS
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the demo needs Gradio; pip install 'meerkat_jax[demo]'")
    find_devices()
    cache = Path(given.data_dir).expanduser() if given.data_dir else default_cache()
    cache_programs(cache)
    limits = Limits(
        given.megabytes, given.megapixels, given.seconds, given.answer_seconds, given.keep_minutes
    )
    model = Meerkat.load(given.checkpoint, given.quantise, given.unstack_layers)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    place, sizes = (given.host, given.port), (given.slots, given.waiting)
    serve(model, cache, stop, *place, *sizes, limits, given.allowed_hosts)


if __name__ == "__main__":
    define_flags()
    run_command(main, required=("checkpoint",))
