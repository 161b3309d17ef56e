"""The evaluate command: scores beside baselines, all answers on file, a report in one file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import TASKS, Question
from meerkat_jax.data.leaks import write_keys
from meerkat_jax.data.mixture import mix
from meerkat_jax.data.split import open_split
from meerkat_jax.evaluate import evaluate
from meerkat_jax.evaluation import coco
from meerkat_jax.evaluation.benchmark import Answered, class_names, judge, main_metric
from meerkat_jax.evaluation.discover import Benchmark, Trained, check_leaks, find, trained_on
from meerkat_jax.evaluation.examples import choose
from meerkat_jax.from_config import open_folder
from meerkat_jax.mini import compose
from meerkat_jax.report.tables import text_table
from tests.conftest import ROOT, cli_environment, free_port
from tests.data.sources.built import SOURCES, build, write_tree
from tests.inference.made import STEP, fast_compilation, made, model

LIMIT = 3

HELD_OUT = [split for split in compose.SPLITS if split != "train"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    with fast_compilation():
        yield


@pytest.fixture
def loaded(monkeypatch):
    """The model that is loaded already, so that nothing is compiled again."""
    there = model()  # before its `load` is another
    monkeypatch.setattr("meerkat_jax.evaluate.Meerkat.load", lambda workdir, *storage: there)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(folder of what was written, what was returned, what was said) of a small evaluation."""
    out, said = tmp_path_factory.mktemp("out") / "new", []
    found = evaluate(
        made().workdir, out=out, limit=LIMIT, batch=2, cache=made().cache, say=said.append
    )
    return out, found, "\n".join(said)


@pytest.fixture(scope="module")
def scenes():
    """split -> the scenes that were evaluated."""
    folder = made().data.folder
    return {split: [open_split(folder, split)[i] for i in range(LIMIT)] for split in HELD_OUT}


def test_benchmark_json_is_what_was_found_and_counts_every_question(evaluated, scenes):
    out, found, _ = evaluated
    assert json.loads((out / "benchmark.json").read_text()) == json.loads(json.dumps(found))
    asked = Counter(
        f"{split}/{question.task}"
        for split, examples in scenes.items()
        for example in examples
        for question in example.questions
    )
    assert {key: found[key]["n"] for key in asked} == asked
    assert {key.split("/")[0] for key in found} == set(HELD_OUT)


def test_every_task_has_its_main_score_and_baselines(evaluated):
    _, found, _ = evaluated
    for key, entry in found.items():
        metric = main_metric(entry)
        assert 0 <= entry[metric] <= 1 and entry["n"] > 0, key
        assert entry["baselines"], key
        assert all(0 <= scores[metric] <= 1 for scores in entry["baselines"].values()), key


