"""Serve a trained model to clients of OpenAI's chat completions.

    python -m meerkat_jax.serve --checkpoint=runs/mini [--host=127.0.0.1] [--port=8000]

`POST /v1/chat/completions` takes an image (image_url with a data: URL), audio (input_audio) and
text, and answers at once or in pieces; `GET /v1/models`, `/health` and `/metrics` (Prometheus)
tell of the server. --slots questions are answered side by side, --waiting more wait, the next is
told to come again (429). SIGTERM lets the answers under way end. docs/use.md has examples.

There is neither a password nor encryption: beyond this machine, put a proxy in front that has both.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path

import numpy as np
from absl import flags

from meerkat_jax.api import Meerkat, cache_programs, define_storage_flags
from meerkat_jax.core.cli import run_command
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.files import default_cache
from meerkat_jax.inference.engine import Engine
from meerkat_jax.parallel.devices import find_devices
from meerkat_jax.serving.app import make_app
from meerkat_jax.serving.connections import make_server
from meerkat_jax.serving.limits import Limits


def warm(engine: Engine, size: int) -> None:
    """Compile what the first question needs, with a grey image of `size` pixels a side."""
    grey = np.full((size, size, 3), 128, np.uint8)
    engine.ask(grey, None, "What do you see?", max_new=1).answer()


def define_flags() -> None:
    """The flags of the command line."""
    limits = Limits()
    flags.DEFINE_string("checkpoint", None, "Work directory of training.")
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0: all of the machine.")
    flags.DEFINE_integer("port", 8000, "Port; 0: any that is free.", 0, 65535)
    flags.DEFINE_list("allowed_hosts", [], "More names of this server, of its pages; *: any.")
    flags.DEFINE_string("name", None, "The model's name; default: that of its folder.")
    flags.DEFINE_integer("slots", 8, "Questions answered side by side.", 1)
    flags.DEFINE_integer("waiting", 64, "Questions that may wait.", 1)
    flags.DEFINE_integer("pairs", 16, "Images and audio clips remembered.", 1)
    flags.DEFINE_integer("max_body", limits.body, "Bytes of a request.", 1)
    flags.DEFINE_integer("max_bodies", limits.bodies, "Bytes of all requests that are read.", 1)
    flags.DEFINE_integer("max_pixels", limits.pixels, "Pixels of an image.", 1)
    flags.DEFINE_float("max_audio", limits.audio, "Seconds of an audio clip.", 0)
    flags.DEFINE_float("max_seconds", limits.seconds, "From a request to its answer.", 0)
    define_storage_flags()
    flags.DEFINE_string("data_dir", None, "Cache of compiled programs; else $MEERKAT_CACHE.")


def main(_: list[str]) -> None:
    """Read the flags, load, and serve until a signal comes."""
    given = flags.FLAGS
    find_devices()
    cache_programs(Path(given.data_dir).expanduser() if given.data_dir else default_cache())
    with _bound(given.host, given.port) as place:
        model = Meerkat.load(given.checkpoint, given.quantise, given.unstack_layers)
        name = given.name or Path(given.checkpoint).resolve().name
        limits = Limits(
            given.max_body, given.max_pixels, given.max_audio, given.max_seconds, given.max_bodies
        )
        with Engine(model, given.slots, given.waiting, given.pairs) as engine:
            warm(engine, model.assembly.shapes.image_size)
            server = make_server(make_app(engine, name, limits, given.host, given.allowed_hosts))
            host, port = place.getsockname()[:2]
            print(f"serving {name} on http://{host}:{port}/v1", flush=True)
            # uvicorn ends in good order and then raises the signal again; that is the end for us.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            with contextlib.suppress(KeyboardInterrupt):
                server.run(sockets=[place])


def _bound(host: str, port: int) -> socket.socket:
    """A socket of this address, before the model is loaded: a port in use is told at once."""
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host, port))
    except OSError as error:
        place.close()
        reason = f"cannot listen there ({error.strerror}); name another --port or --host"
        raise UserError(f"--host={host} --port={port}: {reason}") from None
    return place


if __name__ == "__main__":
    define_flags()
    run_command(main, required=("checkpoint",))
