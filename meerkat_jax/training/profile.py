"""`--profile=FIRST:COUNT`: a trace of COUNT steps from step FIRST on, in the work directory.

The trace tells, thread by thread and on the device kernel by kernel, what a step's time went to. It
begins when its first step's program is compiled and its batch is here, and ends when the last of
its steps is done, so it holds whole steps and nothing that came before.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from meerkat_jax.core.errors import UserError


class Profile:
    """What to trace, and whether that was done; without steps nothing."""

    def __init__(self, folder: Path, first: int = 0, count: int = 0):
        """Steps first to first + count - 1, counted from 1, into `folder`; see `parse`."""
        self.folder, self.first, self.last = folder, first, first + count - 1
        self._begun = self._done = False

    @classmethod
    def parse(
        cls, flag: str | None, folder: Path, phases: Sequence[Mapping], stop_after: int | None
    ) -> Profile:
        """Parse --profile for a run of `phases`, which ends after step `stop_after` if given.

        Raises UserError for a flag that is no FIRST:COUNT, and for steps that the run does not have
        or that two phases share (the trace would be of compiling the second one).
        """
        if flag is None:
            return cls(folder)
        found = re.fullmatch(r"(\d+):(\d+)", flag)
        if not found or not all(map(int, found.groups())):
            raise UserError(
                f"--profile={flag}: expected FIRST:COUNT, two whole numbers above 0, as 20:3 for "
                "steps 20, 21 and 22"
            )
        profile = cls(folder, *map(int, found.groups()))
        ends = list(itertools.accumulate(phase["steps"] for phase in phases))
        stop = min(ends[-1], stop_after or ends[-1])
        if profile.last > stop:
            raise UserError(
                f"--profile={flag} asks for steps {profile.first} to {profile.last}, but the run "
                f"ends with step {stop}; name steps up to that"
            )
        for end in ends:
            if profile.first <= end < profile.last:
                raise UserError(
                    f"--profile={flag}: a phase ends with step {end}; name steps of one phase"
                )
        return profile

    def before(self, step: int, running: Any) -> None:
        """Begin if step number `step`, the next, is the first one; waits for what is `running`."""
        if step == self.first:
            jax.block_until_ready(running)
            jax.profiler.start_trace(self.folder)
            self._begun = True

    def after(self, step: int, result: Any) -> None:
        """End if step number `step` was the last one; waits for its `result`."""
        if self._begun and step == self.last:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._done = True

    def describe(self) -> str:
        """Where the trace is and how to open it, or why there is none; "" without --profile.

        A run that goes on behind its steps takes no trace: the command of a run that was stopped
        serves for the rest of it.
        """
        if self.last <= 0:
            return ""
        if not self._done:
            return f"no profile: this run did not take steps {self.first} to {self.last} whole"
        trace = max(self.folder.rglob("*.trace.json.gz"), default=self.folder)
        return (
            f"profile of steps {self.first} to {self.last}: {trace}; open it at "
            f"https://ui.perfetto.dev, or with `pip install xprof` and `xprof {self.folder}`"
        )