def test_every_answer_is_on_file_and_is_what_the_model_says(evaluated, scenes):
    out, _, _ = evaluated
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    asked = [
        (split, example, question)
        for split in HELD_OUT
        for example in scenes[split]
        for question in example.questions
    ]
    assert len(rows) == len(asked)
    for row, (split, example, question) in zip(rows, asked, strict=True):
        assert (row["split"], row["id"], row["task"]) == (split, example.id, question.task)
        assert (row["instruction"], row["expected"]) == (question.instruction, question.response)
    for place in (0, len(rows) // 2, len(rows) - 1):
        _, example, question = asked[place]
        answer = model().ask(example.image, example.audio, question.instruction)
        assert rows[place]["answer"] == answer.text


def test_the_report_stands_alone(evaluated):
    out, found, _ = evaluated
    page = (out / "report.html").read_text()
    addresses = re.findall(r"""(?:src|href|xlink:href)\s*=\s*["']([^"']+)""", page)
    assert addresses and all(a.startswith(("data:", "#", "examples/")) for a in addresses)
    linked = {address for address in addresses if address.startswith("examples/")}
    assert linked and all((out / address).is_file() for address in linked)
    assert not re.search(r"https?://|url\(|@import|<script|<link", page)
    assert page.count("<article") >= 2 * LIMIT
    for words in ("New compositions", "New augmentations", "New instances", f"step {STEP}"):
        assert words in page
    for words in ("turned, tinted or blurred", "other images and other recordings", "seed 0"):
        assert words in page


def test_what_is_said_ends_with_where_things_are(evaluated):
    out, found, said = evaluated
    for name in ("benchmark.json", "answers.jsonl", "report.html"):
        assert (
            str(out / name)
            in said.splitlines()[-3:][
                ["benchmark.json", "answers.jsonl", "report.html"].index(name)
            ]
        )
    assert f"compositions: examples {LIMIT}/{LIMIT}" in said
    for line in text_table(found).splitlines():
        assert line in said
    assert not any((made().workdir / name).exists() for name in ("benchmark.json", "report.html"))


def test_the_table_names_score_baseline_and_count():
    entry = {"accuracy": 0.75, "n": 12, "baselines": {"majority": {"accuracy": 0.5, "f1": 1.0}}}
    entry["intervals"] = {"accuracy": [0.5, 0.875]}
    line = text_table({"compositions/avfact2": entry}).splitlines()[2]
    assert re.fullmatch(
        r"  avfact2 +0\.750  0\.500-0\.875  0\.500 the most frequent answer "
        r"\(accuracy, 12 questions\)",
        line,
    )


def texts(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


def test_a_killed_evaluation_goes_on_with_the_same_result(evaluated, tmp_path, loaded):
    """Another batch size, and a line that was cut off by the kill."""
    out, found, _ = evaluated
    (tmp_path / "predictions").mkdir()
    for name in ("compositions", "instances"):
        whole = (out / "predictions" / f"{name}.jsonl").read_text().splitlines(keepends=True)
        assert len(whole) == LIMIT + 1
        kept = [*whole[:2], whole[2][:40]] if name == "instances" else whole
        (tmp_path / "predictions" / f"{name}.jsonl").write_text("".join(kept))
    said = []
    again = evaluate(
        made().workdir,
        out=tmp_path,
        limit=LIMIT,
        batch=1,
        cache=made().cache,
        say=said.append,
        diagnosed=0,
    )
    assert again == found and texts(tmp_path) == texts(out)
    told = "\n".join(said)
    assert f"compositions: {LIMIT} of {LIMIT} examples were answered before" in told
    assert f"instances: 1 of {LIMIT} examples were answered before" in told
    assert "augmentations: " in told and "augmentations: 1" not in told
    for name in HELD_OUT:
        lines = (tmp_path / "predictions" / f"{name}.jsonl").read_text().splitlines()
        assert len({json.loads(line).get("id") for line in lines}) == len(lines) == LIMIT + 1


def test_answers_of_another_model_are_refused(evaluated, tmp_path, loaded, monkeypatch):
    shutil.copytree(evaluated[0] / "predictions", tmp_path / "predictions")
    monkeypatch.setattr("meerkat_jax.evaluate.weights_hash", lambda params: "others")
    with pytest.raises(UserError, match="answered with weights '.*', now it is 'others'.*--overw"):
        evaluate(made().workdir, out=tmp_path, limit=1, cache=made().cache, say=list)
    evaluate(
        made().workdir,
        ["instances"],
        tmp_path,
        1,
        cache=made().cache,
        say=list,
        overwrite=True,
        diagnosed=0,
    )
    first = (tmp_path / "predictions" / "instances.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["weights"] == "others"


def test_a_file_that_holds_no_answers_is_named(tmp_path, loaded):
    (tmp_path / "predictions").mkdir()
    path = tmp_path / "predictions" / "instances.jsonl"
    path.write_text("hello\n")
    with pytest.raises(UserError, match=f"{path}: not a file of answers"):
        evaluate(made().workdir, ["instances"], tmp_path, 1, cache=made().cache, say=list)


def answered(task: str, number: int, right: bool) -> Answered:
    truth = {"kind": task, "answer": True, "image_labels": ["dog"], "audio_labels": ["dog"]}
    text = "I see a dog. I hear a dog: True." if right else "I see a bee. I hear a owl: False."
    if task in ("arig", "igatl"):
        text = ""
    return Answered(f"scene-{number}", "compositions", Question(task, "?", text, truth=truth), text)


def test_examples_are_right_and_wrong_of_every_task():
    tasks = [task for task in TASKS if task.startswith("avfact") or task == "avc"]
    many = [answered(task, i, i % 3 > 0) for i, task in enumerate(tasks * 12)]
    chosen = choose(many, most=10)
    names = class_names(many)
    assert len(chosen) == len({record.example_id for record in chosen}) == 10
    assert set(Counter(record.question.task for record in chosen).values()) == {2}
    assert sum(judge(record, names).right for record in chosen) == 5
    assert choose(many, most=10) == chosen
    assert choose([], most=10) == []
    assert len(choose(many[:4], most=10)) == 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two sources built of trees in their published layout."""
    folder = tmp_path_factory.mktemp("sources")
    for source in ("vggss", "llp"):
        build(source, write_tree(source, folder / "trees"), folder / "built" / source)
    return folder / "built"


def test_built_sources_are_benchmarks_beside_the_run_s_own(root, tmp_path, loaded):
    found = evaluate(
        made().workdir, ["llp", "vggss", "instances"], tmp_path, 2, cache=made().cache, say=list,
        root=root, diagnosed=0,
    )  # fmt: skip
    assert {key.split("/")[0] for key in found} == {"llp", "vggss", "instances"}
    assert main_metric(found["llp/igatl"]) == "segment_audio_visual"
    assert {row["split"] for row in texts(tmp_path)} == {"llp", "vggss", "instances"}
    page = (tmp_path / "report.html").read_text()
    assert "VGG-SS" in page and "Look, Listen and Parse" in page


def test_what_is_not_built_is_named(root, tmp_path, loaded):
    with pytest.raises(UserError, match="'vgss' is not in .* or below .*did you mean 'vggss'"):
        evaluate(made().workdir, ["vgss"], tmp_path, cache=made().cache, say=list, root=root)
    with pytest.raises(UserError, match="nothing is built there"):
        evaluate(made().workdir, ["vggss"], tmp_path, cache=made().cache, say=list, root=tmp_path)


def test_a_benchmark_that_was_trained_on_is_refused(tmp_path):
    for name, split in (("mine", "train"), ("vggss", "test")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
        write_keys(tmp_path / name, split, ["video:abc", f"video:{name}"])
    with pytest.raises(UserError, match="1 images or videos are in the training split of .*mine"):
        check_leaks(
            Trained(tmp_path, (tmp_path / "mine",)),
            [Benchmark("vggss", tmp_path / "vggss", "test")],
        )


@pytest.fixture
def moved(tmp_path):
    """(the config's data and its data set's name, the sources' new root): the old one is gone."""
    old, new = tmp_path / "old", tmp_path / "new"
    build("jsonl", write_tree("jsonl", tmp_path / "trees"), old / "mine")
    build("llp", write_tree("llp", tmp_path / "trees"), old / "llp")
    data = {"kind": "avfit", "root": str(old), "sources": {"mine": 1.0}}
    name = mix(old, data["sources"], tmp_path / "cache").name
    old.rename(new)
    return data, name, new


def test_a_run_is_scored_where_its_data_lies_elsewhere(moved, tmp_path):
    data, name, new = moved
    with pytest.raises(UserError, match="mine, on which .* is not in .*old, its data.root.*--root"):
        trained_on(data, tmp_path / "other", name, None, open_folder)
    there = trained_on(data, tmp_path / "other", name, new, open_folder)
    assert there.folder.name == name and there.sources == (new / "mine",)
    known = find(there, new)
    assert {one.folder for one in known.values()} == {new / "mine", new / "llp"}
    assert all(len(one.records()) for one in known.values())  # not the places that were


def test_another_build_than_the_one_trained_on_is_refused(moved, tmp_path):
    data, name, new = moved
    manifest = json.loads((new / "mine" / "manifest.json").read_text())
    (new / "mine" / "manifest.json").write_text(json.dumps(manifest | {"limit": 3}))
    with pytest.raises(UserError, match=f"trained on the data set {name}.*--root"):
        trained_on(data, tmp_path / "other", name, new, open_folder)


def test_benchmarks_are_scored_without_the_training_data_and_it_is_told(
    moved, root, tmp_path, loaded, monkeypatch
):
    data, name, _ = moved
    monkeypatch.setitem(model().config, "data", {**model().config["data"], **data})
    monkeypatch.setitem(model().meta, "data", name)
    said = []
    evaluate(
        made().workdir, ["llp"], tmp_path / "out", 1, cache=tmp_path / "other", say=said.append,
        root=root, diagnosed=0,
    )  # fmt: skip
    told = "no leaks were looked for between the benchmarks and mine, on which the run was trained"
    assert told in said[0] and told in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_every_source_is_scored_in_its_published_layout(tmp_path, loaded):
    for source in SOURCES:
        build(source, write_tree(source, tmp_path / "trees"), tmp_path / "built" / source)
    found = evaluate(
        made().workdir, ["all"], tmp_path / "out", 4, cache=made().cache, say=list,
        root=tmp_path / "built",
    )  # fmt: skip
    assert {key.split("/")[0] for key in found} == {*HELD_OUT, *SOURCES}
    assert {"sed_event_f1_macro", "sed_segment_f1"} <= set(found["openimages_strong/igatl"])
    assert {"event_audio_visual", "segment_audio_visual"} <= set(found["llp/igatl"])
    assert coco.missing() or {"bleu4", "meteor", "rouge_l", "cider"} <= set(found["valor/avc"])
    for key, entry in found.items():
        metric = main_metric(entry)
        low, high = entry["intervals"][metric]
        assert low <= entry[metric] <= high and entry["baselines"], key


@pytest.mark.slow
def test_several_processes_say_what_one_says(evaluated, tmp_path):
    """Two processes, then one that goes on: 3 scenes of each split, an odd number."""
    out, found, _ = evaluated
    command = [sys.executable, "-m", "meerkat_jax.evaluate", f"--workdir={made().workdir}"]
    command += [f"--data_dir={made().cache}", f"--out={tmp_path}", f"--limit={LIMIT}"]
    port = free_port()
    where = [f"--coordinator=localhost:{port}", "--processes=2"]
    runs = [
        subprocess.Popen(
            [*command, *where, f"--process={i}"], cwd=ROOT,
            env=cli_environment(made().cache), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    ended = [run.communicate(timeout=900) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], [error[-2000:] for _, error in ended]
    assert "examples" in ended[0][0] and "examples" not in ended[1][0]
    assert json.loads((tmp_path / "benchmark.json").read_text()) == json.loads(json.dumps(found))
    assert texts(tmp_path) == texts(out)
    shares = sorted(path.name for path in (tmp_path / "predictions").iterdir())
    assert shares == sorted(f"{s}{i}.jsonl" for s in HELD_OUT for i in ("", ".1"))


def test_a_split_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="benchmark 'composition' is.*did you mean 'compositions'"):
        evaluate(made().workdir, ["composition"], tmp_path, cache=made().cache, say=list)


def test_only_the_splits_that_were_asked_for(tmp_path, loaded):
    found = evaluate(
        made().workdir, ["instances"], tmp_path, 1, cache=made().cache, say=list, diagnosed=0
    )
    assert {key.split("/")[0] for key in found} == {"instances"}


def test_scores_on_another_data_set_are_refused(tmp_path, loaded, monkeypatch):
    monkeypatch.setitem(model().meta, "data", "mini-other")
    with pytest.raises(UserError, match="trained on the data set mini-other.*--data_dir"):
        evaluate(made().workdir, cache=tmp_path / "empty", out=tmp_path, say=list)
    assert not [*tmp_path.glob("empty/mini-*")]  # refused before it was rendered


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "missing --workdir"),
        (("--workdir=absent",), "absent is no folder; name a work directory"),
        (("--workdir=tests",), "config.json is not there"),
        (("--workdir=absent", "--limit=0"), "limit"),
        (("--workdir=absent", "--benchmark=x"), "benchmark"),
    ],
)
def test_a_mistake_of_the_user_is_one_line(cli, flags, message):
    done = cli("evaluate", *flags)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], done.stderr
