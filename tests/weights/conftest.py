"""Published models, made or fetched once for all tests of weights."""

import pytest

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights.fetch import fetch_smollm2
from tests.weights import decoders


@pytest.fixture(scope="session")
def smollm2(cache):
    """SmolLM2's file as published; skips where it cannot be had."""
    try:
        return fetch_smollm2(cache)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """`bases(kind)`: the decoder of that kind (`decoders.KINDS`), not to be changed by a test."""
    made = {}

    def base(kind):
        if kind not in made:
            made[kind] = decoders.make(kind, tmp_path_factory.mktemp("base"))
        return made[kind]

    return base
