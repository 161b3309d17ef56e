"""Build a data set from its published files: annotations to instructions, media to records.

    python -m meerkat_jax.data.build vggss --source_dir=downloads/vggss --out=avfit/vggss

docs/data.md tells for each source which files to have and where they come from. The same command
goes on with a build that was killed, and ends with the same bytes. What comes out: ArrayRecord
files, manifest.json (counts, and everything left out by reason) and skipped.jsonl (each of it).
`python -m meerkat_jax.report.browse OUT` shows the result.

Build the sets that test first, and name them in --exclude of those that train: what is in their
test splits is then left out of the training split: told at once, and refused above --max_leaking.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from absl import flags

from meerkat_jax.core.cli import run_command
from meerkat_jax.core.errors import UserError
from meerkat_jax.data.build import shards
from meerkat_jax.data.media import AUDIO_FORMATS
from meerkat_jax.data.pipeline import cores
from meerkat_jax.data.sources.entry import Options
from meerkat_jax.data.sources.registry import find

flags.DEFINE_string("source_dir", None, "Folder of the source's files (docs/data.md).")
flags.DEFINE_string("out", None, "Folder for the records.")
flags.DEFINE_bool("overwrite", False, "Delete the build in --out and start anew.")
flags.DEFINE_integer("workers", None, "Processes; default one for each core.", lower_bound=1)
flags.DEFINE_float("max_skipped", 0.01, "Share of rows, of examples, that may be bad.", 0.0, 1.0)
flags.DEFINE_float(
    "max_leaking", None, "Share of training examples that may be in a test split; default: "
    "--max_skipped.", 0.0, 1.0,
)  # fmt: skip
flags.DEFINE_list("exclude", [], "Built folders whose test splits must not be trained on.")
flags.DEFINE_enum("audio", "flac", list(AUDIO_FORMATS), "Format of the stored audio.")
flags.DEFINE_integer("shard", 256, "Most examples of a file.", lower_bound=1)
flags.DEFINE_float("seconds", 10.0, "The longest clip.", lower_bound=0.1)
flags.DEFINE_integer("seed", 0, "Of every draw: pairs, wordings, claims.")
flags.DEFINE_integer("cap", 10_000, "Joined pairs: most examples of a class; 0: all.", 0)
flags.DEFINE_integer("limit", None, "At most so many examples, to try it.", lower_bound=1)
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Plan, build, and say what came out."""
    source, root, out = argv[1], Path(FLAGS.source_dir).expanduser(), Path(FLAGS.out).expanduser()
    plan_source = find(source)
    if FLAGS.overwrite:
        _clear(out)
    exclude = [Path(folder).expanduser() for folder in FLAGS.exclude]
    for folder in exclude:
        if not (folder / "manifest.json").is_file():
            raise UserError(
                f"--exclude={folder}: no finished build (it has no manifest.json); build it first, "
                "or leave it out"
            )
    say(f"{source}: reading the annotations below {root}")
    options = Options(FLAGS.seed, FLAGS.cap, FLAGS.seconds)
    plan = plan_source(root, options)
    rows = f"{plan.skips.used + len(plan.skips.faults)} rows, of which {plan.skips.used} are usable"
    say(f"{source}: {rows}, make {len(plan.entries)} examples")
    for what, count in plan.skips.noted.items():
        say(f"{source}: noted: {what}: {count}")
    manifest = shards.build(
        source,
        plan,
        root,
        out,
        options,
        shards.Settings(FLAGS.audio, FLAGS.shard),
        FLAGS.workers or cores(),
        FLAGS.max_skipped,
        exclude,
        FLAGS.limit,
        say,
        FLAGS.max_leaking,
    )
    for line in summary(manifest):
        say(line)
    say(f"records, manifest.json and skipped.jsonl are in {out}")
    say(f"next: python -m meerkat_jax.report.browse {out}")


def summary(manifest: dict) -> list[str]:
    """What was made and what was left out, in lines."""
    found = [f"{split}: {count} examples" for split, count in manifest["counts"].items()]
    for split, questions in manifest["questions"].items():
        found += [f"{split}: {kind}: {count} questions" for kind, count in questions.items()]
    for what, reasons in manifest["skipped"].items():
        found += [f"skipped {what}: {reason}: {count}" for reason, count in reasons.items()]
    found += [f"left out: {why}: {count}" for why, count in manifest["dropped"].items()]
    return found + [f"noted: {why}: {count}" for why, count in manifest["noted"].items()]


def _clear(out: Path) -> None:
    """Delete a build of ours, and nothing else."""
    if out.is_dir() and any(out.iterdir()):
        if not (out / "plan.json").exists():
            raise UserError(f"--overwrite: {out} holds no build of ours; name another --out")
        shutil.rmtree(out)


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


if __name__ == "__main__":
    run_command(main, required=("source_dir", "out"), words=("source",))
