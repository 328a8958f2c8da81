"""Does the device's state follow what becomes of requests: new blocks, lost KV, ended, come again?"""

import numpy as np
import pytest
import torch

from engine.job import Job
from engine.link import Sampling
from engine.rows import Rows, Updates, parameters
from kernels.step_inputs import PARAMETERS
from scheduler.batch import Slice
from scheduler.request import DECODE, ENDED, WAITING
from tests.engine.driving import job

WIDTH = PARAMETERS + 5


def running(uid: int, blocks: list[int]) -> Job:
    made = job(uid, [1, 2, 3], 4)
    made.blocks, made.state = blocks, DECODE
    return made


def slices(*jobs: Job) -> list[Slice[Job]]:
    return [Slice(one, 0, 1, True) for one in jobs]


def apply(table: np.ndarray, updates: Updates) -> None:
    assert len(set(updates.places.tolist())) == len(updates.places)
    table.reshape(-1)[updates.places] = updates.values


def test_only_what_is_new_travels() -> None:
    rows, table = Rows(4, 5), np.zeros((5, WIDTH), np.int32)
    first, second = running(1, [7]), running(2, [8, 9])
    places, updates = rows.place(slices(first, second))
    apply(table, updates)
    assert len(set(places)) == 2 and len(updates.places) == 2 * PARAMETERS + 3
    assert table[places[1], PARAMETERS : PARAMETERS + 2].tolist() == [8, 9]
    first.blocks += [3]
    again, updates = rows.place(slices(second, first))
    assert again == [places[1], places[0]] and updates.values.tolist() == [3]
    apply(table, updates)
    assert table[places[0], PARAMETERS : PARAMETERS + 2].tolist() == [7, 3]
    assert len(rows.place(slices(first, second))[1].places) == 0


def test_who_comes_back_with_other_blocks_is_told_anew() -> None:
    rows, table = Rows(4, 5), np.zeros((5, WIDTH), np.int32)
    ours = running(1, [7, 8])
    (row,), updates = rows.place(slices(ours))
    apply(table, updates)
    ours.blocks = [4, 8]
    (same,), updates = rows.place(slices(ours))
    apply(table, updates)
    assert same == row and table[row, PARAMETERS : PARAMETERS + 2].tolist() == [4, 8]


def test_rows_of_those_that_hold_no_kv_are_taken_back() -> None:
    rows = Rows(2, 5)
    first, second = running(1, [1]), running(2, [2])
    before = rows.place(slices(first, second))[0]
    first.state, second.state = ENDED, WAITING
    second.blocks = []
    third = running(3, [3])
    assert rows.place(slices(third))[0][0] in before
    second.blocks, second.state = [5], DECODE
    assert len(rows.place(slices(second))[1].values) == PARAMETERS + 1
    with pytest.raises(RuntimeError, match="2 rows"):
        rows.place(slices(running(4, [4])))


def test_another_job_with_the_same_uid_is_another() -> None:
    rows = Rows(1, 5)
    rows.place(slices(running(1, [1])))
    assert len(rows.place(slices(running(1, [2])))[1].values) == PARAMETERS + 1


def test_parameters() -> None:
    sampling = Sampling(max_tokens=1, temperature=0.5, top_p=0.25, min_p=0.125, top_k=2**40, top_logprobs=3)
    values = np.array(parameters(job(1, [1], 1, sampling=sampling, seed=-2)), np.int64).astype(np.int32)
    assert len(values) == PARAMETERS
    assert values[:3].view(np.float32).tolist() == [0.5, 0.25, 0.125]
    assert values[3] == 2**31 - 1 and values[6] == 3
    assert torch.from_numpy(values[4:6].copy()).view(torch.int64).item() == -2
