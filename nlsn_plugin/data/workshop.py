"""Makes data in a folder beside their place, moves them there when complete, and resumes after an interruption."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import lmdb

from nlsn_plugin.data.images import PNG_COMPRESSION
from nlsn_plugin.errors import SaveError, UserError
from nlsn_plugin.files import whole_lines, write_whole
from nlsn_plugin.locks import claim

RECORD = '.prepared.json'
"""File in each target that says what it was made from. It is hidden, since BasicSR's datasets skip hidden files."""

Settings = dict[str, Any]
Entry = tuple[str, bytes, tuple[int, ...]]
"""Name of an image, the bytes of its file, and its shape, [H, W, 3], or [H, W] if gray."""
Listed = tuple[str, tuple[int, ...]]
"""Name and shape of an image."""


class Store(Protocol):
    """A folder of images, or an LMDB, that is being written."""

    def __init__(self, path: Path, largest: int) -> None: ...

    def put(self, entries: Sequence[Entry]) -> None:
        """Write images; writing them again does no harm."""

    def finish(self, listed: Sequence[Listed]) -> None:
        """Complete the store, once all images are written, with their names and shapes."""

    def close(self) -> None:
        """Close the store; nothing more is written."""


class Folder:
    """A folder of image files."""

    def __init__(self, path: Path, largest: int) -> None:
        self.path = path
        path.mkdir(exist_ok=True)

    def put(self, entries: Sequence[Entry]) -> None:
        for name, content, _ in entries:
            with (self.path / name).open('wb') as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # before the journal records it as done

    def finish(self, listed: Sequence[Listed]) -> None:
        pass

    def close(self) -> None:
        pass


class Lmdb:
    """An LMDB with meta_info.txt, as BasicSR's datasets read it.

    BasicSR's LmdbMaker commits only every 5000 images, and cannot continue an LMDB.
    """

    def __init__(self, path: Path, largest: int) -> None:
        self.path = path
        self.environment = lmdb.open(os.fsencode(path), map_size=4 * largest + 2**26, lock=False)

    def put(self, entries: Sequence[Entry]) -> None:
        with self.environment.begin(write=True) as transaction:
            for key, content, _ in entries:
                transaction.put(Path(key).stem.encode('ascii'), content)

    def finish(self, listed: Sequence[Listed]) -> None:
        lines = (f'{name} ({",".join(map(str, shape))}) {PNG_COMPRESSION}\n' for name, shape in listed)
        (self.path / 'meta_info.txt').write_text(''.join(lines))

    def close(self) -> None:
        self.environment.close()


def missing(targets: Mapping[Path, Settings]) -> list[Path]:
    """List the targets that have to be made; the others exist, made from the same images in the same way.

    Raises:
        UserError: a target exists, and was made otherwise.
    """
    wanted = []
    for target, settings in targets.items():
        if not target.exists():
            wanted.append(target)
            continue
        advice = 'remove it, or give another --output' + (' or --name' if target.suffix == '.lmdb' else '')
        try:
            found = json.loads((target / RECORD).read_text())
            if not isinstance(found, dict):
                raise ValueError('no settings')
        except (OSError, ValueError):
            raise UserError(f'{target} exists already: {advice}') from None
        other = [key for key in {**found, **settings} if found.get(key) != settings.get(key)]
        if other:
            raise UserError(f'{target} exists already, and was made with other {" and ".join(other)}: {advice}')
    return wanted


class Workshop:
    """Makes targets, image by image. Images that were done before an interruption are not done again.

    Args:
        targets: paths of the targets, with their settings.
        kind: class of the targets, Folder or Lmdb.
        images: names of the images that they are made from.
        largest: upper bound of the bytes of raw pixels that go to one target.

    Raises:
        UserError: another process is making the same, or the place cannot be written to.
    """

    def __init__(
        self, targets: Mapping[Path, Settings], kind: type[Store], images: Sequence[str], largest: int
    ) -> None:
        self.targets, self.images = targets, images
        first = next(iter(targets))
        self.path = first.parent / f'.preparing_{first.name}'
        with contextlib.ExitStack() as opened, named(self.path.parent):
            self.path.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context((self.path / 'lock').open('w'))
            claim(file, self.path, f'another process is writing to {self.path}: wait for it')
            self.done: dict[str, list[list[Listed]]] = dict(self.taken_over())
            written = self.path / 'done.jsonl'
            write_whole(written, lambda temporary: temporary.write_text(''.join(map(self.line_of, self.done))))
            self.journal = opened.enter_context(written.open('a'))
            self.stores = {target: kind(self.place(target), largest) for target in targets}
            for store in self.stores.values():
                opened.callback(store.close)
            self.opened = opened.pop_all()

    def taken_over(self) -> list[Any]:
        """Lines of the journal of an interrupted attempt; an attempt for another plan is removed.

        The earlier plan may have had further targets at its end, which are in place now, or no longer wanted.
        """
        plan = [[*self.images], *([str(target), settings] for target, settings in self.targets.items())]
        kept = self.path / 'plan.json'
        before: list[Any] = next(whole_lines(kept), [])
        done = []
        if plan == before[: len(plan)] and all(self.place(target).is_dir() for target in self.targets):
            done = list(whole_lines(self.path / 'done.jsonl'))
        else:
            kept.unlink(missing_ok=True)  # first, so that no interruption leaves a plan without its data
            for path in self.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != 'lock':
                    path.unlink()
        write_whole(kept, lambda temporary: temporary.write_text(json.dumps(plan)))
        return done

    def place(self, target: Path) -> Path:
        return self.path / f'{list(self.targets).index(target)}_{target.name}'

    def put(self, image: str, entries: Mapping[Path, Sequence[Entry]]) -> None:
        """Write the entries made from one image to each target, and note it in the journal."""
        with named(self.path):
            for target, store in self.stores.items():
                store.put(entries[target])
            self.done[image] = [[(name, shape) for name, _, shape in entries[target]] for target in self.targets]
            self.journal.write(self.line_of(image))
            self.journal.flush()

    def line_of(self, image: str) -> str:
        """Line of the journal for an image that was done."""
        return json.dumps([image, self.done[image]]) + '\n'

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Complete the targets and move them into place, unless an error ended the block."""
        with self.opened, named(self.path):
            if kind is not None:
                return
            for number, (target, store) in enumerate(self.stores.items()):
                store.finish([entry for image in sorted(self.done) for entry in self.done[image][number]])
                store.close()
                (self.place(target) / RECORD).write_text(json.dumps(self.targets[target], indent=1) + '\n')
            for target in reversed(list(self.targets)):  # the first last: the workshop is found again by its name
                target.parent.mkdir(parents=True, exist_ok=True)
                self.place(target).rename(target)
            shutil.rmtree(self.path)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn a failure to write, as on a full disk or without permission, into an error that says where.

    Raises:
        SaveError: in place of OSError and lmdb.Error.
    """
    try:
        yield
    except (OSError, lmdb.Error) as error:
        reason = getattr(error, 'strerror', None) or error
        raise SaveError(f'cannot write to {path}: {reason}; what was made so far is kept') from error
