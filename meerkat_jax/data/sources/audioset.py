"""AudioSet, weak and strong labels: sounds for joining with images (`pairs.py`).

    audioset/
      ontology.json                     github.com/audioset/ontology
      balanced_train_segments.csv       research.google.com/audioset/download.html
      unbalanced_train_segments.csv
      eval_segments.csv
      audioset_train_strong.tsv         research.google.com/audioset/download_strong.html
      audioset_eval_strong.tsv
      clips/<YouTube id>.*              ten seconds each, sound or video, in any folders below; also
                                        <YouTube id>_<start in ms>.*
      videos/<YouTube id>.*             whole videos, from which the ten seconds are cut

Weak: three comment lines, then `--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"`: id, start, end,
labels. Strong: a header, then segment_id (`<YouTube id>_<start in ms>`), start_time_seconds,
end_time_seconds (within the clip) and label. Our test split is what is called eval.
"""

from __future__ import annotations

from pathlib import Path

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Segment
from meerkat_jax.data.sources.audio_clips import CLIP_SECONDS, AudioClips, AudioRows, Event
from meerkat_jax.data.sources.classes import Class, Ontology
from meerkat_jax.data.sources.entry import Place
from meerkat_jax.data.sources.reading import fields, interval, lines, name, number, table
from meerkat_jax.data.sources.skips import RowError, Skips
from meerkat_jax.data.text import vanishes

WEAK = {
    "balanced_train_segments.csv": "train",
    "unbalanced_train_segments.csv": "train",
    "eval_segments.csv": "test",
}
STRONG = {"audioset_train_strong.tsv": "train", "audioset_eval_strong.tsv": "test"}
COLUMNS = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
SHORTEST = 0.1  # seconds of an event, the finest that an answer can tell
# Labels of the strong set that the ontology has not (issues 6 and 9 of its repository), and the
# node that each belongs to; "" is none of ours.
BEYOND = {
    "/t/dd00141": "/m/0bt9lr",  # Pant (dog)
    "/m/02417f": "/m/0k4j",  # Windscreen wiper: Car
    "/m/0md09": "/m/0_ksk",  # Power saw: Power tool
    "/m/06cyt0": "/m/0395lw",  # Mechanical bell: Bell
    "/m/04ctx": "/m/07pn_8q",  # Knife: Chopping (food)
} | dict.fromkeys(
    (
        "/m/0174k2 /m/018p4k /m/01j2bj /m/01j3j8 /m/01lynh /m/0269r2s /m/02f9f_ /m/02ll1_ "
        "/m/040b_t /m/056r_1 /m/0641k /m/07pqmly /m/07s13rg /m/07sk0jz /m/08dckq /m/098_xr "
        "/m/0bcdqg /m/0bzvm2 /m/0c1tlg /m/0d4wf /m/0fw86 /m/0hgq8df /t/dd00138 /t/dd00142 "
        "/t/dd00143 /t/dd00144 /t/dd00147"
    ).split(),
    "",
)


def files(folder: Path, names: dict[str, str]) -> list[Path]:
    """Those of `names` that are there, and the ontology; UserError when none is."""
    there = [folder / one for one in names if (folder / one).is_file()]
    lacking = [] if there else [" or ".join(names)]
    if not (folder / "ontology.json").is_file():
        lacking.append("ontology.json")
    if lacking:
        raise UserError(f"{folder}: no {', no '.join(lacking)}; see docs/data.md for the layout")
    return [folder / "ontology.json", *there]


def places(video: str, start: float) -> tuple[Place, ...]:
    """Where a clip may lie: cut out already, or within the whole video."""
    cut = [Place("audioset/clips", name) for name in (video, f"{video}_{round(start * 1000)}")]
    return (*cut, Place("audioset/videos", video, start))


def read_weak(folder: Path, classes: tuple[Class, ...], skips: Skips) -> AudioClips:
    """All clips in which one of `classes` may be heard."""
    ontology = Ontology(folder / "ontology.json", classes)
    rows, judged = AudioRows(), {}
    for path in files(folder, WEAK)[1:]:
        for line, text in lines(path):
            if text.startswith("#"):
                continue
            with skips.row(path, line):
                ident, start, _, labels = _weak_row(text)
                if labels not in judged:
                    judged[labels] = labels, ontology.judge(_known(labels.split(","), ontology))
                said, (heard, maybe) = judged[labels]
                rows.add(ident, start, WEAK[path.name], said, heard, maybe, skips)
    return rows.gathered(len(classes))


def _weak_row(text: str) -> tuple[str, float, float, str]:
    row = [field.strip() for field in fields(text)]
    if len(row) != 4:
        raise RowError("wrong number of fields", f"{len(row)}, expected 4: {text[:80]!r}")
    start, end = interval(row[1], row[2])
    return name(row[0], "YouTube id"), start, end, row[3]


def _known(labels: list[str], ontology: Ontology) -> list[str]:
    """The nodes of the ontology that labels stand for."""
    nodes = [BEYOND.get(label, label) for label in labels]
    for node in filter(None, nodes):
        if node not in ontology.names:
            raise RowError("label is not in the ontology", f"{node[:40]!r}")
    return [node for node in nodes if node]


def read_strong(folder: Path, classes: tuple[Class, ...], skips: Skips) -> AudioClips:
    """All clips in which one of `classes` may be heard, with what is heard when."""
    ontology = Ontology(folder / "ontology.json", classes)
    rows, events = AudioRows(), []
    for path in files(folder, STRONG)[1:]:
        clips: dict[str, dict[tuple[str, float, float], None]] = {}
        for line, row in table(path, skips, COLUMNS, delimiter="\t"):
            with skips.row(path, line):
                clip, start, end, label = row
                _split_id(clip)
                start, end = interval(start, end)
                number(start, "time start", 0, CLIP_SECONDS)
                end = min(end, CLIP_SECONDS)
                if end - start < SHORTEST or vanishes(Segment("", start, end)):
                    skips.drop(f"event under {SHORTEST:g} s")
                    continue
                for node in _known([label], ontology):
                    said = (node, start, end)
                    if said in clips.setdefault(clip, {}):
                        skips.drop("row twice")
                    clips[clip][said] = None
        for clip, said in clips.items():
            ident, start = _split_id(clip)
            labels = sorted({label for label, _, _ in said})
            heard, maybe = ontology.judge(labels)
            before = len(rows.ids)
            try:
                rows.add(ident, start, STRONG[path.name], tuple(said), heard, maybe, skips)
            except RowError as bad:
                skips.add(f"{path.name}: {clip}", bad.reason, bad.detail)
            if len(rows.ids) > before:
                events.append(_events(said, ontology))
    return rows.gathered(len(classes), events)


def _split_id(clip: str) -> tuple[str, float]:
    ident, _, start = name(clip, "segment_id").rpartition("_")
    if not ident or not (start.isascii() and start.isdigit()):
        raise RowError("segment_id is not <YouTube id>_<start in ms>", f"{clip[:40]!r}")
    return ident, number(start, "start in ms", 0, 1e9) / 1000


def _events(said, ontology: Ontology) -> tuple[Event, ...]:
    return tuple(
        Event(kind, start, end)
        for label, start, end in said
        for kind in range(ontology.holds[label].bit_length())
        if ontology.holds[label] >> kind & 1
    )
