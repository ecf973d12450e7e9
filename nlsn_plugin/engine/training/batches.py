"""Endless training batches, which depend on nothing but their number and, for their augmentation, the seed.

BasicSR seeds its loader's workers, so what a sample looks like depends on which worker reads it, and a resumed run sees
other samples than one that was never stopped. Here every sample has a seed of its own. The order is BasicSR's, which is
the same for all seeds.
"""

from __future__ import annotations

import itertools
import multiprocessing
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from nlsn_plugin.engine.training.interruption import ignore_signals
from nlsn_plugin.engine.training.randomness import seeded
from nlsn_plugin.errors import FAILURES, DataError, UserError

Place = tuple[int, int]
"""The seed of a sample's augmentation, and its index in the data set."""


class Order(Sampler[list[Place]]):
    """Sampler of the batches of one process, which are its share of the batches of all.

    The positions of an epoch are shuffled as by BasicSR's EnlargedSampler. The parts of batch b in all processes
    together are batch b of a single process whose batches are as large as all of them.

    Args:
        size: number of images in the data set.
        enlarge: how many times an epoch goes through the data set.
        batch_size: samples per batch of this process.
        rank, world_size: number of this process, and how many there are.
        seed: seed of the augmentations.
        first: number of the first batch.
    """

    def __init__(
        self, size: int, enlarge: int, batch_size: int, rank: int, world_size: int, seed: int, first: int = 0
    ) -> None:
        self.size, self.total = size, size * enlarge
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.seed, self.first = seed, first
        self.batches_per_epoch = self.total // (batch_size * world_size)

    def __iter__(self) -> Iterator[list[Place]]:
        together = self.batch_size * self.world_size
        for epoch in itertools.count(self.first // self.batches_per_epoch):
            shuffled = torch.randperm(self.total, generator=torch.Generator().manual_seed(epoch))
            first = self.first % self.batches_per_epoch if epoch == self.first // self.batches_per_epoch else 0
            for batch in range(first, self.batches_per_epoch):
                positions = range(batch * together + self.rank, (batch + 1) * together, self.world_size)
                yield [(self.seed_of(epoch, position), int(shuffled[position]) % self.size) for position in positions]

    def seed_of(self, epoch: int, position: int) -> int:
        sequence = np.random.SeedSequence((self.seed, epoch, position))
        return int(sequence.generate_state(1)[0])


class Reproducible(Dataset[Any]):
    """A data set whose samples are augmented with the seed in their Place."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, place: Place) -> Any:
        seed, index = place
        try:
            with seeded(seed):
                return self.dataset[index]
        except UserError as error:  # a loader's worker would bury its message in a traceback
            return error
        except FAILURES:  # a user's own data set raises anything; on DataError the run is saved
            return DataError(f'sample {index} of {type(self.dataset).__name__} fails:\n{traceback.format_exc()}')


def collate(samples: list[Any]) -> Any:
    """Collate samples into a batch; if one of them is an error, return that instead."""
    return next((sample for sample in samples if isinstance(sample, UserError)), None) or default_collate(samples)


class Loaded:
    """The batches of a loader, which raises the error of a sample that could not be read.

    Raises:
        UserError: a sample could not be read.
        DataError: a worker was killed.
    """

    def __init__(self, dataset: Dataset[Any], order: Order, options: dict[str, Any]) -> None:
        workers = options['num_worker_per_gpu']
        self.loader: DataLoader[Any] = DataLoader(
            Reproducible(dataset),
            batch_sampler=order,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=options.get('pin_memory', False),
            prefetch_factor=max(2, options.get('num_prefetch_queue', 1)) if workers else None,
            worker_init_fn=ignore_signals,  # signals reach workers too, but the main process decides
            generator=torch.Generator().manual_seed(0),  # not the global one, which rotations use
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            for batch in self.loader:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if 'DataLoader worker (pid' not in str(error):  # an error of the data set's own
                raise
            *_, why = str(error).splitlines()
            raise DataError(
                f'a process that reads the training images has ended, perhaps for lack of memory: {why} '
                '(num_worker_per_gpu: 0 reads them in the main process)'
            ) from error


def patches_of_an_update(opt: dict[str, Any]) -> int:
    """Number of patches in an update of all processes together; without a launcher one process has all GPUs."""
    shares = opt['world_size'] if opt['dist'] else max(1, opt['num_gpu'])
    return int(opt['datasets']['train']['batch_size_per_gpu'] * shares)


def endless(dataset: Dataset[Any], order: Order, opt: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
    """Yield the batches of one process; with prefetch_mode 'cuda' they are on the GPU.

    BasicSR's prefetch_mode 'cpu' waits for ever when reading fails. It is ignored: the loader's own workers read ahead
    as well.
    """
    options = opt['datasets']['train']
    loaded = Loaded(dataset, order, options)
    yield from uploaded(loaded) if options.get('prefetch_mode') == 'cuda' else loaded


def uploaded(batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield batches whose tensors are copied to the GPU while it computes.

    BasicSR's CUDAPrefetcher does not tell PyTorch that the tensors are used outside its own stream: their memory may be
    reused for the next batch while they are still needed. And if a batch cannot be read, it loses the one before.
    """
    copying = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(copying):
            copies = {key: x.cuda(non_blocking=True) for key, x in batch.items() if torch.is_tensor(x)}
        computing = torch.cuda.current_stream()
        computing.wait_stream(copying)
        for copy in copies.values():
            copy.record_stream(computing)
        yield {**batch, **copies}


class ReadAhead:
    """Batches that are read two ahead: if one cannot be read, several processes can still agree to save the run.

    Raises:
        UserError: a batch could not be read; raised when it is that batch's turn.
    """

    def __init__(self, batches: Generator[dict[str, Any], None, None]) -> None:
        self.batches = batches
        self.others = set(multiprocessing.active_children())
        self.read: deque[dict[str, Any]] = deque()
        self.error: UserError | None = None
        """The error of the batch after those in `read`, if it could not be read."""

    def __next__(self) -> dict[str, Any]:
        while len(self.read) < 3 and not self.error:
            try:
                self.read.append(next(self.batches))
            except UserError as error:
                self.error = error
        if self.error and not self.read:
            raise self.error
        return self.read.popleft()

    def close(self) -> None:
        """End what `endless` has started since this object was made, its loader's workers included.

        Workers ignore signals, and PyTorch ends those that do not respond by a signal: without this, a run that failed
        could wait for them for ever.
        """
        self.batches.close()
        for worker in set(multiprocessing.active_children()) - self.others:
            worker.kill()
