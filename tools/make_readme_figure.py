"""Draw docs/answer.png, the image of the README: a box on an image, a segment under its audio.

    python tools/make_readme_figure.py --out=docs/answer.png

The scene is one of the procedural media (shapes and timbres made by our code), so the image is
free of other people's work. Its answers are the scene's ground truth in the model's answer format;
no model is run.
"""

import io
import sys
from pathlib import Path

import numpy as np
import soundfile
from absl import app, flags
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from meerkat_jax.data.audio import LogMel  # noqa: E402
from meerkat_jax.data.example import Example  # noqa: E402
from meerkat_jax.inference import annotate  # noqa: E402
from meerkat_jax.inference.answers import View, read_answer  # noqa: E402
from meerkat_jax.mini.build import MiniConfig, instances, scene  # noqa: E402
from meerkat_jax.mini.media import load_media  # noqa: E402
from meerkat_jax.mini.recipe import mini  # noqa: E402

flags.DEFINE_string("out", "docs/answer.png", "The file to write.")
flags.DEFINE_integer("seed", 0, "Seed of the scene.")
flags.DEFINE_integer("index", 147, "Number of the scene in the split `compositions`.")

FLAGS = flags.FLAGS
SIDE = 440  # pixels of the image in the figure
GAP = 20
COLOURS = 128  # of the palette, which keeps the file small


def draw(example: Example) -> Image.Image:
    """The image with its box on the left; both questions and the spectrogram on the right."""
    image = Image.open(io.BytesIO(example.image)).convert("RGB")
    view = make_view(example, np.asarray(image))
    pages = {}
    for task in ("arig", "igatl"):
        question = next(question for question in example.questions if question.task == task)
        answer = read_answer(question.response, view.seconds, view=view)
        pages[task] = annotate.annotate(image, answer, question.instruction)
    top = annotate.MARGIN + annotate.WIDTH  # the image is square
    where, when = pages["arig"], pages["igatl"]
    words = top + annotate.SPECTROGRAM + annotate.AXIS
    left = where.crop((annotate.MARGIN, annotate.MARGIN, annotate.MARGIN + annotate.WIDTH, top))
    left = left.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    right = [where.crop((0, words, where.width, where.height))]
    right.append(when.crop((0, top, when.width, when.height)))
    height = sum(part.height for part in right)
    size = (SIDE + GAP + where.width, max(SIDE, height) + 2 * annotate.MARGIN)
    page = Image.new("RGB", size, annotate.PAPER)
    page.paste(left, (annotate.MARGIN, (size[1] - SIDE) // 2))
    y = (size[1] - height) // 2
    for part in right:
        page.paste(part, (SIDE + GAP, y))
        y += part.height
    return page.quantize(COLOURS)


def make_view(example: Example, image: np.ndarray) -> View:
    """The view that `annotate` draws from; it has no attention and no plan."""
    samples, rate = soundfile.read(io.BytesIO(example.audio), dtype="float32")
    logmel = LogMel(sample_rate=rate, **mini()["model"]["mel"])
    mel = np.asarray(logmel(samples[None]))[0]
    nothing = np.zeros((1, 1))
    return View(image, mel, nothing, nothing, (1, 1, 1, 1), len(samples) / rate)


def main(_: list[str]) -> None:
    """Compose the scene, draw it, write the file."""
    config = MiniConfig(media="procedural", seed=FLAGS.seed)
    media = instances(config, load_media("procedural"), "compositions")
    draw(scene(config, media, "compositions", FLAGS.index)).save(FLAGS.out, optimize=True)
    print(f"{FLAGS.out}: {Path(FLAGS.out).stat().st_size} bytes")


if __name__ == "__main__":
    app.run(main)
