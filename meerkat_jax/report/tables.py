"""Score tables of the report, in plain words and beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from meerkat_jax.evaluation.benchmark import MAIN, main_metric

TASK_NAMES = {
    "arig": "Point at what sounds",
    "igatl": "Say when it sounds",
    "avfact1": "Fact check: box and whole clip",
    "avfact2": "Fact check: image and whole clip",
    "avfact3": "Fact check: box and interval",
    "avfact4": "Fact check: image and interval",
    "avqa": "Questions, all kinds",
    "avqa/which": "Question: which object sounds?",
    "avqa/count": "Question: how many objects?",
    "avqa/where": "Question: where is it?",
    "avqa/exists": "Question: is it in the image?",
    "avqa/first": "Question: which sound is first?",
    "avqa/heard_and_seen": "Question: both heard and seen?",
    "avc": "Describe image and audio",
}
METRICS = {
    "ciou": "boxes that overlap the true ones by half or more (cIoU)",
    "auc": "area under the overlap curve (AUC)",
    "mean_ciou": "mean overlap on the grid of cIoU",
    "mean_iou": "mean overlap with the true boxes (IoU)",
    "iou50": "overlap with the true boxes by half or more (IoU)",
    "labels_right": "objects named right",
    "segment_audio_visual": "LLP: seconds, F1 as a mean over videos",
    "event_audio_visual": "LLP: whole events, F1 as a mean over videos",
    "segment_f1": "seconds found and named right (segment F1)",
    "event_f1": "whole sounds found, overlap of half or more (event F1)",
    "sed_segment_f1": "sed_eval: seconds, F1 of all",
    "sed_segment_f1_macro": "sed_eval: seconds, F1 as a mean over classes",
    "sed_event_f1": "sed_eval: begin and end right, F1 of all",
    "sed_event_f1_macro": "sed_eval: begin and end right, F1 as a mean over classes",
    "accuracy": "right answers",
    "precision": "precision of the answer True",
    "recall": "recall of the answer True",
    "f1": "F1 of the answer True",
    "names_right": "all seen and heard things named right",
    "seen_right": "all seen things named right",
    "heard_right": "all heard things named right",
    "bleu4": "BLEU@4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
}
BASELINES = {
    "constant_box": "the same box every time",
    "no_hearing_one": "perfect boxes without hearing: one at random",
    "no_hearing_all": "perfect boxes without hearing: all of them",
    "whole_clip": "the whole clip",
    "best_interval": "the best fixed interval",
    "majority": "the most frequent answer",
    "anything_sounds": "true where anything sounds",
    "frequent_caption": "the most frequent caption",
}
SUBSETS = {"several_objects": "several objects in the image", "two_sounds": "two sounds at once"}
SPLITS = {
    "compositions": (
        "New compositions",
        "Scenes that were never seen in training, put together from the images and recordings "
        "that were.",
    ),
    "augmentations": (
        "New augmentations",
        "New scenes whose images are turned, tinted or blurred and whose sounds are faster, "
        "slower or echoing, as training never showed them.",
    ),
    "instances": (
        "New instances",
        "New scenes made of other images and other recordings of the same kinds of things: none "
        "of these files was part of training. The hardest of the tests.",
    ),
    "vggss": ("VGG-SS", "Boxes of what sounds in videos of VGGSound; test split."),
    "flickr_soundnet": (
        "Flickr-SoundNet",
        "Boxes that several people drew around what sounds; cIoU is with what they agree on.",
    ),
    "pascal_sound": ("PASCAL Sound", "Images of PASCAL VOC with sounds of their classes."),
    "avsbench": (
        "AVSBench",
        "Frames of AVSBench, single source; the true box is the tight one around the mask.",
    ),
    "openimages_strong": (
        "AudioSet Strong",
        "When a thing of an image is heard, by the strong labels of AudioSet's evaluation split.",
    ),
    "openimages_audioset": ("AudioSet", "Images of Open Images with sounds of AudioSet."),
    "openimages_vggsound": ("VGGSound", "Images of Open Images with sounds of VGGSound."),
    "llp": ("LLP", "When an event is both heard and seen; test split of Look, Listen and Parse."),
    "avqa": ("AVQA", "Questions with answers to choose from; its val split, as it has no test."),
    "music_avqa": ("MUSIC-AVQA", "Questions about real videos of music; test split."),
    "valor": ("VALOR-32K", "Captions of what is seen and heard; test split."),
    "avfit": ("AVFIT as released", "Questions that the authors of Meerkat published; test."),
}


def split_words(split: str) -> tuple[str, str]:
    """Title and explanation of a benchmark by its name."""
    return SPLITS.get(split, (split.replace("_", " ").capitalize(), ""))


def by_split(benchmark: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """split -> task (with kind) -> entry, tasks in reading order, known splits first."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for key, entry in benchmark.items():
        split, _, task = key.partition("/")
        if task and isinstance(entry, Mapping):
            found.setdefault(split, {})[task] = entry
    tasks, splits = [*TASK_NAMES], [*SPLITS]

    def split_place(name: str) -> int:
        return splits.index(name) if name in splits else len(splits)

    def task_place(name: str) -> int:
        return tasks.index(name) if name in tasks else len(tasks)

    return {
        split: dict(sorted(found[split].items(), key=lambda item: task_place(item[0])))
        for split in sorted(found, key=split_place)
    }


