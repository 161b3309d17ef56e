"""The benchmarks' command at tiny sizes, and how they count and compare; no speed is asserted."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks import (
    building,
    generate,
    large,
    lora,
    measure,
    pairs,
    records,
    sinkhorn,
    stream,
    towers,
    train_step,
    work,
)
from meerkat_jax.alignment.sinkhorn import round_to_marginals, transport
from meerkat_jax.core.config import to_json
from meerkat_jax.core.errors import UserError
from meerkat_jax.models.llama import Llama
from tests import tiny
from tests.conftest import ROOT, cli_environment
from tests.tolerances import tolerance

CASES = ("clip", "lora", "generate", "lora7b_512")
SIDE = {"median", "q1", "q3", "min", "max"}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What the command writes."""
    folder = tmp_path_factory.mktemp("benchmark")
    out = folder / "towers.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.towers", "--size=tiny", "--repeats=2", "--threads=1",
         f"--only={','.join(CASES)}", f"--out={out}"],
        cwd=ROOT, env=cli_environment(folder), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text()), done.stdout


@pytest.mark.slow
def test_a_report_tells_setting_and_spread(report):
    found, printed = report
    assert {"date", "device", "processor", "threads", "versions", "command"} <= set(
        found["setting"]
    )
    assert found["setting"]["device"] == "CPU" and found["repeats"] == 2
    assert all(found["setting"]["versions"].values())
    assert tuple(found["cases"]) == CASES
    for name, case in found["cases"].items():
        assert (
            SIDE <= set(case["ours"]) and SIDE <= set(case["theirs"]) and SIDE == set(case["ratio"])
        )
        assert len(case["seconds"]["ours"]) == len(case["seconds"]["theirs"]) == 2
        pairwise = [t / o for o, t in zip(*case["seconds"].values(), strict=True)]
        assert case["ratio"]["median"] == pytest.approx(np.median(pairwise))
        assert f"| {name} |" in printed


@pytest.mark.slow
def test_both_sides_compute_the_same(report):
    cases = report[0]["cases"]
    for name in CASES[:-1]:
        assert cases[name]["agreement"], name
        assert max(cases[name]["agreement"].values()) <= tolerance("stack")["rtol"], name
    losses = np.array(cases["lora"]["facts"]["losses"])
    assert (np.diff(losses, axis=0) < 0).all()  # both learn, from the first step on


@pytest.mark.slow
def test_the_large_step_tells_what_was_tried(report):
    facts = report[0]["cases"]["lora7b_512"]["facts"]
    for side in ("ours", "theirs"):
        tried = facts["tried"][side]
        assert len(tried) == 2
        assert facts[side] == min(tried, key=lambda one: one["seconds"])["setting"]
        assert all(one["losses"][-1] < one["losses"][0] for one in tried)


def test_calls_take_turns():
    calls = []
    pair = measure.Pair(
        lambda: calls.append("ours"),
        lambda: calls.append("theirs"),
        rate=lambda s: {"per_second": 1 / s},
    )
    found = measure.in_turns(pair, repeats=3, warm=1)
    assert calls == ["ours", "theirs"] * 4
    assert found["ours"]["per_second"] == pytest.approx(1 / found["ours"]["median"])


def test_spread_of_one_and_of_many():
    assert set(measure.spread([2.0]).values()) == {2.0}
    assert measure.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == {
        "median": 3.0, "q1": 2.0, "q3": 4.0, "min": 1.0, "max": 5.0,
    }  # fmt: skip


@pytest.mark.parametrize("theirs", [[1.0, 2.0], [1.0, math.nan], [1.0, 1.0, 1.0]])
def test_sides_that_differ_are_not_timed(theirs):
    setting = pairs.Setting("tiny", "cpu", narrow=False)
    assert setting.agreed(same=([1.0, 1.0], [1.0, 1.0])) == {"same": 0.0}
    with pytest.raises(ValueError, match="differ|shape"):
        setting.agreed(other=([1.0, 1.0], theirs))


def test_model_flops_of_a_frozen_base():
    """4 per frozen weight and token, 6 per trained one, and three times the causal products."""
    sizes = {"width": 8, "depth": 2, "heads": 2, "kv_heads": 2, "mlp_dim": 12, "vocab_size": 20}
    params = large.weights(Llama(**sizes, lora=lora.LORA))
    base = 2 * (4 * 8 * 8 + 3 * 8 * 12) + 8 * 20  # products alone: an embedding is a look-up
    trained = 2 * 4 * 2 * 8 * lora.RANK
    attention = 3 * 2 * sum(2 * 2 * 8 * (i + 1) for i in range(6))  # of one row: scores and values
    expected = 12 * (4 * base + 6 * trained) + 2 * attention
    assert large.step_flops(params, sizes, tokens=12, sequence=6) == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"only": ["clop"]}, "--only=clop: expected some of clip, clap"),
        ({"dtype": "bfloat16"}, "float32 alone"),
    ],
)
def test_wrong_flags_are_named(flags, words):
    with pytest.raises(UserError, match=words):
        towers.run(**flags)


def test_the_release_s_transport_is_ipot():
    """Written twice: plainly in torch for the benchmark, in the log domain in our solver."""
    cost = sinkhorn.costs("clustered", 2, 9, 16)
    plan = jnp.asarray(sinkhorn.their_plan(torch.tensor(cost)).numpy())
    how = {"solver": "ipot", "beta": sinkhorn.BETA, "iterations": sinkhorn.ITERATIONS}
    rounded = round_to_marginals(plan, jnp.full((2, 9), 1 / 9), jnp.full((2, 16), 1 / 16))
    np.testing.assert_allclose(rounded, transport(cost, **how)["plan"], **tolerance("module"))
    theirs = sinkhorn.their_gradient(torch.tensor(cost)).numpy()
    ours = sinkhorn.our_gradient(cost)[1]
    assert np.sum(ours * theirs) > 0.9 * np.linalg.norm(ours) * np.linalg.norm(theirs)


