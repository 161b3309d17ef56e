"""--profile: what it refuses, and the trace that a run leaves."""

import gzip
import json
import re
from pathlib import Path

import pytest

from meerkat_jax.core.errors import UserError
from meerkat_jax.training.metrics import read_metrics
from meerkat_jax.training.profile import Profile

PHASES = [{"steps": 3}, {"steps": 5}]


@pytest.mark.parametrize(
    ("flag", "stop_after", "words"),
    [
        ("20", None, "expected FIRST:COUNT"),
        ("0:1", None, "above 0"),
        ("2:0", None, "above 0"),
        ("-1:2", None, "expected FIRST:COUNT"),
        ("5:5", None, "steps 5 to 9, but the run ends with step 8"),
        ("5:3", 6, "steps 5 to 7, but the run ends with step 6"),
        ("3:2", None, "a phase ends with step 3"),
    ],
)
def test_steps_that_cannot_be_traced_are_refused(tmp_path, flag, stop_after, words):
    with pytest.raises(UserError, match=words) as refused:
        Profile.parse(flag, tmp_path, PHASES, stop_after)
    assert f"--profile={flag}" in str(refused.value)


@pytest.mark.parametrize("flag", ["1:3", "4:5", "8:1"])
def test_a_phase_may_be_traced_to_its_ends(tmp_path, flag):
    Profile.parse(flag, tmp_path, PHASES, None)


def test_a_run_that_begins_behind_the_steps_goes_on_without_a_trace(tmp_path):
    profile = Profile.parse("4:2", tmp_path, PHASES, None)
    for step in (5, 6):
        profile.before(step, ())
        profile.after(step, ())
    assert "no profile" in profile.describe()
    assert not list(tmp_path.iterdir())


def test_without_the_flag_there_is_nothing(tmp_path):
    profile = Profile.parse(None, tmp_path, PHASES, None)
    profile.before(1, ())
    profile.after(1, ())
    assert profile.describe() == "" and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_leaves_a_trace_and_tells_its_rate(train, tmp_path):
    run = tmp_path / "run"
    done = train(run, "--profile=5:2", "--stop_after=6", "--config.log_every=1")
    assert done.returncode == 0, done.stderr
    (said,) = re.findall(r"profile of steps 5 to 6: (\S+); open it at", done.stdout)
    assert Path(said).is_relative_to(run / "profile")
    names = {e.get("name", "") for e in json.loads(gzip.open(said).read())["traceEvents"]}
    assert any("dot" in name for name in names)  # a step's products
    assert not any("backend_compile" in name for name in names)
    rows = [row for row in read_metrics(run) if "loss" in row]
    assert len(rows) == 6 and all(row["tflops"] > 0 for row in rows)
    assert all("mfu" not in row for row in rows)  # no one states a CPU's peak
    assert "no peak rate of 'cpu' is known" in done.stdout
    assert len(re.findall(r"compiled in [\d.]+ s, \S+ FLOPs a step", done.stdout)) == 3
    said = train(tmp_path / "other", "--profile=8:2")
    assert said.returncode == 2 and "--profile=8:2" in said.stderr
    assert not (tmp_path / "other").exists()
