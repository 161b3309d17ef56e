"""Diagnostics in plain words: a table for a terminal, a section of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, NamedTuple

from meerkat_jax.report import plots, tables

# (place in what `diagnose` returns, number, words)
NUMBERS = (
    ("avopt", "matched", "Transport distance of an image and its own sound (AVOpT)"),
    ("avopt", "shuffled", "Transport distance of an image and another pair's sound"),
    ("avopt", "margin", "How much nearer the own sound is, on the mean"),
    ("avopt", "own_nearer", "Images to which their own sound is the nearer one"),
    ("avopt", "auc", "Matched pairs nearer than shuffled ones, whatever the image (AUC)"),
    ("avace/box", "mass", "Attention inside the box of what sounds (AVACE)"),
    ("avace/box", "peak", "Attention's peak inside the box of what sounds"),
    ("avace/silent", "mass", "Attention inside boxes of what is seen but silent"),
    ("avace/silent", "peak", "Attention's peak inside boxes of what is seen but silent"),
    ("plan", "entropy", "Entropy of the transport plan, in nats"),
    ("plan", "relative", "Entropy as a share of an even plan's"),
    ("plan", "shuffled", "Entropy of the plan to another pair's sound, in nats"),
    ("calibration/avfact", "ece", "Fact checks: calibration error of their probability (ECE)"),
    ("calibration/avfact", "brier", "Fact checks: squared error of their probability (Brier)"),
)
NAMED = {
    "arig": "Boxes: the name said of what is there",
    "igatl": "Stretches of sound: the name said of what is heard then",
    "avqa/which": "Question which object sounds: the name answered",
}
_LEAD = (
    "How the two alignment modules see the scenes, how far the model's certainty can be trusted, "
    "and which things it takes for one another. A shuffled pair is an image with the sound of "
    "another scene, in which nothing that is seen is heard."
)


class Line(NamedTuple):
    """One number: what it is, value, (low, high) of 95 %, what chance gives (None: nothing), n."""

    words: str
    value: float
    interval: tuple[float, float]
    chance: float | None
    n: int


def lines(found: Mapping[str, Any]) -> Iterator[Line]:
    """The numbers of one split, in reading order; `found` as of `diagnose`."""
    for place, name, words in NUMBERS:
        part: Mapping[str, Any] = found
        for key in place.split("/"):
            part = part.get(key, {})
        if name in part:
            one = part[name]
            low, high = one["interval"]
            yield Line(words, one["value"], (low, high), one.get("chance"), part["n"])


def table(diagnostics: Mapping[str, Mapping[str, Any]]) -> str:
    """All numbers for a terminal, by split."""
    width = max(len(words) for *_, words in NUMBERS) + 2
    text = []
    for split, found in diagnostics.items():
        title = tables.split_words(split)[0]
        text += ["", f"{title:<{width + 2}}{'value':<8} {'95 %':<22} {'by chance':<10} n"]
        for line in lines(found):
            chance = "" if line.chance is None else number(line.chance)
            spread = " to ".join(map(number, line.interval))
            text.append(
                f"  {line.words:<{width}}{number(line.value):<8} {spread:<22} {chance:<10} {line.n}"
            )
    return "\n".join([*text, ""])


def number(value: float) -> str:
    """Three decimals, or two digits where these would show none: 0.545, 0.00012, 0.000."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def section(diagnostics: Mapping[str, Mapping[str, Any]]) -> str:
    """HTML of all splits; "" where there is nothing."""
    parts = [_split(split, found) for split, found in diagnostics.items()]
    return f"<p>{_LEAD}</p>{''.join(parts)}" if parts else ""


def _split(split: str, found: Mapping[str, Any]) -> str:
    rows = "".join(_row(line) for line in lines(found))
    head = "".join(f'<th scope="col">{name}</th>' for name in ("", "Model, 95 %", "By chance"))
    return (
        f"<h3>{escape(tables.split_words(split)[0])}</h3>"
        f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><div class="charts">{_charts(found)}</div>'
        f"{_names(found.get('confusion', {}))}"
    )


def _row(line: Line) -> str:
    chance = "–" if line.chance is None else number(line.chance)
    spread = " to ".join(map(number, line.interval))
    return (
        f'<tr><th scope="row">{escape(line.words)}<small>n {line.n}</small></th>'
        f"<td><b>{number(line.value)}</b><small>{spread}</small></td><td>{chance}</td></tr>"
    )


def _charts(found: Mapping[str, Any]) -> str:
    drawn = ""
    if "avopt" in found:
        counted = found["avopt"]["histogram"]
        names = {"own sound": counted["matched"], "sound of another scene": counted["shuffled"]}
        drawn += plots.histogram("Images by transport distance", counted["edges"], names)
    for task, one in found.get("calibration", {}).items():
        title = "Fact checks, all types" if task == "avfact" else tables.TASK_NAMES.get(task, task)
        title += f": share of true claims by the probability of True, {one['n']} claims"
        title += f" ({one['without']} more without a verdict)" if one["without"] else ""
        drawn += plots.reliability_diagram(title, one["bins"])
    return drawn


def _names(confusion: Mapping[str, Any]) -> str:
    parts = []
    for task, one in confusion.items():
        worst = "".join(
            f'<tr><th scope="row">{escape(true)}</th><td>{escape(said)}</td><td>{n}</td>'
            f"<td>{share:.0%}</td></tr>"
            for true, said, n, share in one["worst"]
        )
        words = (
            f"{one['right']:.3f} of {one['n']} are named right; always saying the most frequent "
            f"name gives {one['most_frequent']:.3f}. Without a name: {one['nothing']:.3f}."
        )
        listed = (
            '<div class="scroll"><table class="worst"><thead><tr><th scope="col">True</th>'
            '<th scope="col">Named</th><th scope="col">Times</th><th scope="col">Of the true ones'
            f"</th></tr></thead><tbody>{worst}</tbody></table></div>"
        )
        parts.append(
            f"<details><summary><b>{escape(NAMED.get(task, task))}</b> <span>{one['right']:.3f} "
            f"right</span></summary><p>{words}</p>{listed if worst else ''}"
            f"{plots.confusion_matrix('Rows: true. Columns: named.', one['counts'])}</details>"
        )
    return "".join(parts)
