"""SIGTERM in real processes: alone, twice, before the first step, and in one of two processes."""

import signal
import subprocess
import sys
import time

from meerkat_jax.training.preemption import EXIT
from tests.conftest import ROOT, cli_environment, free_port

# A run without a model: it tells each step, and what it was at when it left.
RUN = """
import signal, sys, time
from meerkat_jax.training import preemption
from meerkat_jax.parallel import hosts

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background are given none
port, count, number, before, after = map(int, sys.argv[1:])
if count > 1:
    hosts.initialize(f"localhost:{port}", count, number, 60)
notice = preemption.Notice()
print("ready", flush=True)
time.sleep(before)  # as XLA compiles
for step in range(1, 1000):
    time.sleep(0.05)
    leave = notice.reached()
    print("step", step, flush=True)
    if leave:
        break
print("saving", step, flush=True)
time.sleep(after)
print("saved", flush=True)
sys.exit(preemption.EXIT)
"""


def start(port=0, count=1, number=0, before=0, after=0):
    """A run that takes so many seconds to compile and to save."""
    command = [sys.executable, "-c", RUN, *map(str, (port, count, number, before, after))]
    env = cli_environment("unused")
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE)


def until(process, word):
    for line in process.stdout:
        if line.startswith(word):
            return line
    raise AssertionError(f"it ended before it said {word!r}")


def test_the_step_is_ended_and_saved():
    run = start()
    until(run, "step 3")
    run.send_signal(signal.SIGTERM)
    assert "saved" in run.stdout.read()
    assert run.wait() == EXIT == 75


def test_before_the_first_step_there_is_nothing_to_wait_for():
    run = start(before=600)
    until(run, "ready")
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == EXIT
    assert run.stdout.read() == ""


def test_a_second_signal_ends_a_save_that_takes_too_long():
    run = start(after=600)
    until(run, "step 2")
    run.send_signal(signal.SIGTERM)
    until(run, "saving")
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == EXIT
    assert "saved" not in run.stdout.read()


def test_an_interrupt_from_the_keyboard_is_what_it_was():
    run = start()
    until(run, "step 2")
    run.send_signal(signal.SIGINT)
    assert "saved" not in run.stdout.read()
    assert run.wait() == -signal.SIGINT


def test_two_processes_leave_at_the_same_step_when_one_is_asked():
    port = free_port()
    runs = [start(port, 2, number) for number in range(2)]
    try:
        until(runs[1], "step 2")
        runs[1].send_signal(signal.SIGTERM)
        steps = [until(run, "saving") for run in runs]
        assert steps[0] == steps[1]
        assert [run.wait(60) for run in runs] == [EXIT, EXIT]
    finally:
        for run in runs:
            run.kill()


def test_two_processes_asked_before_the_first_step_leave_after_it():
    port = free_port()
    runs = [start(port, 2, number, before=4) for number in range(2)]
    try:
        for run in runs:
            until(run, "ready")
        time.sleep(0.5)
        runs[0].send_signal(signal.SIGTERM)
        assert [until(run, "saving") for run in runs] == ["saving 1\n"] * 2
        assert [run.wait(60) for run in runs] == [EXIT, EXIT]
    finally:
        for run in runs:
            run.kill()
