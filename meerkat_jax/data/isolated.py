"""Strangers' videos and sounds are decoded in a process of their own.

A container of a few kilobytes can state an index of gigabytes, and decoders have faults: so what
does not come from the user is decoded by a child that has the open file, may open no other, and
ends with its time or its memory. It takes about half a second. Containers alone go this way;
libsndfile and Pillow read their own kinds in the process itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.data import video
from meerkat_jax.data.containers import Source, as_file, late, name_of

SECONDS = 20  # until a child is ended
MEMORY = 2 << 30  # bytes that it may address, the libraries among them
TASKS = {
    "frame": video.load_frame,
    "channels": video.load_channels,
    "seconds": video.media_seconds,
}


def load_frame(source: Source, at: float, name: str | None = None) -> np.ndarray:
    """`video.load_frame` in a child."""
    return _run("frame", source, name, at)[0]


def load_channels(
    source: Source, start: float, seconds: float, name: str | None = None
) -> tuple[np.ndarray, int, int]:
    """`video.load_channels` in a child."""
    wave, rate, count = _run("channels", source, name, start, seconds)
    return wave, rate, count


def media_seconds(source: Source, kind: str, name: str | None = None) -> float:
    """`video.media_seconds` in a child."""
    return _run("seconds", source, name, kind)[0]


def _run(task: str, source: Source, name: str | None, *given: Any) -> list[Any]:
    """The values of a task; the child gets the file as its standard input."""
    name = name or name_of(source)
    root = str(Path(__file__).parents[2])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", __spec__.name, json.dumps([task, name, *given])]
    with _on_disk(source, name) as file:
        try:
            ended = subprocess.run(
                command, stdin=file, capture_output=True, timeout=SECONDS,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                     "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise UserError(late(name, SECONDS)) from None
    if ended.returncode < 0:  # a signal: time of the processor, memory, or a fault of a decoder
        raise UserError(f"{name}: its decoder crashed (signal {-ended.returncode}); save it anew")
    if ended.returncode:
        raise RuntimeError(ended.stderr.decode(errors="replace"))
    end = ended.stdout.index(b"\n") + 1
    told = json.loads(ended.stdout[:end])
    if "error" in told:
        raise UserError(told["error"])
    values = told["values"]
    if "shape" in told:
        array = np.frombuffer(ended.stdout, told["dtype"], offset=end)  # not to be written to
        values.insert(0, array.reshape(told["shape"]).copy())
    return values


def _on_disk(source: Source, name: str) -> Any:
    """The source as a file that a child can be given."""
    if isinstance(source, str | os.PathLike):
        return as_file(source, name)
    if isinstance(source, io.BufferedReader):  # open already
        return contextlib.nullcontext(source)
    file = tempfile.TemporaryFile()
    file.write(source if isinstance(source, bytes) else source.read())
    file.seek(0)
    return file


def _confine() -> None:
    """From here on no file is opened or written, and time and memory end."""
    import resource

    with contextlib.suppress(ImportError):  # told where it is needed
        import av.subtitles.codeccontext
        import av.subtitles.stream  # noqa: F401  # PyAV imports these when it opens a file
    for kind, most in (
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_AS, MEMORY),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def main() -> None:
    """The child: a line of JSON, then an array's bytes if there is one."""
    task, name, *given = json.loads(sys.argv[1])
    try:
        _confine()
        found = TASKS[task](sys.stdin.buffer, *given, name=name, limit=SECONDS)
        told: dict[str, Any] = {"values": list(found) if isinstance(found, tuple) else [found]}
    except UserError as error:
        told = {"error": str(error)}
    except MemoryError:
        told = {"error": f"{name}: takes more than {MEMORY >> 30} GB to decode; save it anew"}
    array = None
    if isinstance(told.get("values", [None])[0], np.ndarray):
        array = np.ascontiguousarray(told["values"].pop(0))
        told |= {"shape": array.shape, "dtype": array.dtype.str}
    sys.stdout.buffer.write(json.dumps(told).encode() + b"\n")
    if array is not None:
        sys.stdout.buffer.write(array.data)


if __name__ == "__main__":
    main()
