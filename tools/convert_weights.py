"""Published weights to our store, and back out: the command to meerkat_jax/weights.

    python tools/convert_weights.py --clip=DIR --clap=DIR --llama=DIR --out=weights/7b --verify
    python tools/convert_weights.py --inspect --clip=DIR
    python tools/convert_weights.py --export=peft --checkpoint=runs/7b --out=exported

docs/weights.md tells which folders and files are read, how large they are and what comes out.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from meerkat_jax.core.cli import run_command  # noqa: E402
from meerkat_jax.core.errors import UserError  # noqa: E402
from meerkat_jax.core.files import default_cache  # noqa: E402
from meerkat_jax.from_config import build_model  # noqa: E402
from meerkat_jax.parallel.devices import find_devices  # noqa: E402
from meerkat_jax.report.model_card import write_card  # noqa: E402
from meerkat_jax.weights.convert import DTYPES, convert, inspect  # noqa: E402
from meerkat_jax.weights.export_run import export_run  # noqa: E402
from meerkat_jax.weights.fetch import fetch_smollm2  # noqa: E402
from meerkat_jax.weights.store import Store  # noqa: E402
from meerkat_jax.weights.verify import verify  # noqa: E402

flags.DEFINE_string("clip", None, "CLIP: a hub folder.")
flags.DEFINE_string("clap", None, "CLAP: a hub folder, or LAION's own .pt file.")
flags.DEFINE_string("llama", None, "Llama: a hub folder, Meta's own, a .gguf file, or 'smollm2'.")
flags.DEFINE_string("tokenizer", None, "Folder of the tokenizer, if not with the language model.")
flags.DEFINE_string("out", None, "Folder to make: a store, or what --export writes.")
flags.DEFINE_enum("dtype", "keep", list(DTYPES), "Of what is written; keep: as the source has it.")
flags.DEFINE_bool("verify", False, "Run torch's model beside ours; with --store, of that store.")
flags.DEFINE_bool("inspect", False, "Print the source's tensors beside the leaves they become.")
flags.DEFINE_string("store", None, "A store that is there already, for --verify.")
flags.DEFINE_enum("export", None, ["peft", "hf"], "Write a trained model out.")
flags.DEFINE_string("checkpoint", None, "Work directory of training, for --export.")
flags.DEFINE_string("base_name", None, "Hub name of the base model, for the card of --export.")
FLAGS = flags.FLAGS

SMOLLM2 = "smollm2"  # stands for SmolLM2-135M-Instruct, which a Python package carries


def main(_: list[str]) -> None:
    """Convert, verify, inspect or export, as the flags say."""
    find_devices()
    paths = {kind: FLAGS[kind].value for kind in ("clip", "clap", "llama") if FLAGS[kind].value}
    if paths.get("llama") == SMOLLM2:
        paths["llama"] = fetch_smollm2(default_cache())
    if FLAGS.export:
        checkpoint, out = _given("checkpoint"), _given("out")
        export_run(
            FLAGS.export, checkpoint, out, write_card, build_model, FLAGS.dtype, FLAGS.base_name
        )
        return
    if FLAGS.inspect:
        inspect(paths)
        return
    store = Store.open(FLAGS.store) if FLAGS.store else _convert(paths)
    if FLAGS.store:
        store.check()
    if FLAGS.verify:
        verify(store, paths)
    print(f'next: --config.base={store.folder}, or base: "{store.folder}" in a config')


def _convert(paths: dict) -> Store:
    return convert(paths, _given("out"), FLAGS.dtype, FLAGS.tokenizer)


def _given(name: str) -> str:
    """The flag's value; UserError if it is missing."""
    if not FLAGS[name].value:
        raise UserError(f"missing --{name}; see tools/convert_weights.py --help")
    return FLAGS[name].value


if __name__ == "__main__":
    run_command(main)
