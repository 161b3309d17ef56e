"""The server under load: so many clients at once, each with questions one after another.

    python -m benchmarks.serve --checkpoint=runs/mini --clients=1,8,32 --requests=10 -- --slots=8

Starts `python -m meerkat_jax.serve` in a process of its own, with the flags behind `--`. Clients
are OpenAI's own. Each asks about images and audio clips of its own making, every other question
streamed, and checks that equal questions get equal answers. Told are, for each number of clients,
requests and tokens a second, the time to the first piece of a stream and to the end of an answer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
import soundfile
from absl import app, flags
from PIL import Image

from benchmarks.measure import setting

PROMPTS = (
    "What makes this sound?",
    "Describe the clip.",
    "Find the object that makes the sound. Give [object, x_left, y_top, x_right, y_bottom].",
)
PAIRS = 4


@contextlib.contextmanager
def serving(flags: Sequence[str]) -> Iterator[str]:
    """The address of a server in a process; ended by SIGTERM, which must end it well."""
    command = [sys.executable, "-m", "meerkat_jax.serve", "--port=0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        try:
            if "http://" not in said:
                raise SystemExit(f"the server did not start: {' '.join(command)}")
            yield said.split(" on ")[1].strip()
        finally:
            process.terminate()
            if code := process.wait(60):
                raise SystemExit(f"the server ended with code {code}")


@functools.cache
def message(number: int) -> dict[str, Any]:
    """Question `number` about its pair."""
    pair, prompt = number % PAIRS, PROMPTS[number % len(PROMPTS)]
    image, audio = io.BytesIO(), io.BytesIO()
    squares = np.random.default_rng(pair).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(squares).resize((224, 224)).save(image, "PNG")
    wave = 0.3 * np.sin(np.arange(32000) * (300 + 200 * pair) * 2 * np.pi / 16000)
    soundfile.write(audio, wave, 16000, format="WAV")
    data = [base64.b64encode(file.getvalue()).decode() for file in (image, audio)]
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data[0]}"}},
        {"type": "input_audio", "input_audio": {"data": data[1], "format": "wav"}},
        {"type": "text", "text": prompt},
    ]
    return {"role": "user", "content": parts}


async def ask(client: openai.AsyncOpenAI, model: str, number: int, stream: bool) -> dict[str, Any]:
    """One question, timed."""
    begun, first, create = time.perf_counter(), None, client.chat.completions.create
    asked = {"model": model, "messages": [message(number % (PAIRS * len(PROMPTS)))]}
    if stream:
        text, tokens = "", 0
        options = {"include_usage": True}
        async for chunk in await create(**asked, stream=True, stream_options=options):
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece and first is None:
                first = time.perf_counter() - begun
            text += piece or ""
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    else:
        found = await create(**asked)
        text, tokens = found.choices[0].message.content, found.usage.completion_tokens
    seconds = time.perf_counter() - begun
    return {"number": number, "text": text, "tokens": tokens, "first": first, "seconds": seconds}


async def load(url: str, model: str, clients: int, requests: int) -> dict[str, Any]:
    """`clients` at once with `requests` each."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def one(seed: int) -> list[dict[str, Any]]:
            order = np.random.default_rng(seed).integers(0, PAIRS * len(PROMPTS), requests)
            return [await ask(client, model, int(n), bool(i % 2)) for i, n in enumerate(order)]

        begun = time.perf_counter()
        lists = await asyncio.gather(*map(one, range(clients)))
        wall = time.perf_counter() - begun
    found = [row for rows in lists for row in rows]
    texts: dict[int, set[str]] = {}
    for row in found:
        texts.setdefault(row["number"], set()).add(row["text"])
    if any(len(same) > 1 for same in texts.values()):
        raise SystemExit(f"equal questions got different answers: {texts}")
    firsts = [row["first"] for row in found if row["first"] is not None]
    return {
        "clients": clients,
        "requests": len(found),
        "requests_per_second": len(found) / wall,
        "tokens_per_second": sum(row["tokens"] for row in found) / wall,
        "answer_seconds": percentiles([row["seconds"] for row in found]),
        "first_piece_seconds": percentiles(firsts) if firsts else None,
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and the largest."""
    p50, p95 = np.percentile(values, (50, 95))
    return {"p50": float(p50), "p95": float(p95), "max": max(values)}


def define_flags() -> None:
    """The flags of the command line."""
    flags.DEFINE_string("checkpoint", None, "Work directory of training.", required=True)
    flags.DEFINE_list("clients", ["1", "8", "32"], "How many at once, one after another.")
    flags.DEFINE_integer("requests", 10, "Of each client.", lower_bound=1)
    flags.DEFINE_string("out", None, "Where the JSON goes; default: printed only.")


def main(argv: Sequence[str]) -> None:
    """Run the loads and print a JSON object."""
    given = flags.FLAGS
    model = Path(given.checkpoint).resolve().name
    with serving([f"--checkpoint={given.checkpoint}", *argv[1:]]) as url:
        asyncio.run(load(url, model, 1, 2 * PAIRS * len(PROMPTS)))  # compiles
        rows = [asyncio.run(load(url, model, int(n), given.requests)) for n in given.clients]
    report = json.dumps({"setting": setting("that of the server", None), "loads": rows}, indent=1)
    print(report)
    if given.out:
        Path(given.out).write_text(report + "\n")


if __name__ == "__main__":
    define_flags()
    app.run(main)
