import pytest

from meerkat_jax.aot.topology import devices_of
from meerkat_jax.aot.train_step import largest
from meerkat_jax.core.errors import UserError


def search(limit, full_limit=None, unit=4, most=4096):
    """(largest batch found, how many compilations it took), if so many examples fit."""
    calls = []

    def compiled_step(batch, quick):
        calls.append((batch, quick))
        assert batch % unit == 0
        room = limit if quick or full_limit is None else full_limit
        return {"fits": batch <= room, "batch": batch}

    return largest(compiled_step, unit, False, most=most)["batch"], len(calls)


@pytest.mark.parametrize("limit", [4, 8, 11, 40, 100, 897, 2000])
def test_the_search_comes_near_the_limit_in_few_compilations(limit):
    found, calls = search(limit)
    assert found <= limit < found + max(4, found // 8) + 4
    assert calls <= 20


@pytest.mark.parametrize("limit", [9, 160, 897, 2000])
@pytest.mark.parametrize("first", [1, 64, 1024])
@pytest.mark.parametrize("told", [1.0, 1.2])
def test_peaks_on_a_line_spare_compilations(limit, first, told):
    """`told`: too large a batch tells its peak up to this share of the memory, or none."""
    calls = []

    def compiled_step(batch, quick):
        calls.append(batch)
        share = 0.5 + 0.5 * batch / limit
        peak = {"gib": {"peak": 16 * share}} if share <= told else {}
        return {"fits": batch <= limit, "batch": batch, "memory_gib": 16} | peak

    found = largest(compiled_step, 1, True, first)["batch"]
    assert found <= limit < found + max(1, found // 12) + 1
    assert len(calls) <= 12


def test_what_the_full_compilation_refuses_is_made_smaller():
    found, _ = search(160, full_limit=150)
    assert 130 <= found <= 150


def test_a_unit_that_does_not_fit_is_an_error():
    with pytest.raises(UserError, match="not even a batch of 4"):
        search(3)


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:4", "v7:2x2", "cpu:0", "cpu", "v5e:4y4", ""])
def test_a_topology_that_is_none_is_named(name):
    with pytest.raises(UserError, match="--topology=.*expected v4, v5e"):
        devices_of(name)
