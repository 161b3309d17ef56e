"""The evaluate door: scores beside baselines, every answer on file, a report that stands alone."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from meerkat_jax.data.example import TASKS, Question
from meerkat_jax.data.mini import compose
from meerkat_jax.data.split import open_split
from meerkat_jax.errors import UserError
from meerkat_jax.evaluate import answer_split, choose, evaluate, table
from meerkat_jax.evaluation.benchmark import MAIN_METRIC, Answered, class_names, judge
from tests.generation.made import STEP, fast_compilation, made, model

LIMIT = 3

HELD_OUT = [split for split in compose.SPLITS if split != "train"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    with fast_compilation():
        yield


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
        metric = MAIN_METRIC[key.split("/")[1]]
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
    assert addresses and all(a.startswith(("data:", "#")) for a in addresses)
    assert not re.search(r"https?://|url\(|@import|<script|<link", page)
    assert page.count("<article") >= 2 * LIMIT
    for words in ("New compositions", "New augmentations", "New instances", f"step {STEP}"):
        assert words in page
    for words in ("turned, tinted or blurred", "other pictures and other sounds", "seed 0"):
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
    assert f"compositions: scenes {LIMIT}/{LIMIT}" in said
    for line in table(found).splitlines():
        assert line in said
    assert not any((made().workdir / name).exists() for name in ("benchmark.json", "report.html"))


def test_the_table_names_score_baseline_and_count():
    entry = {"accuracy": 0.75, "n": 12, "baselines": {"majority": {"accuracy": 0.5, "f1": 1.0}}}
    line = table({"compositions/avfact2": entry}).splitlines()[2]
    assert re.fullmatch(
        r"  avfact2 +0\.750  0\.500 the most frequent answer \(accuracy, 12 questions\)", line
    )


def test_scores_do_not_depend_on_the_batch():
    folder = made().data.folder
    texts = [
        [answered.text for answered in answer_split(model(), folder, "instances", 3, batch, list)]
        for batch in (1, 3)
    ]
    assert texts[0] == texts[1] and len(set(texts[0])) > 3


def answered(task: str, number: int, right: bool) -> Answered:
    truth = {"kind": task, "answer": True, "seen": ["dog"], "heard": ["dog"]}
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


def test_a_split_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="benchmark 'composition'.*did you mean 'compositions'"):
        evaluate(made().workdir, ["composition"], tmp_path, cache=made().cache, say=list)


@pytest.fixture
def loaded(monkeypatch):
    """The model that is loaded already, so that nothing is compiled again."""
    monkeypatch.setattr("meerkat_jax.evaluate.Meerkat.load", lambda workdir: model())


def test_only_the_splits_that_were_asked_for(tmp_path, loaded):
    found = evaluate(made().workdir, ["instances"], tmp_path, limit=1, cache=made().cache, say=list)
    assert {key.split("/")[0] for key in found} == {"instances"}


def test_scores_on_another_data_set_are_refused(tmp_path, loaded, monkeypatch):
    monkeypatch.setitem(model().meta, "data", "mini-other")
    with pytest.raises(UserError, match="trained on the data set mini-other.*--data_dir"):
        evaluate(made().workdir, cache=made().cache, out=tmp_path, say=list)


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
def test_a_mistake_of_the_user_is_one_line(door, flags, message):
    done = door("evaluate", *flags)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], done.stderr
