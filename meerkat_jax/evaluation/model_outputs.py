"""The model's own view of each pair of a split, as numbers: what diagnostics.py sums up.

A row per pair is plain JSON and depends on no other row, so rows can be written as they come, and
those of several hosts put together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from meerkat_jax.data.audio import load_audio
from meerkat_jax.data.example import Box, Example
from meerkat_jax.data.image import load_image
from meerkat_jax.data.verdict import with_verdict
from meerkat_jax.evaluation import alignment_metrics
from meerkat_jax.evaluation.answer_parsing import normalise
from meerkat_jax.evaluation.benchmark import Answered
from meerkat_jax.evaluation.calibration import verdict_chance
from meerkat_jax.inference.likelihood import Scorer
from meerkat_jax.inference.sampling import Sampler

CLAIMS = 32  # verdicts that are weighed side by side

Row = dict[str, Any]


def observe(
    sampler: Sampler,
    examples: Sequence[Example],
    answered: Sequence[Answered] = (),
    batch: int = 16,
    seed: int = 0,
    only: Sequence[int] | None = None,
) -> Iterator[Row]:
    """One row per pair of a split, in order, `batch` pairs at a time.

    Args:
        sampler: of the model.
        examples: the pairs by number, as `open_split` gives them.
        answered: the model's answers to their questions; what it said of claims (AVFact) is weighed
            against the opposite.
        batch: pairs that are looked at together.
        seed: draws which other sound each image is compared with.
        only: numbers of the pairs to measure (one host's share, say); other sounds are drawn from
            all `examples` whatever these are.
    """
    texts: dict[str, list[Answered]] = defaultdict(list)
    for record in answered:
        texts[record.example_id].append(record)
    numbers = range(len(examples))
    known = [
        (_names(one.image_labels), _names(one.audio_labels))
        for one in map(examples.__getitem__, numbers)
    ]
    others = alignment_metrics.partners(
        [seen for seen, _ in known], [heard for _, heard in known], seed
    )
    scorer, numbers = Scorer(sampler), numbers if only is None else only
    for first in range(0, len(numbers), batch):
        some = numbers[first : first + batch]
        pairs = [examples[i] for i in some]
        strangers = [None if others[i] is None else examples[others[i]] for i in some]
        said = [texts[one.id] for one in pairs]
        yield from _rows(sampler, scorer, pairs, strangers, said)


def _rows(sampler, scorer, pairs, strangers, said) -> Iterator[Row]:
    shapes, grid = sampler.assembly.shapes, sampler.assembly.model.image_grid
    images = np.stack([load_image(one.image, shapes.image_size) for one in pairs])

    def encoded(files: Sequence[bytes]) -> dict[str, jax.Array]:
        clips = [load_audio(file, shapes.sample_rate, shapes.seconds)[0] for file in files]
        return sampler.encode_and_align(images, np.stack(clips))

    own = encoded([one.audio for one in pairs])
    other = encoded([(other or one).audio for one, other in zip(pairs, strangers, strict=True)])
    own["cache"] = sampler.prefill(own)  # once, for all claims
    chances = _verdicts(scorer, own, said)
    attention = np.asarray(own["attention"])
    plans, distances = zip(
        *(jax.device_get((found["plan"], found["distance"])) for found in (own, other)), strict=True
    )
    for b, one in enumerate(pairs):
        row: Row = {"id": one.id, "matched": one.matched, "tokens": [*plans[0][b].shape]}
        row |= _transported(plans[0][b], distances[0][b])
        if strangers[b] is not None:
            row["shuffled"] = _transported(plans[1][b], distances[1][b])
            row["shuffled"]["sound"] = strangers[b].id
        for place, boxes in (("box", one.boxes), ("silent", _silent(one))):
            if boxes:
                row[place] = _attended(attention[b].reshape(grid), boxes)
        row["chances"] = chances[b]
        yield row


def _transported(plan: np.ndarray, distance: float) -> Row:
    return {"distance": float(distance), "entropy": alignment_metrics.entropy(plan)}


def _attended(attention: np.ndarray, boxes: Sequence[Box]) -> Row:
    return {
        "mass": alignment_metrics.mass_inside(attention, boxes),
        "area": alignment_metrics.area(boxes, attention.shape),
        "peak": alignment_metrics.peak_inside(attention, boxes),
        "peak_chance": alignment_metrics.peak_chance(boxes, attention.shape),
    }


def _silent(one: Example) -> list[Box]:
    """Boxes of what is seen but not heard, where the questions' truths know them."""
    objects = next((q.truth["objects"] for q in one.questions if q.truth.get("objects")), ())
    heard = _names(one.audio_labels)
    return [Box(*box) for box in objects if normalise(box[0]) not in heard]


def _verdicts(scorer: Scorer, aligned, said: Sequence[Sequence[Answered]]) -> list[list]:
    """Of each pair's answers the probability of True; None for one that gives no verdict."""
    prompt = scorer.assembly.prompt
    chances: list[list[float | None]] = [[None] * len(some) for some in said]
    claims = [
        (b, i, prompt.question_ids(" ".join(record.question.instruction.split())), forks)
        for b, some in enumerate(said)
        for i, record in enumerate(some)
        if (forks := _forks(prompt, record)) is not None
    ]
    for first in range(0, len(claims), CLAIMS):
        some = claims[first : first + CLAIMS]
        pair_ids = [b for b, *_ in some for _ in range(2)]
        questions = [question for _, _, question, _ in some for _ in range(2)]
        answers = [ids for *_, forks in some for ids in forks]
        weighed = [*zip(answers, scorer.score(aligned, pair_ids, questions, answers), strict=True)]
        for (b, i, *_), true, false in zip(some, weighed[::2], weighed[1::2], strict=True):
            chances[b][i] = verdict_chance(true, false)
    return chances


def _forks(prompt, record: Answered) -> tuple[list[int], list[int]] | None:
    """Token ids of a claim's answer with the verdict True, and with False."""
    texts = [with_verdict(record.text, value) for value in (True, False)]
    if not record.question.task.startswith("avfact") or texts[0] is None:
        return None
    true, false = map(prompt.answer_ids, texts)
    return true, false


def chances_of(rows: Sequence[Row], answered: Sequence[Answered]) -> list[float | None]:
    """The probability of True that the model gave each of `answered`; None where it has none.

    Both are of one split, and `answered` those that the rows were measured with.
    """
    known = {row["id"]: iter(row["chances"]) for row in rows}
    return [next(known.get(record.example_id, iter(())), None) for record in answered]


def _names(names: Sequence[str]) -> frozenset[str]:
    return frozenset(map(normalise, names))
