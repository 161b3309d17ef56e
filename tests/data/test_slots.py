"""Memory of batches is used again once nobody holds it, and never before; also between processes."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np

from meerkat_jax.data.slots import LINE, Readers, Slots

FORMS = {"audio": ((2, 1000), np.dtype("f")), "matched": ((2,), np.dtype(bool))}


def place(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_when_the_last_view_of_it_is_gone():
    slots = Slots()
    first, given = slots.take(FORMS)
    assert given is first and {k: (a.shape, a.dtype) for k, a in first.items()} == FORMS
    assert all(place(array) % LINE == 0 and array.flags.writeable for array in first.values())
    where, row = place(first["audio"]), first["audio"][1][5:]
    row[:] = 3.0
    del first, given
    second, _ = slots.take(FORMS)
    assert place(second["audio"]) != where  # a part of a row still holds the first
    second["audio"][:] = 4.0
    assert (row == 3.0).all()
    del row
    third, _ = slots.take(FORMS)
    assert place(third["audio"]) == where


def test_what_is_too_small_is_not_taken():
    slots = Slots()
    small = slots.take(FORMS)
    where = place(small[0]["audio"])
    del small
    large, _ = slots.take({"audio": ((3, 1000), np.dtype("f"))})
    assert place(large["audio"]) != where and large["audio"].nbytes == 12_000


def work(slots: Slots, asked, notes) -> None:
    """Fill a slot with each number that comes, and tell of it."""
    while (number := asked.get()) is not None:
        arrays, note = slots.take(FORMS)
        arrays["audio"][:] = number
        del arrays
        notes.put(note)


def test_a_worker_uses_again_what_its_reader_has_let_go():
    context = multiprocessing.get_context("spawn")
    asked, notes = context.Queue(), context.Queue()
    slots = pickle.loads(pickle.dumps(Slots(shared=True)))
    worker = context.Process(target=work, args=(slots, asked, notes))
    worker.start()
    reader, files = Readers(), []

    def ask(number: float) -> dict[str, np.ndarray]:
        asked.put(number)
        note = notes.get(timeout=60)
        files.append(note.file)
        return reader(note)

    held = ask(1.0)
    other = ask(2.0)
    assert files[0] != files[1]
    row = held["audio"][0]
    del held
    third = ask(3.0)
    assert files[2] not in files[:2] and (row == 1.0).all() and (other["audio"] == 2.0).all()
    del row
    fourth = ask(4.0)
    assert files[3] == files[0] and (fourth["audio"] == 4.0).all()
    asked.put(None)
    worker.join(60)
    assert worker.exitcode == 0 and (third["audio"] == 3.0).all()  # what is held outlives it
    assert reader({"as": "it is"}) == {"as": "it is"}
