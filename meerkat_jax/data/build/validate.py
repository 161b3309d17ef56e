"""A plan looked through before anything is encoded: which media are there, what must be left out.

It takes minutes where encoding takes hours, so it tells early that a folder is not as it should be.
"""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.progress import Progress
from meerkat_jax.data import leaks, media
from meerkat_jax.data.sources.entry import Entry, Plan

SPLITS = ("train", "test")


@dataclasses.dataclass
class Survey:
    """A plan looked through. For each entry: keep bool[n]; split uint8[n], index of `SPLITS`."""

    keep: np.ndarray
    split: np.ndarray
    missing: list[list[str]]  # of media: [entry id, reason, where it was looked for]
    leaking: Counter


def look_through(
    plan: Plan,
    media_index: media.MediaIndex,
    max_skipped: float,
    exclude: Sequence[Path],
    limit: int | None,
    say: Callable,
    out: Path | None = None,
    max_leaking: float | None = None,
) -> Survey:
    """`survey`; UserError when too much of the plan cannot be used, or nothing of it.

    `max_leaking` is the share of training examples that may be left out because they are in a test
    split (default: `max_skipped`). Each fault of a plan that is refused is then in skipped.jsonl in
    `out`.
    """
    rows = plan.skips.used + len(plan.skips.faults)
    check_skipped(plan.skips.by_reason(), rows, "rows", max_skipped, plan.skips.faults, out)
    if not len(plan.entries):
        raise UserError(
            f"{media_index.root}: no example can be made of its {rows} rows; is it the right one?"
        )
    found = survey(plan, media_index, exclude, limit, say)
    faults, total = [*found.missing, *plan.skips.faults], len(plan.entries)
    check_skipped(lost(found), total, "examples", max_skipped, faults, out)
    check_leaking(found, max_skipped if max_leaking is None else max_leaking, say)
    if not found.keep.any():
        raise UserError(
            f"{media_index.root}: of {total} examples none is left: {_said(lost(found))}"
        )
    return found


def survey(
    plan: Plan,
    media_index: media.MediaIndex,
    exclude: Sequence[Path],
    limit: int | None,
    say: Callable,
) -> Survey:
    """Look for all media, and for what must not be in two splits, before anything is encoded.

    An example of training is left out when one of its keys is in the test split of this source or
    of one of the built folders `exclude`. UserError when two entries have one id.
    """
    total = len(plan.entries)
    keep, split = np.ones(total, bool), np.zeros(total, np.uint8)
    ids, missing = np.zeros(total, np.uint64), []
    owners, keys = array("q"), array("Q")
    progress = Progress("looking for media:", total, say=say)
    for number in range(total):
        entry = plan.entries[number]
        split[number] = SPLITS.index(entry.split)
        ids[number] = leaks.hashed(entry.id)
        owners.extend([number] * len(entry.keys))
        keys.extend(map(leaks.hashed, entry.keys))
        for what, found in zip(("image", "audio"), places_of(media_index, entry), strict=True):
            if found is None:
                keep[number] = False
                sought = entry.image if what == "image" else entry.audio
                where = ", ".join(f"{p.folder}/{p.name}{p.suffix or '.*'}" for p in sought)
                missing.append([entry.id, f"{what} is not there", f"looked for {where}"])
                break
        if number % 1024 == 0 or number + 1 == total:
            progress.report(number + 1)
    _check_unique(plan, ids)
    owners, keys = np.array(owners, np.int64), np.array(keys, np.uint64)
    leaking = leaks.leaking(owners, keys, split == SPLITS.index("test"), keep, exclude)
    for rows in leaking.values():
        keep[rows] = False
    if limit is not None:
        keep[np.flatnonzero(keep)[limit:]] = False
    return Survey(keep, split, missing, Counter({why: len(rows) for why, rows in leaking.items()}))


def _check_unique(plan: Plan, ids: np.ndarray) -> None:
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if len(same):
        raise UserError(f"two examples have the id {plan.entries[int(order[same[0]])].id!r}")


def places_of(media_index: media.MediaIndex, entry: Entry) -> tuple[Any, Any]:
    """(path, time) of the image and of the sound of an entry; None for one that is not there."""
    return media.find_image(media_index, entry.image), media.find_audio(media_index, entry.audio)


def check_skipped(
    reasons: dict[str, int],
    total: int,
    what: str,
    most: float,
    faults: Sequence[Sequence[str]],
    out: Path | None = None,
) -> None:
    """UserError when more than the share `most` of `total` is left out.

    It names the first of `faults` (where, reason, what was found); skipped.jsonl in `out` has all.
    """
    count = sum(reasons.values())
    if count > most * total:
        first = " ".join(map(str, faults[0])) if len(faults) else ""
        if out is not None:
            write_skipped(out, faults)
        raise UserError(
            f"{count} of {total} {what} cannot be used ({_said(reasons)}), the first: {first}; "
            f"more than --max_skipped={most:g} of all: mend them, or raise it"
            + (f" (all are in {out / 'skipped.jsonl'})" if out is not None else "")
        )


def check_leaking(found: Survey, most: float, say: Callable) -> None:
    """Say what share of the training examples is left out as leaks; UserError above `most`."""
    count, total = found.leaking.total(), int((found.split == SPLITS.index("train")).sum())
    if not count:
        return
    told = (
        f"{count} of {total} training examples ({count / total:.1%}) are left out, because a "
        f"image, a video or a group of theirs is in a test split ({_said(found.leaking)})"
    )
    if count > most * total:
        raise UserError(
            f"{told}; more than --max_leaking={most:g} of them: put what belongs together into one "
            "split, or raise it where so much is to be left out"
        )
    say(f"WARNING: {told}")


def _said(reasons: dict[str, int], most: int = 5) -> str:
    """The most frequent reasons with their counts."""
    told = [f"{reason}: {count}" for reason, count in Counter(reasons).most_common(most)]
    more = [f"and {len(reasons) - most} more reasons"] if len(reasons) > most else []
    return "; ".join([*told, *more])


def lost(found: Survey) -> Counter[str]:
    """Examples without media, by reason."""
    return Counter(reason for _, reason, _ in found.missing)


def write_skipped(out: Path, faults: Sequence[Sequence[str]]) -> None:
    """skipped.jsonl: everything that should have been there (where, reason, what was found)."""
    with open(out / "skipped.jsonl", "w") as file:
        for where, reason, detail in faults:
            row = {"where": where, "reason": reason, "found": detail}
            file.write(json.dumps(row) + "\n")
