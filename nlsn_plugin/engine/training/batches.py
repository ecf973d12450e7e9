"""Training batches without end, which depend on nothing but their number and, in their augmentation, the seed.

BasicSR seeds its loader's workers, so what a sample looks like depends on which worker reads it, and a run that goes on
from a saved state sees other samples than one that was not stopped. Here every sample has a seed of its own. The order
is BasicSR's, which is the same for all seeds.
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
    """Batches of one process: its share of the batches of all.

    The positions of an epoch are shuffled as by BasicSR's EnlargedSampler. Batch b of all processes together is what
    one process with as large a batch would have.

    Args:
        size: images in the data set.
        enlarge: times that an epoch goes through it.
        batch_size: of each process.
        rank, world_size: which process this is, of how many.
        seed: of the augmentations.
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
    """A data set whose samples are augmented by the seed of their place."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, place: Place) -> Any:
        seed, index = place
        try:
            with seeded(seed):
                return self.dataset[index]
        except UserError as error:  # a loader's worker would bury its message in a traceback
            return error
        except FAILURES:  # of a data set of the user's own: the run is saved before it ends
            return DataError(f'sample {index} of {type(self.dataset).__name__} fails:\n{traceback.format_exc()}')


def collate(samples: list[Any]) -> Any:
    """A batch, or what went wrong with one of its samples."""
    return next((sample for sample in samples if isinstance(sample, UserError)), None) or default_collate(samples)


class Loaded:
    """The batches of a loader; a sample that could not be read is an error here.

    Raises:
        UserError: of a sample.
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
            worker_init_fn=ignore_signals,  # which go to workers too: the main process alone decides
            generator=torch.Generator().manual_seed(0),  # or the loader would draw from the one for rotations
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            for batch in self.loader:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if 'DataLoader worker (pid' not in str(error):  # else it is one of the data set's own
                raise
            *_, why = str(error).splitlines()
            raise DataError(
                f'a process that reads the training images has ended, perhaps for lack of memory: {why} '
                '(num_worker_per_gpu: 0 reads them in the main process)'
            ) from error


def patches_of_an_update(opt: dict[str, Any]) -> int:
    """In all processes together; without a launcher one process has all GPUs."""
    shares = opt['world_size'] if opt['dist'] else max(1, opt['num_gpu'])
    return int(opt['datasets']['train']['batch_size_per_gpu'] * shares)


def endless(dataset: Dataset[Any], order: Order, opt: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
    """The batches of one process, with prefetch_mode 'cuda' on the GPU.

    BasicSR's prefetch_mode 'cpu' waits for ever when reading fails; the loader's own workers read ahead as well.
    """
    options = opt['datasets']['train']
    loaded = Loaded(dataset, order, options)
    yield from uploaded(loaded) if options.get('prefetch_mode') == 'cuda' else loaded


def uploaded(batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Batches, copied to the GPU while it computes.

    BasicSR's CUDAPrefetcher does not say that the tensors are used beside its own stream: their memory may be taken for
    the next batch while they still are. And with a batch that cannot be read it loses the one before.
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
    """Batches, read two before their turn: if one cannot be, several processes can still agree to save what they have.

    Raises:
        UserError: of a batch, in its turn.
    """

    def __init__(self, batches: Generator[dict[str, Any], None, None]) -> None:
        self.batches = batches
        self.others = set(multiprocessing.active_children())
        self.read: deque[dict[str, Any]] = deque()
        self.error: UserError | None = None
        """Of the batch after those that were read."""

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
        """End what `endless` began since this was made, its loader's workers too.

        They ignore signals, of which PyTorch's way to end those that did not hear is one: without this, a run that
        failed could wait for them for ever.
        """
        self.batches.close()
        for worker in set(multiprocessing.active_children()) - self.others:
            worker.kill()
