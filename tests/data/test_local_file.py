"""Whatever a path names, reading it ends: with the file, or with one error."""

from __future__ import annotations

import os
import socket

import pytest

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.audio import count_seconds, load_audio
from meerkat_jax.data.image import load_image, read_size
from meerkat_jax.data.local_file import open_local
from meerkat_jax.generate import read_manifest
from tests.inference.made import write_media


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What is not a file, by what errors call it."""
    folder = tmp_path_factory.mktemp("not_files")
    os.mkfifo(folder / "fifo.png")
    (folder / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.png"))
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "terminal.png").symlink_to("/dev/zero")
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fifo.png", "it is a FIFO, not a file"),
        ("folder.png", "it is a folder, not a file"),
        ("socket.png", "cannot open"),
        ("loop.png", "Too many levels"),
        ("terminal.png", "it is a device, not a file"),
        ("a\0b.png", "embedded null byte"),
        ("absent.png", "No such file"),
        ("x" * 300, "File name too long"),
        ("half\ud800.png", "surrogates not allowed"),
    ],
)
def test_what_is_no_file_is_one_error_through_every_door(folder, name, message):
    path = f"{folder}/{name}"
    for read in (open_local, lambda path: load_image(path, 8), lambda path: load_audio(path, 8, 1)):
        with pytest.raises(UserError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value) and "\0" not in str(caught.value)
        assert "check the path" in str(caught.value)
    assert read_size(path) is None and count_seconds(path) is None


def test_a_file_is_read_and_a_large_one_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    with open_local(tmp_path / "a", most=5) as file:
        assert file.read() == b"12345"
    with pytest.raises(UserError, match="the audio: 5 bytes; expected at most 4"):
        open_local(tmp_path / "a", "the audio", 4)


def test_a_manifest_that_names_them_is_told_line_by_line(folder):
    write_media(folder)
    lines = ['{"image": "fifo.png", "prompt": "a"}', '{"audio": "fifo.png", "prompt": "a"}',
             '{"image": "a\\u0000b.png", "prompt": "a"}', '{"image": "0.png", "prompt": "a"}',
             '{"image": "half\\ud800.png", "prompt": "a"}']  # fmt: skip
    (folder / "ask.jsonl").write_text("\n".join(lines))
    told = []
    with pytest.raises(UserError, match="4 faults"):
        read_manifest(folder / "ask.jsonl", told.append)
    assert [line.split(":")[0] for line in told] == ["line 1", "line 2", "line 3", "line 5"]
    assert "FIFO" in told[0] and "FIFO" in told[1] and "null byte" in told[2]
