"""How much one visitor of the page may ask of it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Sizes and times; what is over them is refused with a message that names them."""

    megabytes: float = 25  # of one file, of 2**20 bytes
    megapixels: float = 50  # of an image
    seconds: float = 60  # of an audio clip or a video
    answer_seconds: float = 60  # until an answer is stopped
    keep_minutes: float = 10  # until what was sent is deleted
    characters: int = 500  # of a question
