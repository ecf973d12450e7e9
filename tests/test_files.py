from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nlsn_plugin.errors import SaveError
from nlsn_plugin.files import check_folder, check_writable, write_whole

NOT_FOR_FILES = Path('/proc')
"""Nobody can make a file in it, not even root."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path('folder').mkdir()
    Path('file').write_text('kept')
    return tmp_path


@pytest.mark.parametrize(
    ('path', 'said'),
    [
        ('folder', 'folder is a folder: name the file in it'),
        ('', '. is a folder: name the file in it'),
        ('none/a.json', 'there is no folder none'),
        ('file/a.json', 'file/a.json cannot be written: Not a directory'),
        ('n' * 300, f'{"n" * 300} cannot be written: File name too long'),
    ],
)
@pytest.mark.parametrize('whole', [False, True])
def test_files_that_cannot_be_written_are_named(folder: Path, path: str, said: str, whole: bool) -> None:
    with pytest.raises(SaveError) as error:
        check_writable(Path(path), whole)
    assert str(error.value) == said


def test_what_can_be_written_is_left_as_it_is(folder: Path) -> None:
    for path in ('file', 'folder/new', 'new'):
        check_writable(Path(path))
        check_writable(Path(path), whole=True)
    check_folder(Path('folder'))
    check_folder(Path('new/newer'))
    assert sorted(folder.iterdir()) == [folder / 'file', folder / 'folder']
    assert not list(Path('folder').iterdir())
    assert Path('file').read_text() == 'kept'


def test_devices_and_pipes_are_taken(folder: Path) -> None:
    os.mkfifo('pipe')
    check_writable(Path('pipe'))  # and does not wait for a reader
    check_writable(Path('/dev/null'))


@pytest.mark.parametrize(('path', 'said'), [('file', 'Not a directory'), ('file/new', 'Not a directory')])
def test_folders_that_cannot_be_made_are_named(folder: Path, path: str, said: str) -> None:
    with pytest.raises(SaveError) as error:
        check_folder(Path(path))
    assert str(error.value) == f'the folder {path} cannot be written to: {said}'


@pytest.mark.skipif(not NOT_FOR_FILES.is_dir(), reason='there is no such folder')
def test_folders_that_take_no_files_are_found_by_trying() -> None:
    with pytest.raises(SaveError, match='/proc/a cannot be written: '):
        check_writable(NOT_FOR_FILES / 'a')
    with pytest.raises(SaveError, match='the folder /proc/a/b cannot be written to: '):
        check_folder(NOT_FOR_FILES / 'a' / 'b')


def test_a_link_is_replaced_and_what_it_leads_to_stays(folder: Path) -> None:
    Path('link').symlink_to('file')
    write_whole(Path('link'), lambda path: path.write_text('new'))
    assert (Path('link').read_text(), Path('file').read_text()) == ('new', 'kept')
    assert not Path('link').is_symlink()


def test_a_folder_that_is_not_to_be_opened_is_no_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> None:
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(os, 'open', refuse)
    write_whole(Path('file'), lambda path: path.write_text('replaced'))
    assert Path('file').read_text() == 'replaced'


def test_threads_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    both_write = threading.Barrier(2, timeout=60)

    def write(letter: bytes) -> None:
        def save(path: Path) -> None:
            with path.open('wb') as file:
                both_write.wait()
                file.write(letter * 1000)

        write_whole(tmp_path / 'file', save)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [b'a', b'b']))
    assert (tmp_path / 'file').read_bytes() in (b'a' * 1000, b'b' * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_an_error_without_words_is_named(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError

    with pytest.raises(SaveError, match='file could not be saved: RuntimeError; what was saved before is intact'):
        write_whole(tmp_path / 'file', fail)


def test_what_is_put_in_place_was_written_to_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power cut would leave an empty file where a whole one was."""
    synced, sync = [], os.fsync

    def noted(file: int) -> None:
        synced.append((os.fstat(file).st_ino, Path('file').read_text()))
        sync(file)

    monkeypatch.setattr(os, 'fsync', noted)
    write_whole(Path('file'), lambda path: path.write_text('new'))
    assert synced[0] == (Path('file').stat().st_ino, 'kept')


def test_a_folder_under_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'scratch').symlink_to(tmp_path / 'unmounted')
    with pytest.raises(SaveError, match=r'a cannot be made: .*scratch is a link that leads nowhere'):
        check_folder(tmp_path / 'scratch' / 'a')
