"""Running a command: flags, and user errors as one line and an exit code.

A typing mistake in a file, an arg, a key, a value or a flag ends in one line that names the nearest
valid one, and exit code 2; a traceback is kept for faults of the program.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from meerkat_jax.core.config import check_overrides
from meerkat_jax.core.errors import UserError

USER_EXIT = 2  # exit code of a command after a user error


def run_command(
    main: Callable[[list[str]], Any], required: Iterable[str] = (), words: Sequence[str] = ()
) -> None:
    """`absl.app.run(main)` in which every user error ends in one line and exit code 2.

    `required` names flags that must be given, `words` the arguments without a flag, which `main`
    gets behind the program's name. UserErrors of `main`, unknown or missing flags, wrong
    values and stray arguments print "error: ..." on stderr; other exceptions keep their traceback.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        rest = _guarded(_parse, list(argv), tuple(required), tuple(words))
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)  # libraries log every file that they open
        return rest

    app.run(lambda argv: _guarded(main, argv), flags_parser=parse)


def _guarded(function: Callable, *args: Any) -> Any:
    """Call; a UserError or a full disk becomes a line and the end of the process."""
    try:
        return function(*args)
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
        sys.exit(USER_EXIT)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror}{where}; make room", file=sys.stderr, flush=True)
        sys.exit(USER_EXIT)


def _parse(argv: list[str], required: tuple[str, ...], words: tuple[str, ...]) -> list[str]:
    """Parse absl's flags; every complaint as a UserError."""
    if "config" in flags.FLAGS:
        check_overrides(argv[1:])
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(str(error)) from None
    missing = [word.upper() for word in words[len(rest) - 1 :]]
    missing += [f"--{name}" for name in required if flags.FLAGS[name].value is None]
    if missing:
        raise UserError(f"missing {' and '.join(missing)}; see {Path(argv[0]).stem} --help")
    if len(rest) > 1 + len(words):
        raise UserError(f"stray argument {rest[-1]!r}; flags are written --name=value")
    return rest
