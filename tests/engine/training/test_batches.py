from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from nlsn_plugin.engine.training.batches import Order, ReadAhead, endless
from nlsn_plugin.engine.training.loop import order_of
from nlsn_plugin.errors import DataError, UserError


class Draws(Dataset):
    """Samples that depend on every generator a data set may draw from."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, object]:
        if index == 99:
            raise DataError('image 99 is damaged')
        return {'index': index, 'drawn': (random.random(), np.random.rand(), torch.rand(()).item())}  # noqa: NPY002


def options(workers: int, prefetch_mode: str | None = None) -> dict[str, object]:
    return {'datasets': {'train': {'num_worker_per_gpu': workers, 'prefetch_mode': prefetch_mode}}}


def batches(count: int, first: int = 0, workers: int = 0, rank: int = 0, world_size: int = 1) -> list[object]:
    order = Order(10, 2, 6 // world_size, rank, world_size, seed=5, first=first)
    found = itertools.islice(endless(Draws(), order, options(workers)), count)
    return [(batch['index'].tolist(), [value.tolist() for value in batch['drawn']]) for batch in found]


@pytest.mark.parametrize('workers', [0, 1, 2])
@pytest.mark.parametrize('first', [0, 2, 3, 7])
def test_batches_are_the_same_from_any_first_one_and_with_any_workers(first: int, workers: int) -> None:
    assert batches(9)[first:] == batches(9 - first, first, workers)


def test_an_epoch_goes_through_all_images_as_often_as_it_is_enlarged() -> None:
    order = Order(10, 2, 5, 0, 1, seed=0)
    places = [place for batch in itertools.islice(order, 4) for place in batch]
    assert sorted(index for _, index in places) == sorted([*range(10), *range(10)])
    assert len({seed for seed, _ in places}) == 20
    assert order.batches_per_epoch == 4


@pytest.mark.parametrize(
    'machine',
    [{'dist': False, 'num_gpu': 2, 'world_size': 1}, {'dist': True, 'num_gpu': 1, 'world_size': 2}],
    ids=['one process of two GPUs', 'two processes'],
)
def test_an_update_of_more_images_than_an_epoch_has(machine: dict[str, object]) -> None:
    opt = {**machine, 'rank': 0, 'manual_seed': 0, 'datasets': {'train': {'batch_size_per_gpu': 6}}}
    with pytest.raises(UserError, match=r'takes 12 patches \(2 x batch_size_per_gpu 6\), more than the 10 images'):
        order_of(opt, Draws(), 0)


@pytest.mark.parametrize('world_size', [2, 3])
def test_processes_share_the_batches_of_one(world_size: int) -> None:
    shares = [batches(4, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, (whole, _) in enumerate(batches(4)):
        assert sorted(whole) == sorted(index for share in shares for index in share[number][0])


def test_the_generators_of_the_run_are_left_alone() -> None:
    torch.manual_seed(1)
    random.seed(1)
    expected = torch.rand(3), random.random()
    torch.manual_seed(1)
    random.seed(1)
    batches(2)
    batches(2, workers=2)
    assert torch.rand(3).equal(expected[0])
    assert random.random() == expected[1]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_sample_that_cannot_be_read_ends_the_run_with_its_own_words(workers: int) -> None:
    class Damaged(Draws):
        def __getitem__(self, index: int) -> dict[str, object]:
            return super().__getitem__(99)

    with pytest.raises(DataError) as caught:
        next(endless(Damaged(), Order(10, 1, 2, 0, 1, seed=0), options(workers)))
    assert str(caught.value) == 'image 99 is damaged'


@pytest.mark.parametrize('workers', [0, 2])
def test_what_a_data_set_of_ones_own_raises_ends_the_run_as_an_image_that_cannot_be_read_does(workers: int) -> None:
    class Own(Draws):
        def __getitem__(self, index: int) -> dict[str, object]:
            return {'index': [index][1]}

    with pytest.raises(DataError, match=r'(?s)^sample \d of Own fails:\nTraceback.*\[index\]\[1\].*list index out of'):
        next(endless(Own(), Order(10, 1, 2, 0, 1, seed=0), options(workers)))


class Stream:
    """In the place of one of CUDA's, where there is none."""

    def wait_stream(self, other: Stream) -> None:
        self.waits_for = other


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, object]]:
    """The tensors of which a stream was told that it uses them, and the stream; on the CPU where there is no GPU."""
    noted = []
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, 'Stream', Stream)
        monkeypatch.setattr(torch.cuda, 'stream', lambda stream: contextlib.nullcontext())
        main = Stream()
        monkeypatch.setattr(torch.cuda, 'current_stream', lambda: main)
        monkeypatch.setattr(torch.Tensor, 'cuda', lambda self, non_blocking: self.clone())
    monkeypatch.setattr(torch.Tensor, 'record_stream', lambda self, stream: noted.append((self, stream)))
    return noted


def test_the_memory_of_what_was_copied_to_the_gpu_is_kept_until_it_was_used(used: list[tuple[torch.Tensor, object]]):
    order = Order(10, 1, 2, 0, 1, seed=0)
    copied = list(itertools.islice(endless(Draws(), order, options(0, 'cuda')), 3))
    assert [tensor for tensor, _ in used] == [batch['index'] for batch in copied]
    assert {stream for _, stream in used} == {torch.cuda.current_stream()}
    assert torch.cuda.is_available() or isinstance(torch.cuda.current_stream().waits_for, Stream)


@pytest.mark.parametrize('mode', [None, 'cuda'])
@pytest.mark.parametrize('damaged', range(5))
@pytest.mark.usefixtures('used')
def test_what_cannot_be_read_is_known_two_batches_before_its_turn(damaged: int, mode: str | None) -> None:
    order = Order(10, 1, 1, 0, 1, seed=0)
    places = list(itertools.islice(order, damaged + 1))

    class Damaged(Draws):
        def __getitem__(self, index: int) -> dict[str, object]:
            return super().__getitem__(99 if index == places[-1][0][1] else index)

    ahead = ReadAhead(endless(Damaged(), order, options(0, mode)))
    for number in range(damaged):
        assert next(ahead)['index'].tolist() == [places[number][0][1]]
        assert (ahead.error is None) == (number < damaged - 2)
    for _ in range(2):
        with pytest.raises(DataError, match='image 99 is damaged'):
            next(ahead)


def test_a_worker_that_was_killed_ends_the_run_in_one_line() -> None:
    class Killed(Draws):
        def __getitem__(self, index: int) -> dict[str, object]:
            os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    with pytest.raises(DataError, match='a process that reads the training images has ended, perhaps for lack of'):
        next(endless(Killed(), Order(10, 1, 2, 0, 1, seed=0), options(1)))


def test_no_worker_outlives_the_run_even_if_it_hears_nothing() -> None:
    class Stuck(Draws):
        answered = 0

        def __getitem__(self, index: int) -> dict[str, object]:
            self.answered += 1
            if self.answered > 2:
                time.sleep(600)
            return super().__getitem__(index)

    others = set(multiprocessing.active_children())  # of tests before, perhaps
    batches = endless(Stuck(), Order(10, 1, 2, 0, 1, seed=0), options(1))
    stuck = ReadAhead(batches)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    stuck.close()
    worker.join(30)
    assert worker.exitcode is not None