def text_table(benchmark: Mapping[str, Any]) -> str:
    """The main score of each task with its interval and its best baseline, for a terminal."""
    lines = []
    for split, entries in by_split(benchmark).items():
        lines += ["", f"{split_words(split)[0]:<30}score  interval     best baseline"]
        for task, entry in entries.items():
            metric = main_metric(entry)
            if metric is None:
                lines.append(f"  {task:<28}not scored here ({entry['n']} questions)")
                continue
            known = _baselines(entry, metric)
            best = max(known, key=known.get) if known else None
            beside = f"{known[best]:.3f} {BASELINES[best]}" if best else "none"
            low, high = entry.get("intervals", {}).get(metric, (entry[metric],) * 2)
            lines.append(
                f"  {task:<28}{entry[metric]:.3f}  {low:.3f}-{high:.3f}  {beside} "
                f"({metric}, {entry['n']} questions)"
            )
    return "\n".join([*lines, ""])


def overview(benchmark: Mapping[str, Any]) -> str:
    """One row per task, one column per split: the main score over its best baseline."""
    splits = by_split(benchmark)
    if not splits:
        return '<p class="note">No scores yet.</p>'
    tasks = list(dict.fromkeys(task for entries in splits.values() for task in entries))
    head = "".join(f'<th scope="col">{escape(split_words(s)[0])}</th>' for s in splits)
    rows = "".join(
        f'<tr><th scope="row">{escape(_task_name(task))}'
        f"<small>{escape(_metric_name(_main(splits, task)))}</small></th>"
        + "".join(f"<td>{_meter(e.get(task), _main(splits, task))}</td>" for e in splits.values())
        + "</tr>"
        for task in tasks
    )
    return (
        f'<div class="scroll"><table class="overview"><thead><tr><th scope="col">Task</th>{head}'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def details(benchmark: Mapping[str, Any]) -> str:
    """Per split: every score with its baselines, number of questions and unreadable answers."""
    parts = []
    for split, entries in by_split(benchmark).items():
        title, words = split_words(split)
        rows = "".join(_rows(task, entry) for task, entry in entries.items())
        parts.append(
            f"<details><summary><h3>{escape(title)}</h3> <span>every score</span></summary>"
            f'<p>{escape(words)}</p><div class="scroll"><table class="detail"><thead><tr>'
            '<th scope="col">Task and score</th><th scope="col">Model, 95 % interval</th>'
            '<th scope="col">Baselines</th><th scope="col">n</th>'
            '<th scope="col">Not readable</th></tr></thead>'
            f"<tbody>{rows}</tbody></table></div></details>"
        )
    return "".join(parts)


def number(value: object) -> str:
    """0.876 as "0.876"; a dash for what is not a number."""
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:.3f}" if numeric else "–"


def _rows(task: str, entry: Mapping[str, Any]) -> str:
    head = f'<tr class="task"><th scope="rowgroup" colspan="5">{escape(_task_name(task))}</th></tr>'
    rows = [head, *_metric_rows(entry)]
    for key, words in SUBSETS.items():
        if isinstance(entry.get(key), Mapping):
            rows += _metric_rows(entry[key], f"{words}: ", only=(*MAIN, "mean_iou"))
    return "".join(rows)


def _metric_rows(entry: Mapping[str, Any], prefix: str = "", only=tuple(METRICS)) -> list[str]:
    return [
        f'<tr><th scope="row">{escape(prefix + _metric_name(metric))}</th>'
        f"<td><b>{number(entry[metric])}</b>{_interval(entry, metric)}</td>"
        f"<td>{_baseline_words(entry, metric)}</td>"
        f"<td>{entry.get('n', '')}</td><td>{entry.get('unparsed', '')}</td></tr>"
        for metric in METRICS
        if metric in entry and metric in only
    ]


def _interval(entry: Mapping[str, Any], metric: str) -> str:
    ends = (entry.get("intervals") or {}).get(metric)
    return f"<br><small>{number(ends[0])} to {number(ends[1])}</small>" if ends else ""


def _baseline_words(entry: Mapping[str, Any], metric: str) -> str:
    named = _baselines(entry, metric)
    return "<br>".join(
        f"{number(value)} {escape(BASELINES.get(name, name.replace('_', ' ')))}"
        for name, value in named.items()
    )


def _baselines(entry: Mapping[str, Any], metric: str) -> dict[str, float]:
    found = {}
    for name, scores in (entry.get("baselines") or {}).items():
        value = scores.get(metric) if isinstance(scores, Mapping) else scores
        if isinstance(value, (int, float)):
            found[name] = float(value)
    return found


def _meter(entry: Mapping[str, Any] | None, usual: str) -> str:
    """The main score of one cell, named where it is not the `usual` one of its row."""
    metric = main_metric(entry) if entry else None
    if metric is None:
        return "–"
    value, known = entry[metric], _baselines(entry, metric)
    best = max(known, key=known.get) if known else None
    name = BASELINES.get(best, best) if best else ""
    words = "" if metric == usual else f"{_metric_name(metric)}; "
    words += f"best baseline {number(known[best])}" if best else "no baseline"
    marks = f'<span style="width:{_percent(value)}%"></span>'
    marks += f'<i style="left:{_percent(known[best])}%"></i>' if best else ""
    return (
        f'<b>{number(value)}</b><div class="meter" aria-hidden="true">{marks}</div>'
        f'<small title="{escape(name)}">{escape(words)}; n {entry.get("n", "?")}</small>'
    )


def _percent(value: float) -> str:
    return f"{100 * min(max(float(value), 0), 1):.1f}"


def _main(splits: Mapping[str, Mapping[str, Any]], task: str) -> str:
    entry = next(entries[task] for entries in splits.values() if task in entries)
    return main_metric(entry) or ""


def _task_name(task: str) -> str:
    return TASK_NAMES.get(task, task.replace("/", ": ").replace("_", " "))


def _metric_name(metric: str) -> str:
    return METRICS.get(metric, metric.replace("_", " "))