def test_both_transports_are_near_the_exact_one():
    found = sinkhorn.errors(9, 4, exact=2)
    sides = ("ours", "ours, largest", "theirs", "theirs rounded")
    assert found.keys() == {f"{kind} {side}" for kind in sinkhorn.KINDS for side in sides}
    bound = {kind: tolerance(f"emd_default_{kind}")["rtol"] for kind in sinkhorn.KINDS}
    assert all(error <= bound[name.split()[0]] for name, error in found.items()), found


RATES = ("examples_per_second", "examples_per_core_second")


def test_both_sides_of_the_stream_read_the_same():
    small = {"seconds": 0.2, "stored": 48, "side": 32, "rate": 16_000}
    lines = []
    found = stream.run([0], 8, batch=2, batches=3, repeats=2, say=lines.append, **small)
    (case,) = found["cases"]
    for rate in RATES:
        assert case["ratio_of_" + rate].keys() == SIDE and case["ours"][rate]["min"] > 0
    assert found["bytes_per_record"] > 1000 and len(lines) == 3


def test_a_stream_that_differs_is_not_timed(tmp_path):
    records.write_split(tmp_path, 2, seconds=0.2, side=48)
    encode = records.encoder(seconds=0.2, side=32)
    stream.agree(tmp_path, encode, 2)
    plain = stream.Plain.arrays
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="audio differs"):
        patch.setattr(stream.Plain, "arrays", lambda *a: plain(*a) | {"audio": np.zeros(9600)})
        stream.agree(tmp_path, encode, 2)


def test_both_builds_make_the_same_media():
    found = building.speed(4, workers=1, repeats=1, size=(640, 480), seconds=0.3)
    for rate in RATES:
        assert found["ratio_of_" + rate].keys() == SIDE and found["theirs"][rate]["min"] > 0
    assert "plain loop" in building.told("speed", found)


def test_a_build_of_tiny_media_tells_its_memory():
    found = building.alone(20, workers=1)
    assert 0 < found["before"] <= found["planner"] and found["examples"] == 20
    assert found["largest_worker"] == 0  # one worker is the planner itself
    assert "20 examples" in building.told("memory", [found])


def test_codecs_are_measured_beside_each_other():
    found = building.codecs(1, repeats=1, seconds=0.5)
    assert found["opus"]["kilobytes"] < found["flac"]["kilobytes"]
    assert all(row["decode_ms"].keys() == SIDE for row in found.values())
    with pytest.raises(UserError, match="--only=sped: expected some of speed"):
        building.run(only=["sped"])


def test_answers_are_timed_beside_transformers():
    lines = []
    found = generate.run(["1 question"], "tiny", repeats=2, threads=1, new=4, say=lines.append)
    case = found["cases"]["1 question"]
    assert case["agreement"] == {"tokens that differ": 0.0} and len(case["seconds"]["ours"]) == 2
    assert case["step"]["ratio"].keys() == case["first"]["ratio"].keys() == SIDE
    # norms, seven kernels and a table of words of 48 x 2 layers; two caches of 16 places
    weights = 2 * (2 * 48 + 48 * (48 + 16 + 16 + 48 + 3 * 64)) + 48 + 128 * 48
    assert case["facts"]["weights_bytes"] == 4 * weights
    assert case["facts"]["cache_bytes"] == 4 * 2 * 16 * 2 * 16
    assert math.isfinite(case["bandwidth"]["of_reading"]) and "| 1 question |" in lines[-1]
    with pytest.raises(UserError, match="--only=2 question: expected some of 1 question, 16"):
        generate.run(["2 question"])


def test_answers_that_differ_are_not_timed():
    side = generate.our_side
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="answers differ"):
        patch.setattr(generate, "our_side", lambda *a: lambda: side(*a)() + 1)
        generate.run(["1 question"], "tiny", threads=1, new=2, say=lambda line: None)


def test_work_counts_loops_products_and_elementwise():
    x = jax.ShapeDtypeStruct((3, 3), jnp.float32)

    def looped(x):
        return jax.lax.scan(lambda c, _: (jnp.exp(c @ c), None), x, length=5)[0]

    once = work.Work(2 * 27 + 9, 4 * (27 + 18))
    assert work.count(looped, x) == once * 5
    assert work.of(jax.jit(looped).trace(x).jaxpr, products_only=True).bytes == 5 * 4 * 27
    with pytest.raises(ValueError, match="end is not known"):
        work.count(lambda x: jax.lax.while_loop(lambda c: c.sum() > 0, lambda c: c - 1, x), x)


def test_parts_of_a_step_have_the_gradients_that_its_phase_asks_for():
    config, made = train_step.planned(to_json(tiny.get_config()))
    pieces = train_step.parts(config, made)
    assert list(pieces) == ["image tower", "audio tower", "AVOpT", "AVACE", "LLM", "optimizer"]
    shapes = {name: jax.eval_shape(part.call, *part.arguments) for name, part in pieces.items()}
    assert shapes["image tower"].shape == ()  # at rest: forwards only
    (avopt,) = shapes["AVOpT"][1]  # its own projections, and no tower below
    assert avopt.keys() == {
        f"avopt/{m}/{k}" for m in ("image", "audio") for k in ("kernel", "bias")
    }
    own, (image, _) = shapes["LLM"][1]
    assert image.shape == pieces["LLM"].arguments[1][0].shape  # what is below learns through it
    assert all(path.startswith("llama/") for path in own)
    found = train_step.shares(made, pieces)
    assert 0 < found["flops_share"] and 0 < found["bytes_share_at_most"]
