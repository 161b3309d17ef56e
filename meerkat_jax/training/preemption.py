"""Preemption: SIGTERM, and the notice of a preempted TPU.

On a notice a run finishes its step, saves and exits with code 75 (EX_TEMPFAIL of sysexits.h: try
again later); the same command with --resume continues it. The exit codes of train are thus 0 for a
finished run, 75 for one to be started again, 2 for a user error.

All processes exit at the same step, even if only one has the notice: JAX distributes it and agrees
on the step (`multihost_utils.reached_preemption_sync_point`), with a signal handler of its own. A
single process waits for the signal in a thread, since Python's handlers are blocked while XLA
compiles: before the first step there is nothing to save, and a second signal ends the process at
once; the run then continues from the last complete checkpoint.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

import jax
from jax.experimental import multihost_utils

EXIT = 75


class Notice:
    """Listens for SIGTERM from now on. Make it in the main thread, after the hosts have joined."""

    def __init__(self) -> None:
        """Listen."""
        self._steps, self._asked = 0, threading.Event()
        if jax.process_count() > 1:
            return
        here, self._there = socket.socketpair()
        self._there.setblocking(False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(self._there.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(here,), daemon=True).start()

    def reached(self) -> bool:
        """Is this the step to save and leave after? Asked by every process after each step."""
        self._steps += 1
        if jax.process_count() > 1:
            # Counted from the start of this process: a notice may come before the first step.
            return multihost_utils.reached_preemption_sync_point(self._steps)
        return self._asked.is_set()

    def _listen(self, here: socket.socket) -> None:
        while number := here.recv(1):
            if number[0] != signal.SIGTERM:
                continue
            if self._asked.is_set() or not self._steps:
                print(f"SIGTERM: leaving at once, code {EXIT}", file=sys.stderr, flush=True)
                os._exit(EXIT)
            self._asked.set()
