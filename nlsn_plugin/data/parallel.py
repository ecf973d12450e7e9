"""Many images at once, in processes of their own, with a progress bar."""

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
    """As many as this process may use cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, description: str
) -> Generator[Result | DataError, None, None]:
    """function(item) of each, in order; what is wrong with an item comes in its place.

    PyTorch's loader does it: it reads no further ahead than the results are taken, and notices a worker that died.
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
    """One core for each worker; Ctrl-C is the main process's business."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Applied(Dataset[Any]):
    """A function of each of some items."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.function(self.items[index])
        except DataError as error:
            return error
