"""Static shapes of a batch."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Static shapes of a batch.

    The questions of a pair lie in `num_packs` packs of `pack_length` tokens, of which at most
    `max_target_tokens` are answers; one answer has at most `max_answer_tokens`. `pack_lengths` are
    shorter lengths, rising, for batches whose texts fit (data/order.py). An example has at most
    `max_boxes` boxes, and `max_labels` image labels and audio labels.
    """

    image_size: int
    sample_rate: int
    seconds: float
    num_packs: int
    pack_length: int
    max_target_tokens: int
    max_answer_tokens: int
    max_boxes: int = 4
    max_labels: int = 4
    pack_lengths: tuple[int, ...] = ()
