"""Stops at the moments that do harm: while the plan is written or dropped, and while data move into place."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nlsn_plugin import locks
from nlsn_plugin.cli import main
from nlsn_plugin.data.parallel import in_parallel
from nlsn_plugin.data.prepare import prepare_test_data
from nlsn_plugin.data.workshop import RECORD, Folder, Workshop
from nlsn_plugin.errors import DataError, UserError


class Stop(BaseException):
    """As if the process ended here."""


@pytest.fixture
def prepare(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make test data for scales, up to the n-th call of a function if a stop is asked for."""

    def made(
        scales: list[int], owner: object = None, name: str = '', calls: int = 0, source: Path = photographs
    ) -> Path:
        if owner is None:
            prepare_test_data(source, tmp_path / 'out', scales, workers=1)
            return tmp_path / 'out'
        function, called = getattr(owner, name), []

        def stopping(*args: object, **more: object) -> object:
            if len(called) == calls:
                raise Stop
            called.append(args)
            return function(*args, **more)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, stopping)
            with pytest.raises(Stop):
                prepare_test_data(source, tmp_path / 'out', scales, workers=1)
        return tmp_path / 'out'

    return made


@pytest.fixture
def whole(photographs: Path, tmp_path: Path) -> dict[str, bytes]:
    """What comes of scales 2 and 3 without a stop."""
    prepare_test_data(photographs, tmp_path / 'undisturbed', [2, 3], workers=1)
    return images(tmp_path / 'undisturbed')


def images(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*.png')}


Prepare, Images = Callable[..., Path], dict[str, bytes]


@pytest.mark.parametrize('moved', [0, 1, 2])
def test_a_stop_between_the_moves_is_gone_on_with(
    moved: int, prepare: Prepare, whole: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare([2, 3], Path, 'rename', moved)
    capsys.readouterr()
    prepare([2, 3])
    said = capsys.readouterr().out
    assert said.count('is there already') == moved
    assert '4 of 4 images were made before, going on' in said
    assert images(folder) == whole
    assert sorted(path.name for path in folder.iterdir()) == ['HR', 'LR_bicubic']  # and no workshop


def test_what_was_moved_and_then_removed_is_made_again(prepare: Prepare, whole: Images) -> None:
    folder = prepare([2, 3], Path, 'rename', 1)
    for path in folder.glob('[!.]*'):
        shutil.rmtree(path)
    prepare([2, 3])
    assert images(folder) == whole


def test_what_was_made_for_fewer_scales_is_not_taken_for_all(
    prepare: Prepare, whole: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare([2, 3], Workshop, 'put', 1)
    prepare([2], Workshop, 'put', 1)
    prepare([2], Workshop, 'put', 1)
    assert re.findall(r'(\d) of 4 images were made before', capsys.readouterr().out) == ['1', '2']
    assert images(prepare([2, 3])) == whole
    assert 'were made before' not in capsys.readouterr().out


@pytest.mark.parametrize('name', ['aaa.png', 'astronaut.bmp'])
def test_what_was_made_of_an_image_that_is_renamed_then_is_dropped(
    name: str, prepare: Prepare, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = Path(shutil.copytree(photographs, tmp_path / 'renamed'))
    prepare([2], Workshop, 'put', 2, source=renamed)
    (renamed / 'astronaut.png').rename(renamed / name)  # the first, as before
    made = images(prepare([2], source=renamed))
    assert 'were made before' not in capsys.readouterr().out
    assert sorted(path for path in made if 'HR' in path) == sorted(f'HR/{path.stem}.png' for path in renamed.iterdir())


def test_a_stop_while_another_plan_is_dropped(prepare: Prepare, whole: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare([2, 3], Workshop, 'put', 3)
    listdir = os.listdir  # in any order; here the folders come first
    monkeypatch.setattr(Path, 'iterdir', lambda path: (path / name for name in sorted(listdir(path))))
    prepare([3, 4], os, 'unlink', 2)
    assert images(prepare([2, 3])) == whole
    assert sorted(path.name for path in folder.iterdir()) == ['HR', 'LR_bicubic']


@pytest.mark.parametrize('left', ['', '[["out/HR", {"images'])
def test_a_plan_that_was_cut_short_is_none(left: str, prepare: Prepare, whole: Images, tmp_path: Path) -> None:
    workshop = tmp_path / 'out' / '.preparing_HR'
    workshop.mkdir(parents=True)
    (workshop / 'plan.json').write_text(left)
    (workshop / 'done.jsonl').write_text('["coffee.png", [[], [], []]]\n')
    assert images(prepare([2, 3])) == whole


def test_folders_whose_names_are_no_utf_8(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = os.fsdecode(b'out\xff')
    try:
        Path(place).mkdir()
    except OSError:
        pytest.skip('file names are UTF-8 here')
    stream = io.BytesIO()
    monkeypatch.setattr('sys.stdout', io.TextIOWrapper(stream, 'utf-8', 'strict'))
    words = ['prepare', '--input', str(photographs), '--output', place, '--workers', '1']
    main([*words, '--name', place, '--crop-size', '48', '--step', '48'])
    for _ in range(2):
        main([*words, '--test'])
    main(['prepare', '--check', place, '--workers', '1'])
    lines = stream.getvalue().decode().splitlines()
    assert lines[0] == r'ready: out\udcff/out\udcff_HR_sub.lmdb'
    assert r'out\udcff/HR is there already, made from the same images in the same way' in lines
    assert lines[-2] == r'out\udcff/out\udcff_HR_sub.lmdb: 30 images, all whole'


@pytest.mark.parametrize('record', ['', '[]', 'null'])
def test_data_whose_record_is_none_are_not_taken_for_ours(record: str, prepare: Prepare) -> None:
    folder = prepare([2])
    (folder / 'HR' / RECORD).write_text(record)
    with pytest.raises(UserError, match='HR exists already: remove it'):
        prepare([2])


def test_a_full_disk_leaves_the_plan_as_it_was(
    prepare: Prepare, whole: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare([2, 3], Workshop, 'put', 3)
    prepare([2, 3], Path, 'write_text', 0)  # of the plan
    assert images(prepare([2, 3])) == whole
    assert '3 of 4 images were made before, going on' in capsys.readouterr().out


def test_a_plan_that_is_dropped_leaves_the_lock(tmp_path: Path) -> None:
    """Without it another process would lock a new file of its name, and both would write."""
    for image in ('one', 'another'):
        with contextlib.suppress(Stop), Workshop({tmp_path / 'HR': {}}, Folder, [image], 1) as workshop:
            assert (workshop.path / 'lock').is_file()
            raise Stop


def test_a_lock_that_some_systems_do_not_permit_is_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(locks.fcntl, 'lockf', refuse)
    with pytest.raises(UserError, match='another process is writing to'):
        Workshop({tmp_path / 'HR': {}}, Folder, ['one'], 1)


def test_a_file_system_without_locks_is_told_and_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(locks.fcntl, 'lockf', refuse)
    with Workshop({tmp_path / 'HR': {}}, Folder, ['one'], 1):
        pass
    assert (tmp_path / 'HR').is_dir()
    assert 'cannot be kept from other processes: No locks available' in capsys.readouterr().err


def test_a_process_that_was_killed_is_told() -> None:
    def fall(number: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DataError, match=r'^looking: a process has ended, perhaps for lack of memory'):
        list(in_parallel(fall, [1, 2], 2, 'looking'))
