"""The server by the official client: answers, streams, conversations, refusals, and bad manners."""

from __future__ import annotations

import concurrent.futures
import io
import time
import urllib.error
import urllib.request

import openai
import pytest
from PIL import Image

from meerkat_jax.inference import inputs
from meerkat_jax.serving.limits import Limits
from tests.inference.made import fast_compilation, model, tone, wav
from tests.serving.running import (
    NAME,
    PROMPT,
    audio_part,
    body,
    client,
    data_url,
    image_part,
    pair_of,
    raw,
    running,
    status,
    until,
    user,
)
from tests.serving.test_fields import HAS_NOT

LIMITS = Limits(body=1 << 20, pixels=10_000, audio=20.0, seconds=60.0)
WHERE = "Find the object that makes the audio. Give [object, x_left, y_top, x_right, y_bottom]."
LENGTH = "Content-Length: {}"


@pytest.fixture(scope="module", autouse=True)
def quick():
    with fast_compilation():
        yield


@pytest.fixture(scope="module")
def server():
    with running(LIMITS, slots=3, waiting=64) as (url, engine):
        yield url, engine


@pytest.fixture(scope="module")
def chat(server):
    create = client(server[0]).chat.completions.create

    def ask(*messages, **fields):
        return create(**{"model": NAME, "messages": list(messages)} | fields)

    return ask


@pytest.fixture(scope="module")
def alone(server):
    """What the library answers (tests/inference/test_engine.py: whatever runs beside it)."""
    return lambda number, *question: server[1].ask(*pair_of(number), *question).answer(60)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read().decode()


# ---- answers ----


def test_an_answer_is_that_of_the_library(chat, alone):
    expected = alone(0, PROMPT)
    found = chat(user(PROMPT, 0))
    choice = found.choices[0]
    assert (choice.message.content, choice.message.role) == (expected.text, "assistant")
    assert choice.finish_reason == ("length" if expected.notes else "stop")
    told = {key: value for key, value in expected.to_json().items() if key != "text"}
    assert found.meerkat == told and found.object == "chat.completion" and found.model == NAME
    question = model().assembly.prompt.question_ids(PROMPT)
    assert found.usage.prompt_tokens == model().assembly.model.prefix_length + len(question)
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_a_stream_is_the_answer_in_pieces_with_its_usage(chat):
    whole = chat(user(PROMPT, 1))
    options = {"include_usage": True}
    *chunks, last, usage = chat(user(PROMPT, 1), stream=True, stream_options=options)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks]
    assert "".join(pieces) == whole.choices[0].message.content and len(pieces) > 3
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.meerkat == whole.meerkat
    assert usage.usage == whole.usage and usage.choices == []
    assert len({chunk.id for chunk in (*chunks, last, usage)}) == 1
    *plain, end = chat(user(PROMPT, 1), stream=True)
    assert "".join(chunk.choices[0].delta.content for chunk in plain) == "".join(pieces)
    assert end.choices[0].finish_reason and all(chunk.usage is None for chunk in (*plain, end))


def test_a_form_holds_the_answer_to_boxes(chat, alone):
    found = chat(user(WHERE, 1), extra_body={"meerkat_grammar": "boxes"})
    assert found.meerkat["boxes"] and found.choices[0].finish_reason == "stop"
    expected = alone(1, WHERE, (), 0.0, 0, "boxes").to_json()
    assert found.meerkat["boxes"] == expected["boxes"]


def test_what_is_drawn_follows_the_seed(chat, alone):
    def ask(**how):
        return chat(user(PROMPT, 0), temperature=1.5, **how).choices[0].message.content

    assert ask(seed=3) == ask(seed=3) == alone(0, PROMPT, (), 1.5, 3).text
    assert len({ask() for _ in range(6)}) > 1


def test_an_answer_is_no_longer_than_asked(chat):
    for field in ("max_tokens", "max_completion_tokens"):
        found = chat(user(PROMPT, 0), **{field: 2})
        assert found.usage.completion_tokens == 2 and found.choices[0].finish_reason == "length"
    assert chat(user(PROMPT, 0), max_tokens=10**6).choices[0].message.content


def test_a_conversation_is_read_with_its_turns(chat, alone):
    said = {"role": "assistant", "content": "I hear a reddisc."}
    found = chat(user("Describe the clip.", 0), said, user(PROMPT))
    expected = alone(0, PROMPT, [("Describe the clip.", "I hear a reddisc.")])
    assert found.choices[0].message.content == expected.text


def test_all_fields_with_values_that_change_nothing_change_nothing(chat):
    neutral = {field: values[0] for field, (values, _) in HAS_NOT.items()}
    plain = chat(user(PROMPT, 0), max_tokens=8)
    full = chat(user(PROMPT, 0), max_tokens=8, extra_body=neutral)
    assert full.choices == plain.choices and full.usage == plain.usage


