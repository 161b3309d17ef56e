"""The one folder that the page writes to: what visitors send, deleted after minutes and at the end.

Gradio keeps uploads below $GRADIO_TEMP_DIR, and reads it when it is imported: open a `Scratch`
first. Its own way of deleting forgets uploads that were broken off, so the folder is swept here.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path

SWEEP_SECONDS = 15.0


class Scratch:
    """`sent` is swept, `given` (the examples) is not; both are gone after the `with`."""

    def __init__(self, keep_seconds: float):
        """Files in `sent` are deleted `keep_seconds` after they were last written."""
        self._keep, self._over = keep_seconds, threading.Event()

    def __enter__(self) -> Scratch:
        self._before = os.environ.get("GRADIO_TEMP_DIR"), tempfile.tempdir
        self._folder = tempfile.TemporaryDirectory(prefix="meerkat_demo_")
        self.folder = Path(self._folder.name)
        self.sent, self.given = self.folder / "sent", self.folder / "given"
        self.sent.mkdir()
        self.given.mkdir()
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = str(self.sent)
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        named, tempfile.tempdir = self._before
        if named is None:
            os.environ.pop("GRADIO_TEMP_DIR", None)
        else:
            os.environ["GRADIO_TEMP_DIR"] = named
        self._folder.cleanup()

    def sweep(self, now: float | None = None) -> int:
        """Delete the files in `sent` that are too old; returns their number."""
        oldest, gone = (time.time() if now is None else now) - self._keep, 0
        for path in sorted(self.sent.rglob("*"), reverse=True):  # what is in a folder before it
            with contextlib.suppress(OSError):  # gone by now, or a folder with something in it
                if path.stat().st_mtime < oldest:
                    path.rmdir() if path.is_dir() else path.unlink()
                    gone += 1
        return gone

    def _run(self) -> None:
        while not self._over.wait(SWEEP_SECONDS):
            self.sweep()
