"""The sources of AVFIT as a data set of TensorFlow Datasets, `meerkat_avfit/<source>`.

    import tensorflow_datasets as tfds
    import meerkat_jax.data.tfds_builder  # registers it

    builder = tfds.builder("meerkat_avfit/vggss", data_dir="tfds", file_format="array_record")
    manual = tfds.download.DownloadConfig(manual_dir="downloads/vggss")
    builder.download_and_prepare(download_config=manual)
    records = builder.as_data_source(split="test")

Records are planned, looked for and encoded as `data/build` does it, and are the same. TFDS cuts
no shards here: its own way collects a gigabyte in memory first and needs TensorFlow beyond that.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.data import media
from meerkat_jax.data.build import shards, validate
from meerkat_jax.data.build.iterate import Conversion
from meerkat_jax.data.sources.entry import Options
from meerkat_jax.data.sources.registry import SOURCES, find

for _package in ("tensorflow_datasets", "importlib_resources"):  # the first needs the second
    if importlib.util.find_spec(_package) is None:
        raise ImportError(f"no {_package}, which this needs: pip install 'meerkat_jax[tfds]'")

import tensorflow_datasets as tfds  # noqa: E402

from meerkat_jax.data.tfds_features import features, to_record  # noqa: E402

_PAIRS = "class-descriptions-boxable.csv and the other tables of openimages/"
DESCRIPTIONS = {  # name -> what it is, and the annotation files that it is made of
    "openimages_audioset": ("images joined with clips by weak labels", f"{_PAIRS} and audioset/"),
    "openimages_strong": ("images joined with clips by timed labels", f"{_PAIRS} and audioset/"),
    "openimages_vggsound": ("images joined with clips of VGGSound", f"{_PAIRS} and vggsound/"),
    "vggss": ("VGG-SS: boxes around what is heard in clips of VGGSound", "vggss.json"),
    "avsbench": ("AVSBench: boxes of masks of what is heard", "s4_meta_data.csv and s4_data/"),
    "pascal_sound": ("images of PASCAL VOC with sounds", "pairs.csv and Annotations/"),
    "flickr_soundnet": ("Flickr-SoundNet: boxes by up to three people", "Annotations/ and a list"),
    "llp": ("LLP: when an event is both heard and seen", "AVVP_test_pd.csv and two more .csv"),
    "avqa": ("AVQA: questions with answers to choose from", "train_qa.json, val_qa.json"),
    "music_avqa": ("MUSIC-AVQA: questions about music", "avqa-train.json, avqa-test.json"),
    "valor": ("VALOR-32K: captions of sound and image", "desc_train.json, desc_test.json"),
    "avfit": ("AVFIT as its authors released it", "<data set>/<data set>_train.json and so on"),
    "jsonl": ("your own data", "annotations.jsonl"),
}
HELP = "docs/data.md of meerkat_jax tells how to lay out the published files of a source"


@dataclasses.dataclass(eq=False)
class AvfitConfig(tfds.core.BuilderConfig):
    """A source and how to build it; fields and defaults are the flags of `data/build`.

    `source` is the name if it is not told. A config that is not one of ours needs a name of its
    own: `AvfitConfig(name="vggss_opus", source="vggss", sound="opus")`. `exclude` are folders that
    `data/build` built. `workers` encode at once, in threads.
    """

    source: str = ""
    seed: int = 0
    cap: int = 10_000
    seconds: float = 10.0
    audio: str = "flac"
    exclude: tuple[str | os.PathLike, ...] = ()
    max_skipped: float = 0.01
    max_leaking: float | None = None
    limit: int | None = None
    shard: int = 256
    workers: int | None = None

    def __post_init__(self) -> None:
        """UserError for a value that cannot be."""
        self.source = self.source or self.name
        find(self.source)
        if self.audio not in media.AUDIO_FORMATS:
            raise UserError(f"audio={self.audio!r}: expected {' or '.join(media.AUDIO_FORMATS)}")
        if isinstance(self.exclude, str | os.PathLike):
            raise UserError(f"exclude={str(self.exclude)!r}: expected a list of folders")
        least = {"cap": 0, "seconds": 0.1, "max_skipped": 0, "max_leaking": 0, "limit": 1}
        least |= {"shard": 1, "workers": 1}
        for key, lowest in least.items():
            value = getattr(self, key)
            if value is not None and value < lowest:
                raise UserError(f"{key}={value}: expected at least {lowest}")


def _configs() -> list[AvfitConfig]:
    return [AvfitConfig(name=name, description=DESCRIPTIONS[name][0]) for name in SOURCES]


class MeerkatAvfit(tfds.core.ShardBasedBuilder):
    """AVFIT: images with sounds, and questions about the two."""

    VERSION = tfds.core.Version(f"{shards.VERSION}.0.0")
    BUILDER_CONFIGS = _configs()
    MANUAL_DOWNLOAD_INSTRUCTIONS = HELP

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Instructions about an image and an audio clip: where, when, true or "
            "false, questions, captions.",
            features=features(),
            disable_shuffling=True,  # the order of the plan, as in a built folder
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        _check_format(self.info.file_format)
        config = self.builder_config
        conversion = self._making = Conversion(
            config.source,
            _manual_dir(dl_manager, config.source),
            Options(config.seed, config.cap, config.seconds),
            shards.Settings(config.audio, config.shard),
            config.max_skipped,
            tuple(Path(folder).expanduser() for folder in config.exclude),
            config.limit,
            config.workers,
            max_leaking=config.max_leaking,
        )
        super()._download_and_prepare(dl_manager, download_config)
        faults = (*conversion.left_out, *conversion.found.missing, *conversion.plan.skips.faults)
        validate.write_skipped(Path(self.data_dir), faults)
        self.info.metadata.update(conversion.manifest())
        self._drop_empty()

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable]]:
        return {
            split: [functools.partial(self._records, rows) for rows in shards]
            for split, shards in self._making.shards().items()
        }

    def _records(self, rows: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, example in self._making.examples(rows):
            yield row, to_record(example)

    def _drop_empty(self) -> None:
        """Splits of which nothing could be used: TFDS cannot open one."""
        splits = list(self.info.splits.values())
        for split in splits:
            for path in split.filepaths if not split.num_examples else ():
                path.unlink()
        kept = [split for split in splits if split.num_examples]
        self.info.set_splits(tfds.core.SplitDict(kept))


def _check_format(kind: Any) -> None:
    """UserError when records of this format cannot be written here."""
    alone = tfds.core.FileFormat.with_random_access()
    if kind not in alone and importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"file_format={kind.value!r} needs TensorFlow, which is not installed; without it: "
            'tfds.builder(..., file_format="array_record")'
        )


def _manual_dir(dl_manager: Any, source: str) -> Path:
    """Where the published files lie; UserError naming what should be there."""
    try:
        return Path(dl_manager.manual_dir)
    except AssertionError as error:
        where = str(error).split(" Create it ")[0]
        raise UserError(
            f"{where} {source}: expected {DESCRIPTIONS[source][1]} there, and the media; "
            f"tfds.download.DownloadConfig(manual_dir=...) names it. {HELP}"
        ) from None
