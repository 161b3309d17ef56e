"""Static shapes of a batch."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Static shapes of a batch: `runs` of `length` tokens, `room` of them for answers.

    `answer` is the most tokens of one answer; `lengths` are shorter ones than `length`, rising, for
    batches whose texts fit (data/order.py).
    """

    image_size: int
    sample_rate: int
    seconds: float
    runs: int
    length: int
    room: int
    answer: int
    boxes: int = 4
    names: int = 4
    lengths: tuple[int, ...] = ()
