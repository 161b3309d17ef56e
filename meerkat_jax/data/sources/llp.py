"""LLP, "Look, Listen and Parse" (Tian et al., ECCV 2020): when an event is both heard and seen.

    llp/
      AVVP_test_pd.csv         1,200 videos
      AVVP_eval_audio.csv      4,131 rows: what is heard when, of the videos of test and validation
      AVVP_eval_visual.csv     2,495 rows: what is seen when
      frames/<id>.*            a still of each video, or
      videos/<id>.*            the ten seconds as a video; videos/<YouTube id>.* is as good
      audio/<id>.*             the sound, if it is not taken from the video; or <YouTube id>.*

The files are those of github.com/YapengTian/AVVP-ECCV20, folder `data`; its script names videos and
sounds by the YouTube id alone. All are divided by tabs, with a header. AVVP_test_pd.csv:
`filename` is <YouTube id>_<start>_<end> in seconds of the video on YouTube (the end ten seconds
after the start, either may have a decimal), `event_labels` the video's events, without times, with
commas between. The two others, a row for an event: `filename`; `onset` and `offset` in whole
seconds from the beginning of the ten; `event_labels`, one label of 25. Rows that say the same twice
or overlap occur, six end where or before they begin, and some are of ids that are in no list.

As in the evaluation of that repository, a video has ten segments of a second; an event is
audio-visual in those in which its label is given both by the audio and by the visual file. One
question a video asks for these stretches; the truth keeps all that is heard and all that is seen
(`audio_events`, `visual_events`: [label, start, end]), from which its protocol can be computed.
The image is of the second that shows most of the events asked for, of several the one nearest to
the middle. Training has labels of whole videos alone and validation is left out, so all is test.
Of the 1,200 videos 1,026 have an audio-visual event, 1,330 labels and 1,617 stretches in all; 56 of
these labels are not to be seen in the second that is shown.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from meerkat_jax.data.example import Segment
from meerkat_jax.data.sources import asking
from meerkat_jax.data.sources.entry import Entry, Options, Place, Plan, generator
from meerkat_jax.data.sources.reading import interval, number, require, table
from meerkat_jax.data.sources.skips import RowError, Skips

FILES = ("AVVP_test_pd.csv", "AVVP_eval_audio.csv", "AVVP_eval_visual.csv")
SECONDS = 10
LABELS = (
    "Speech Car Cheering Dog Cat Frying_(food) Basketball_bounce Fire_alarm Chainsaw Cello Banjo "
    "Singing Chicken_rooster Violin_fiddle Vacuum_cleaner Baby_laughter Accordion Lawn_mower "
    "Motorcycle Helicopter Acoustic_guitar Telephone_bell_ringing Baby_cry_infant_cry Blender "
    "Clapping"
).split()  # in the order of the evaluation
WORDS = {label: re.sub(r"[()]", "", label.replace("_", " ").lower()) for label in LABELS}

_ID = re.compile(r"[A-Za-z0-9_-]{11}_[0-9]+(\.[0-9]+)?_[0-9]+(\.[0-9]+)?")

Times = Mapping[str, set[int]]  # label -> the seconds, 0 to 9, in which it occurs


def plan(folder: Path, options: Options) -> Plan:
    """The videos of test in which something is both heard and seen."""
    listed, audio, visual = files = require(folder, *FILES)
    skips = Skips()
    videos = _read_videos(listed, skips)
    heard, seen = (_read_events(path, videos, skips) for path in (audio, visual))
    entries = []
    for video in videos:
        entry = _entry(video, heard[video], seen[video], options)
        if entry is None:
            skips.drop("nothing is both heard and seen")
        else:
            entries.append(entry)
    return Plan(entries, tuple(files), skips)


def _read_videos(path: Path, skips: Skips) -> dict[str, str]:
    """Ids of the test videos with their labels."""
    videos: dict[str, str] = {}
    for line, (video, labels) in table(path, skips, ("filename", "event_labels"), delimiter="\t"):
        with skips.row(path, line):
            video = video.strip()
            if not _ID.fullmatch(video):
                raise RowError("filename is not <YouTube id>_<start>_<end>", f"{video[:80]!r}")
            if video not in videos:
                videos[video] = labels.strip()
            elif videos[video] == labels.strip():
                skips.drop("row twice")
            else:
                raise RowError("video twice with other labels", video)
    return videos


def _read_events(path: Path, videos: Mapping[str, str], skips: Skips) -> Mapping[str, Times]:
    """Of each of `videos` the seconds of its labels."""
    events = defaultdict(lambda: defaultdict(set))
    read = set()
    columns = ("filename", "onset", "offset", "event_labels")
    for line, row in table(path, skips, columns, delimiter="\t"):
        with skips.row(path, line):
            video, onset, offset, label = (field.strip() for field in row)
            if video not in videos:
                skips.drop("validation split")
                continue
            if label not in WORDS:
                raise RowError("event label is not one of the 25", f"{label[:80]!r}")
            start, end = interval(_second(onset, "onset"), _second(offset, "offset"), "event")
            if (video, start, end, label) in read:
                skips.drop("row twice")
            read.add((video, start, end, label))
            events[video][WORDS[label]].update(range(int(start), int(end)))
    return events


def _second(value: str, what: str) -> float:
    found = number(value, what, 0, SECONDS)
    if found != int(found):
        raise RowError(f"{what} is not a whole second", value[:80])
    return found


def _entry(video: str, heard: Times, seen: Times, options: Options) -> Entry | None:
    """One video; None when nothing is heard and seen in the same second."""
    both = {label: heard[label] & seen[label] for label in sorted(heard) if label in seen}
    segments = sorted(_segments(both), key=lambda segment: (segment.start, segment.label))
    if not segments:
        return None
    ident = f"llp-test-{video}"
    shown = _shown(both)
    question = asking.igatl(generator(options.seed, "llp", ident), "test", segments)
    truth = {
        "audio_events": [[one.label, one.start, one.end] for one in _segments(heard)],
        "visual_events": [[one.label, one.start, one.end] for one in _segments(seen)],
    }
    names = (video, video[:11])
    return Entry(
        id=ident,
        split="test",
        image=(Place("frames", video), *(Place("videos", name, shown + 0.5) for name in names)),
        audio=tuple(Place(place, name) for place in ("audio", "videos") for name in names),
        questions=(dataclasses.replace(question, truth=question.truth | truth),),
        keys=(f"video:{video[:11]}",),
        image_labels=tuple(sorted(label for label, seconds in seen.items() if shown in seconds)),
        audio_labels=tuple(sorted(heard)),
        seconds=max(segment.end for segment in segments),
    )


def _shown(times: Times) -> int:
    """The second in which most labels occur, nearest to the middle."""

    def rank(second: int) -> tuple[int, float]:
        held = sum(second in seconds for seconds in times.values())
        return held, -abs(second + 0.5 - SECONDS / 2)

    return max(range(SECONDS), key=rank)


def _segments(times: Times) -> Iterator[Segment]:
    """The seconds of each label as stretches, by label and time."""
    for label, seconds in sorted(times.items()):
        for start in sorted(second for second in seconds if second - 1 not in seconds):
            end = next(second for second in range(start, SECONDS + 1) if second not in seconds)
            yield Segment(label, float(start), float(end))
