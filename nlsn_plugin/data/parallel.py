"""Processing many images in parallel, in worker processes, with a progress bar."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import cv2
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from nlsn_plugin.errors import DataError

Item = TypeVar('Item')
Result = TypeVar('Result')


def processes() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, description: str
) -> Generator[Result | DataError, None, None]:
    """Yield function(item) for each item, in order; a DataError that it raises is yielded in place of its result.

    PyTorch's DataLoader does the work: it stays only a few items ahead of the consumer, and notices a worker that died.

    Raises:
        DataError: a worker died.
    """
    loader: DataLoader[Any] = DataLoader(
        Applied(function, items),
        batch_size=None,
        num_workers=min(workers, len(items)) if workers > 1 else 0,
        collate_fn=unchanged,
        worker_init_fn=alone,
    )
    with tqdm(loader, desc=description, unit='image', total=len(items)) as results:
        try:
            yield from results
        except RuntimeError as error:
            if 'DataLoader worker (pid' not in str(error):
                raise
            raise DataError(
                f'{description}: a process has ended, perhaps for lack of memory; --workers 1 takes the least'
            ) from error


def unchanged(result: Result) -> Result:
    return result


def alone(worker: int) -> None:
    """Keep OpenCV to one thread in each worker, and leave Ctrl-C to the main process."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Applied(Dataset[Any]):
    """Applies a function to an item when it is indexed, and returns a DataError that it raises."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.function(self.items[index])
        except DataError as error:
            return error