def test_a_picture_is_decoded_once_for_all_questions_about_it(chat, server, monkeypatch):
    count, load = [], inputs.load_image
    monkeypatch.setattr(inputs, "load_image", lambda *a, **k: count.append(1) or load(*a, **k))
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        asked = ["What is it?", "Where?", "When?"] * 2
        found = [*pool.map(lambda prompt: chat(user(prompt, 40)), asked)]
    assert len(count) == 1 and found[0].choices == found[3].choices
    said = {"role": "assistant", "content": "A dog."}
    chat(user("What is it?", 40), said, user("Where?"))
    assert len(count) == 1
    chat(user("What is it?", 41))
    assert len(count) == 2


def test_one_of_picture_and_sound_may_be_missing(chat):
    parts = [audio_part(pair_of(0)[1]), {"type": "text", "text": PROMPT}]
    found = chat({"role": "user", "content": parts})
    assert found.meerkat["notes"][0] == "no image was given: the model saw plain grey"


def test_clients_at_once_each_get_their_own_answer(server, alone):
    """32 of them, 3 rows; greedy and drawn, streamed and whole."""
    url, engine = server
    heats = (0.0, 1.5)
    expected = {
        (heat, number): alone(number, PROMPT, (), heat, number).text
        for heat in heats
        for number in range(4)
    }
    assert len(set(expected.values())) > 4

    def one(i):
        heat, number = heats[i % 2], (i // 2) % 4
        fields = {"model": NAME, "temperature": heat, "seed": number}
        asked = fields | {"messages": [user(PROMPT, number)]}
        with client(url) as own:
            if i % 3:
                text = own.chat.completions.create(**asked).choices[0].message.content
            else:
                chunks = own.chat.completions.create(**asked, stream=True)
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        right = expected[heat, number]
        return None if text == right else (i, text, right)

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        assert not [*filter(None, pool.map(one, range(32)))]
    until(lambda: (engine.busy, engine.queued) == (0, 0))


def test_what_else_there_is_to_see(server, chat):
    url, _ = server
    models = client(url).models
    assert [one.id for one in models.list()] == [NAME] and models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="'gpt/4' is not here") as caught:
        models.retrieve("gpt/4")
    assert caught.value.code == "model_not_found"
    assert get(f"{url}/health") == '{"status":"ok"}'
    with pytest.raises(openai.BadRequestError):
        chat(user(" ", 0))
    told = dict(
        line.rsplit(" ", 1) for line in get(f"{url}/metrics").splitlines() if line[0] != "#"
    )
    assert float(told['meerkat_requests_total{status="200"}']) > 0
    assert float(told['meerkat_requests_total{status="400"}']) > 0
    assert float(told["meerkat_rows"]) == 3 and float(told["meerkat_queue"]) == 0
    assert float(told["meerkat_answer_seconds_count"]) > 0
    assert float(told["meerkat_first_token_seconds_count"]) > 0
    assert float(told['meerkat_tokens_total{kind="answer"}']) > 0


# ---- refusals ----

PNG = image_part(data_url(pair_of(0)[0]))
LONG = wav(tone(440, 21.0, 8000), 8000)


