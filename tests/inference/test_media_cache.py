"""Files are decoded once, by threads that ask at once too, and what is kept is bounded."""

from __future__ import annotations

import concurrent.futures
import threading

import numpy as np
import pytest

from meerkat_jax.inference.media_cache import MediaCache


def test_threads_that_ask_at_once_share_one_decoding():
    cache, count, begun = MediaCache(), [], threading.Barrier(8)

    def ask(_):
        begun.wait()
        return cache.get("image", b"a", lambda data: count.append(data) or np.zeros(3))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        first, *others = pool.map(ask, range(8))
    assert count == [b"a"] and all(other is first for other in others)
    assert cache.get("audio", b"a", len) == 1  # the same bytes, read as another kind


def test_the_least_recently_used_go_when_there_is_too_much():
    cache, count = MediaCache(most=250), []

    def ask(data):
        return cache.get("image", data, lambda data: count.append(data) or (np.zeros(100, "u1"), 1))

    for data in (b"a", b"b", b"a", b"c", b"a", b"b"):
        ask(data)
    assert count == [b"a", b"b", b"c", b"b"]


def test_a_failure_is_told_and_not_kept():
    cache = MediaCache()
    with pytest.raises(ZeroDivisionError):
        cache.get("image", b"a", lambda _: 1 / 0)
    assert cache.get("image", b"a", len) == 1
