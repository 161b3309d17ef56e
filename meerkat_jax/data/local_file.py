"""Open a file that a user names: a manifest's, a row's or a command line's image or audio.

What a path names is not trusted to be a file. A FIFO blocks whoever opens it until someone writes,
a device has no end, and a NUL in a path is a ValueError of Python's rather than an OSError.
"""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from meerkat_jax.core.errors import UserError

MAX_BYTES = 4 << 30  # of a file; more than WAV can hold
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_local(path: str | os.PathLike, name: str | None = None, most: int = MAX_BYTES) -> BinaryIO:
    """The regular file at `path`, open for reading; `name` is what errors call it.

    Never waits. Raises UserError when it is not there, not readable, not a regular file, larger
    than `most` bytes, or when the path holds a NUL.
    """
    name = os.fspath(path) if name is None else name
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer. Regular files ignore the flag.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{name}: cannot open ({error.strerror}); check the path") from None
    except ValueError as error:  # a NUL, or half a character
        raise UserError(f"{name!r}: cannot open ({error}); check the path") from None
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size <= most:
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISREG(status.st_mode):
        raise UserError(
            f"{name}: {status.st_size} bytes; expected at most {most}: cut it or save it smaller"
        )
    kind = KINDS.get(stat.S_IFMT(status.st_mode), "of another kind")
    raise UserError(f"{name}: cannot open (it is {kind}, not a file); check the path")