def parts(*content):
    return [{"role": "user", "content": [*content, {"type": "text", "text": PROMPT}]}]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "warm"}, "temperature", "valid number"),
        ({"seed": 1.5}, "seed", "valid integer"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "give one of them"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "without stream"),
        ({"meerkat_grammar": "circles"}, "meerkat_grammar", "'boxes' or 'segments'"),
        ({"meerkat_grammar": "boxes", "max_tokens": 2}, "messages", "needs answers of"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "messages.0.role", "its own"),
        ({"messages": [user(PROMPT, 0), user(PROMPT)]}, "messages.1.role", "take turns"),
        ({"messages": [user("", 0)]}, "messages", "the prompt is ''"),
        ({"messages": [user(PROMPT)]}, "messages", "neither an image nor an audio clip"),
        ({"messages": [user("Is it? " * 600, 0)]}, "messages", "tokens; expected at most 1024"),
        ({"messages": [user("Is it? " * 20_000, 0)]}, "messages", "140000 characters"),
        ({"messages": parts(PNG, PNG)}, "messages.0.content.1", "a second image_url"),
        ({"messages": parts(image_part("http://127.0.0.1:1/a.png"))},
         "messages.0.content.0.image_url.url", "expected data:image/png;base64"),
        ({"messages": parts(image_part("file:///etc/passwd"))},
         "messages.0.content.0.image_url.url", "'file:///etc/passwd' is opened by nobody here"),
        ({"messages": parts(image_part("data:image/png;base64,?"))},
         "messages.0.content.0.image_url.url", "not base64"),
        ({"messages": parts(image_part(data_url(b"GIF89a")))}, "messages", "image"),
        ({"messages": parts(PNG, audio_part(b"RIFF0000"))}, "messages", "sound"),
        ({"messages": parts(PNG, audio_part(LONG))}, "messages", "an audio clip of 21.0 s"),
        ({"messages": parts(PNG, audio_part(b"", "aiff"))},
         "messages.0.content.1.input_audio.format", "'ogg', 'opus', 'm4a', 'aac', 'mp4' or 'webm'"),
        ({"messages": parts({"type": "file", "file": {}})}, "messages.0.content.0", "text"),
        ({"messages": parts() + [{"role": "assistant", "content": "a"}] + parts(PNG)},
         "messages.2.content.0", "in its first message"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(chat, fields, param, message):
    known = {"messages": [user(PROMPT, 0)]} | fields
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        chat(*known.pop("messages"), extra_body=known)
    assert caught.value.param == param and caught.value.type == "invalid_request_error"
    assert "\n" not in caught.value.body["message"]


def test_a_picture_of_too_many_pixels_is_not_decoded(chat):
    file = io.BytesIO()
    Image.new("L", (200, 200)).save(file, "PNG")
    with pytest.raises(openai.BadRequestError, match="40000 pixels; expected at most 10000"):
        chat(*parts(image_part(data_url(file.getvalue()))))


def test_another_model_and_other_addresses_are_not_found(server, chat):
    with pytest.raises(openai.NotFoundError, match="the model 'gpt' is not here") as caught:
        chat(user(PROMPT, 0), model="gpt")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings is not served"):
        client(server[0]).embeddings.create(model=NAME, input="a")
    for path in ("/etc/passwd", "/../../etc/passwd", "/v1/%2e%2e/%2e%2e/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(server[0] + path)


# ---- bad manners ----


@pytest.mark.parametrize(
    "sent", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"n": NaN}']
)
def test_a_malformed_body_is_refused(server, sent):
    code, found = status(raw(server[0], LENGTH.format(len(sent)), sent))
    assert code == 400 and found["error"]["type"] == "invalid_request_error"


def test_a_huge_body_is_refused_before_it_is_there(server):
    code, found = status(raw(server[0], LENGTH.format(1 << 40)))
    assert code == 413 and found["error"]["code"] == "request_too_large"
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    chunked = raw(server[0], "Transfer-Encoding: chunked", *[chunk] * 17)
    assert status(chunked)[0] == 413


def test_a_slow_body_and_a_slow_answer_have_an_end(monkeypatch):
    with running(Limits(seconds=0.4), slots=3) as (url, engine):
        whole = body()
        slow = raw(url, LENGTH.format(len(whole)), whole[:100])
        assert status(slow)[0] == 408
        begin, step = time.monotonic(), engine._slots.step
        monkeypatch.setattr(engine._slots, "step", lambda: time.sleep(0.2) or step())
        code, found = status(raw(url, LENGTH.format(len(whole)), whole))
        assert (code, found["error"]["message"]) == (504, "no answer within 0.4 s")
        assert time.monotonic() - begin < 20
        with pytest.raises(openai.APIError, match="no answer within 0.4 s"):
            messages = [user(PROMPT, 0)]
            list(client(url).chat.completions.create(model=NAME, messages=messages, stream=True))
        until(lambda: engine.busy == 0)


def test_who_drops_the_connection_gives_the_row_free_and_a_full_queue_is_told(monkeypatch):
    with running(LIMITS, slots=3, waiting=1) as (url, engine):
        step = engine._slots.step
        monkeypatch.setattr(engine._slots, "step", lambda: time.sleep(0.1) or step())
        for fields in ({}, {"stream": True}):
            whole = body(**fields)
            connections = []
            for count in range(1, 5):
                connections.append(raw(url, LENGTH.format(len(whole)), whole))
                until(lambda: engine.busy + engine.queued == count)  # noqa: B023
            until(lambda: engine.busy == 3)
            replies = [row.reply for row in engine._rows]
            with pytest.raises(openai.RateLimitError, match="1 questions wait already") as caught:
                client(url).chat.completions.create(model=NAME, messages=[user(PROMPT, 0)])
            assert caught.value.response.headers["retry-after"] == "1"
            for connection in connections:
                connection.close()
            until(lambda: (engine.busy, engine.queued) == (0, 0))
            assert [reply.finish for reply in replies] == ["cancelled"] * 3


def test_a_failure_is_told_and_the_next_request_is_answered(server, chat, monkeypatch):
    _, engine = server
    with monkeypatch.context() as broken:
        broken.setattr(engine._slots, "step", lambda: 1 / 0)
        with pytest.raises(openai.InternalServerError, match="the server's log says why"):
            chat(user(PROMPT, 0))
        with pytest.raises(openai.APIError, match="the server's log says why"):
            list(chat(user(PROMPT, 0), stream=True))
    assert chat(user(PROMPT, 0)).choices[0].message.content
