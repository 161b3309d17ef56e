"""metrics.jsonl: what is written, what is read back, and equality after a kill."""

import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meerkat_jax.core.errors import UserError
from meerkat_jax.training import metrics
from meerkat_jax.training.metrics import (
    TIMING,
    Clock,
    MetricsWriter,
    nonfinite,
    read_metrics,
    without_timing,
)


def run(folder, steps, resume_step=None, speed=1.0):
    """Write rows for `steps` as a run would."""
    with MetricsWriter(folder, total=10, resume_step=resume_step) as writer:
        for step in steps:
            loss = jnp.float32(1 / 3) / step
            writer.write(step, {"loss": loss, "seconds": speed * step, "eval": {"mfu": speed}})


def test_rows_come_back_as_they_were(tmp_path):
    values = {"loss": jnp.float32(0.1), "n": np.int64(3), "name": "adam", "eval": {"ciou": 0.5}}
    with MetricsWriter(tmp_path) as writer:
        writer.write(7, values)
    (row,) = read_metrics(tmp_path)
    assert row == {
        "step": 7, "loss": float(np.float32(0.1)), "n": 3, "name": "adam", "eval/ciou": 0.5,
    }  # fmt: skip


def test_nonfinite_values_are_valid_json_and_come_back(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": float("nan"), "grad_norm": -math.inf, "rate": 0.1})

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    raw = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert raw["loss"] is None and raw["nonfinite"] == {"loss": "nan", "grad_norm": "-inf"}
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(row["loss"]) and row["grad_norm"] == -math.inf and row["rate"] == 0.1
    assert "nonfinite" not in row


@pytest.mark.parametrize("torn", ["", '{"step": 6, "lo'])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, torn):
    run(tmp_path / "whole", range(1, 11))
    run(tmp_path / "cut", range(1, 6))
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write(torn)  # what a kill in the middle of a write leaves
    run(tmp_path / "cut", range(4, 11), resume_step=3, speed=2.0)
    whole, cut = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "cut")
    assert [row["step"] for row in cut] == list(range(1, 11))
    assert without_timing(whole) == without_timing(cut)
    assert whole != cut and "loss" in without_timing(cut)[0]


def test_a_fresh_run_drops_old_rows(tmp_path):
    run(tmp_path, [1, 2])
    run(tmp_path, [1])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]


def test_tensorboard_has_the_values(tmp_path):
    run(tmp_path, [1, 2])
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"eval/mfu" in events.read_bytes()


def test_progress_line(tmp_path, capsys):
    with MetricsWriter(tmp_path, total=100) as writer:
        writer.write(20, {"loss": 1.25, "examples_per_second": 31.24})
        writer.write(21, {"loss": 1.25}, progress=False)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step 20/100  31.2 examples/s  loss 1.2500  0:0")
    assert line.endswith(" left")


def test_an_array_is_no_metric(tmp_path):
    with MetricsWriter(tmp_path) as writer, pytest.raises(UserError, match=r"'eval/plan'.*\(2,\)"):
        writer.write(1, {"eval": {"plan": jnp.zeros(2)}})


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss": 1}', '{"step": "x"}', ""])
def test_a_damaged_row_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl is not there"):
        read_metrics(tmp_path)


def test_clock_counts_steps_and_leaves_out_what_is_apart(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock()
    for _ in range(2):
        with clock.waiting():
            now[0] += 1.0
        clock.count(examples=16, length=10)
        now[0] += 3.0
    with clock.paused():
        now[0] += 100.0
    row = clock.row()
    assert row["step_seconds"] == 4.0 and row["data_wait_seconds"] == 1.0
    assert row["examples_per_second"] == 4.0 and row["tokens_per_second"] == 40.0
    assert row["peak_memory_mib"] > 10
    assert row.keys() <= TIMING
    with clock.waiting():
        now[0] += 2.0
    assert clock.row()["step_seconds"] == 2.0  # each row begins anew


def test_a_wait_beside_a_running_step_costs_nothing():
    work = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, y: jnp.tanh(y @ x), x))
    x, clock = jnp.ones((700, 700)) / 700, Clock()
    jax.block_until_ready(work(x))
    running = {"loss": work(x)}
    with clock.waiting([running]):
        assert not running["loss"].is_ready()
    assert clock.row()["data_wait_seconds"] == 0
    jax.block_until_ready(running)
    with clock.waiting([running]):
        time.sleep(0.01)
    assert clock.row()["data_wait_seconds"] >= 0.01


@pytest.mark.parametrize("peak", [None, 8e12])
def test_flops_become_a_rate_and_a_share_of_the_peak(monkeypatch, peak):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(metrics, "device_peak", lambda: peak)
    clock = Clock()
    for _ in range(3):
        with clock.waiting():
            now[0] += 2.0
        clock.count(1, 1, flops=4e12 * jax.device_count())
    row = clock.row()
    assert row["tflops"] == 2.0  # of each device
    assert row.get("mfu") == (None if peak is None else 0.25)
    assert row.keys() <= TIMING
    assert not {"tflops", "mfu"} & clock.row().keys()


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, held):
            self.held = held

        def memory_stats(self):
            return self.held and {"peak_bytes_in_use": self.held * 2**20}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(5), Device(9), Device(None)])
    assert metrics.peak_memory_mib() == 9.0


def test_time_left_follows_the_steps_not_what_came_before(tmp_path, capsys):
    with MetricsWriter(tmp_path, total=100) as writer:
        writer.write(40, {"step_seconds": 2.0})
    assert "2:00 left" in capsys.readouterr().out


GOOD = {"loss": 2.0, "grad_norm": 3.0, "loss/answer": 1.9, "loss/avopt": 1.0, "loss/avace": 0.5}
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (
            {"loss": NAN, "grad_norm": NAN, "loss/avopt": NAN},
            "loss/avopt is nan (loss/answer is 1.9, loss/avace is 0.5); "
            "look at what loss/avopt alone read of the step's data",
        ),
        (
            {"loss": NAN, "loss/avopt": INF, "loss/avace": NAN},
            "loss/avopt is inf, loss/avace is nan (loss/answer is 1.9); "
            "look at what loss/avopt and loss/avace alone read of the step's data",
        ),
        (
            {"grad_norm": NAN},
            "grad_norm is nan (loss/answer is 1.9, loss/avopt is 1, loss/avace is 0.5); "
            "look at the step's data",
        ),
    ],
)
def test_the_terms_that_are_not_finite_are_named_and_no_learning_rate(bad, said):
    assert nonfinite(GOOD | bad) == said


def test_a_learning_rate_is_spoken_of_where_no_term_is_finite():
    row = dict.fromkeys(GOOD, NAN)
    assert nonfinite(row, before=GOOD) == (
        "loss/answer is nan, loss/avopt is nan, loss/avace is nan; the step before had loss 2 and "
        "grad_norm 3; if these had risen, lower the learning rate; if not, look at its data"
    )
