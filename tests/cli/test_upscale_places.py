"""Where `nlsn upscale` reads and writes: what is there already, names of all kinds, folders and streams that refuse."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Upscale, run
from PIL import Image, PngImagePlugin
from warm import start

from nlsn_plugin.engine.upscaling.upscaler import Upscaler


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def command(weights: Path, *words: str) -> list[str]:
    return ['-m', 'nlsn_plugin', 'upscale', *words, '--weights', str(weights)]


def test_a_comparison_that_is_there_is_left_refused_or_overwritten(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]
) -> None:
    Path('out').mkdir()
    there = Path('out/a_x2_compare.png')
    there.write_bytes(b'mine')
    assert upscale('in/a.png', '-o', 'out', '--compare') == 1
    assert 'out/a_x2_compare.png is there already: --resume leaves it' in capsys.readouterr().err
    assert names('out') == ['a_x2_compare.png']
    assert upscale('in/a.png', '-o', 'out', '--compare', '--resume') == 0
    assert there.read_bytes() == b'mine'
    assert names('out') == ['a_x2.png', 'a_x2_compare.png']
    assert upscale('in/a.png', '-o', 'out', '--compare', '--force') == 0
    assert there.read_bytes() != b'mine'


def test_a_comparison_that_is_missing_is_made_of_the_result_that_is_there(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upscale('in/a.png', '-o', 'out') == 0
    black = np.zeros((40, 60, 3), np.uint8)
    Image.fromarray(black).save('out/a_x2.png')
    assert upscale('in/a.png', '-o', 'out', '--compare', '--resume', '--json') == 0
    record = json.loads(capsys.readouterr().out)
    assert record['status'] == 'done'
    assert record['comparison'] == 'out/a_x2_compare.png'
    assert record['notes'] == ['it is there already, and was compared']
    with Image.open('out/a_x2_compare.png') as sheet, Image.open('out/a_x2.png') as larger:
        np.testing.assert_array_equal(np.asarray(larger), black)
        np.testing.assert_array_equal(np.asarray(sheet)[28:, -60:], black)
    assert upscale('in/a.png', '-o', 'out', '--compare', '--resume') == 0
    assert capsys.readouterr().out == 'in/a.png -> out/a_x2.png: is there already\n'


def test_a_folder_is_taken_without_its_own_results(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Path('in/d.png').unlink()
    shutil.copy('in/a.png', 'in/other_x2.png')  # without an original: it is one
    assert upscale('in', '--compare') == 0
    made = names('in')
    assert {'a_x2.png', 'a_x2_compare.png', 'other_x2_x2.png'} <= set(made)
    for words in (['in'], ['in', '-o', './in/']):
        assert upscale(*words, '--resume') == 0
        assert capsys.readouterr().out.count('is there already') == 4
    assert names('in') == made
    assert 'in: earlier results (8) were left out: name them to enlarge them too' in caplog.text
    assert upscale('in', '-o', 'out') == 0  # elsewhere, whatever lies there is meant
    assert 'a_x2_x2.png' in names('out')
    assert upscale('in/a_x2.png') == 0
    assert 'a_x2_x2.png' in names('in')


def test_a_suffix_of_ones_own_tells_results_too(folder: Path, upscale: Upscale) -> None:
    for _ in range(2):
        upscale('in', '--suffix', '_large', '--force')
    assert [name for name in names('in') if '_large_' in name] == []
    assert 'a_large.png' in names('in')


def test_comparisons_of_pictures_of_one_name_have_names_of_their_own(folder: Path, upscale: Upscale) -> None:
    shutil.copy('in/c.jpg', 'in/a.jpg')
    assert upscale('in/a.jpg', 'in/a.png', '-o', 'out', '--compare') == 0
    assert names('out') == ['a_x2.jpg', 'a_x2.png', 'a_x2.png_compare.png', 'a_x2_compare.png']


def test_one_picture_by_two_names_is_taken_once_and_a_link_is_another(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]
) -> None:
    Path('in/link.png').symlink_to('a.png')
    Path('in/loop.png').symlink_to('loop.png')
    absolute = str(Path('in/a.png').resolve())
    assert upscale('in/a.png', absolute, 'in/../in/a.png', 'in/link.png', 'in/loop.png', '-o', 'out') == 1
    said = capsys.readouterr()
    assert said.err == 'nlsn: there is no file in/loop.png\n'
    assert len(said.out.splitlines()) == 2
    assert names('out') == ['a_x2.png', 'link_x2.png']


def test_a_file_that_is_called_like_the_standard_input(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy('in/a.png', '-')
    standard = io.TextIOWrapper(io.BytesIO(Path('in/c.jpg').read_bytes()))
    monkeypatch.setattr(sys, 'stdin', standard)
    assert upscale('./-') == 0  # beside it, which the standard input has not
    assert upscale('-', './-', '-', '-o', 'out', '--json') == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record['output'] for record in records] == ['out/stdin_x2.jpg', 'out/-_x2.png']
    Path('-').unlink()
    shutil.copytree('in', '-')
    assert upscale('-', '-o', 'out', '--suffix', 'y') == 1
    assert capsys.readouterr().err == 'nlsn: standard input is empty\n'  # and the folder is not taken for it
    assert upscale('./-', '-o', 'of_the_folder') == 1
    assert names('of_the_folder') == ['a_x2.png', 'b_x2.bmp', 'c_x2.jpg']


def test_streams_that_are_closed_are_one_line(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, 'stdin', None)
    assert upscale('-', 'in/a.png', '-o', 'out') == 1
    said = capsys.readouterr()
    assert said.err == 'nlsn: standard input is closed\n'
    assert said.out.startswith('in/a.png -> out/a_x2.png: ')
    with Path('for_writing').open('w') as file:
        monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.FileIO(file.fileno(), 'r', closefd=False)))
        assert upscale('-', '-o', 'out') == 1
    assert capsys.readouterr().err == 'nlsn: standard input cannot be read: Bad file descriptor\n'
    monkeypatch.setattr(sys, '__stdout__', None)
    assert upscale('in/a.png', '-o', '-') == 1
    assert capsys.readouterr().err == 'nlsn: -o -: standard output is closed\n'


def links_refused(*places: Path) -> None:
    raise PermissionError(errno.EPERM, 'Operation not permitted')


@pytest.mark.parametrize('link', [os.link, links_refused])
@pytest.mark.parametrize('name', ['a_x2.png', 'a_x2_compare.png'])
def test_what_appears_while_a_picture_is_enlarged_is_left_too(
    name: str,
    link: Callable[..., None],
    folder: Path,
    upscale: Upscale,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enlarge, there = Upscaler.enlarge, Path('out', name)

    def enlarge_slowly(*args: Any) -> Any:
        there.write_bytes(b'precious')
        return enlarge(*args)

    monkeypatch.setattr(Upscaler, 'enlarge', enlarge_slowly)
    monkeypatch.setattr(os, 'link', link)
    assert upscale('in/a.png', '-o', 'out', '--compare') == 1
    assert capsys.readouterr().err == f'nlsn: {there} is there by now, and was left as it is\n'
    assert there.read_bytes() == b'precious'
    assert upscale('in/a.png', '-o', 'out', '--compare', '--force') == 0
    assert there.read_bytes() != b'precious'
    assert names('out') == ['a_x2.png', 'a_x2_compare.png']


def test_a_link_to_no_file_is_there_and_not_replaced(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]
) -> None:
    link = Path('in/a_x2.png')
    link.symlink_to('elsewhere.png')
    assert upscale('in/a.png') == 1
    assert capsys.readouterr().err.startswith('nlsn: in/a.png: in/a_x2.png is there already: ')
    assert link.is_symlink()
    assert upscale('in/a.png', '--force') == 0
    assert not link.is_symlink()


def test_endings_that_are_of_no_picture_stay_in_the_names(folder: Path, upscale: Upscale) -> None:
    found = ('img.001', 'img.002', 'img', 'saved.jfif', 'v1.5')
    for name in found:
        shutil.copy('in/c.jpg', f'in/{name}')
    assert upscale(*(f'in/{name}' for name in found), '-o', 'out') == 0
    assert names('out') == ['img.001_x2.jpg', 'img.002_x2.jpg', 'img_x2.jpg', 'saved_x2.jfif', 'v1.5_x2.jpg']


def test_names_neither_break_lines_nor_command_the_terminal(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]
) -> None:
    Path('new\nline').mkdir()
    shutil.copy('in/a.png', 'new\nline/\x1b[31mred.png')
    assert upscale('new\nline', '\x9bno.png', '-o', 'out') == 1
    said = capsys.readouterr()
    assert said.err == 'nlsn: there is no file \\x9bno.png\n'
    (line,) = said.out.splitlines()
    assert line.startswith(r'new\nline/\x1b[31mred.png -> out/\x1b[31mred_x2.png: 60x40, ')


def test_letters_that_standard_output_does_not_take_are_escaped(
    folder: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy('in/a.png', 'łódź.png')
    stream = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(stream, 'ascii', 'strict'))
    assert upscale('łódź.png', 'in/b.bmp', '-o', 'out') == 0
    lines = stream.getvalue().decode('ascii').splitlines()
    assert lines[0].startswith(r'\u0142\xf3d\u017a.png -> out/\u0142\xf3d\u017a_x2.png: ')
    assert lines[1].startswith('in/b.bmp -> out/b_x2.bmp: ')


def test_a_deep_png_that_would_have_too_long_an_edge_is_refused_before_the_work(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2.imwrite('in/wide.png', np.zeros((1, 500_001, 3), np.uint16))
    cv2.imwrite('in/gray.png', np.zeros((1, 500_001), np.uint16))
    began = []
    monkeypatch.setattr(Upscaler, 'enlarge', lambda upscaler, picture, *_: began.append(picture.colour.shape))
    with pytest.raises(AttributeError):  # as it gives nothing
        upscale('in/wide.png', 'in/gray.png', '-o', 'out')
    assert began == [(1, 500_001)]
    assert capsys.readouterr().err == (
        'nlsn: in/wide.png, enlarged, would have 1000002x2 pixels, and PNG holds 1000000 along an edge: --format tiff\n'
    )


def test_folders_in_a_folder_are_no_pictures_whatever_their_names(folder: Path, upscale: Upscale) -> None:
    Path('in/d.png').unlink()
    shutil.copytree('in', 'in/frames.png')
    assert upscale('in', '-o', 'out') == 0
    assert names('out') == ['a_x2.png', 'b_x2.bmp', 'c_x2.jpg']


def test_words_that_give_no_picture_fail_alone(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]
) -> None:
    Path('empty').mkdir()
    long = 'n' * 300 + '.png'
    assert upscale('empty', long, 'in/*.gif', 'in/a.png', '-o', 'out', '--json') == 1
    said = capsys.readouterr()
    records = [json.loads(line) for line in said.out.splitlines()]
    assert [record['status'] for record in records] == ['failed'] * 3 + ['done']
    assert [record['error'] for record in records[:3]] == [
        'empty holds no pictures (.png, .jpg, .jpeg, .jfif, .webp, .tif, .tiff, .bmp)',
        f'{long} cannot be read: File name too long',
        'nothing fits in/*.gif',
    ]
    assert said.err.splitlines() == [f'nlsn: {record["error"]}' for record in records[:3]]


def test_the_longest_names_that_there_are(folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]) -> None:
    longest, too_long = 'é' * 124 + 'n.png', 'n' * 250 + '.png'
    for name in (longest, too_long):
        shutil.copy('in/a.png', f'in/{name}')
    assert upscale(f'in/{longest}', '-o', 'out', '--suffix', 'x') == 0
    assert names('out') == ['é' * 124 + 'nx.png']
    assert len(os.fsencode(names('out')[0])) == 254
    assert upscale(f'in/{too_long}', 'in/a.png', '-o', 'out') == 1
    said = capsys.readouterr()
    assert said.err.endswith('_x2.png cannot be written: File name too long\n')
    assert said.out.startswith('in/a.png -> out/a_x2.png: ')


def test_what_cannot_be_written_to_is_found_before_the_work(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    enlarge = Upscaler.enlarge
    monkeypatch.setattr(Upscaler, 'enlarge', lambda *args: started.append(args[2]) or enlarge(*args))
    Path('Makefile2').touch()
    Path('out/a_x2.png').mkdir(parents=True)
    for place, said in (
        ('Makefile2', '-o Makefile2 is a file: a folder is expected, or a name that ends in .png or the like'),
        ('Makefile2/', '-o Makefile2/ is a file: a folder is expected, or a name that ends in .png or the like'),
        ('Makefile2/out', 'in/a.png: cannot make the folder Makefile2/out: Not a directory'),
        ('out', 'in/a.png: out/a_x2.png is a folder'),
    ):
        assert upscale('in/a.png', '-o', place) == 1
        assert capsys.readouterr().err == f'nlsn: {said}\n'
    assert started == []


def test_what_is_there_is_not_decoded_to_leave_it(
    folder: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upscale('in/a.png', '-o', 'out') == 0
    decoded = []
    load = PngImagePlugin.PngImageFile.load
    monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', lambda image: decoded.append(image.size) or load(image))
    assert upscale('in/a.png', '-o', 'out', '--resume') == 0
    assert decoded == []
    Path('out/a_x2.png').unlink()
    assert upscale('in/a.png', '-o', 'out') == 0
    assert (30, 20) in decoded  # what is enlarged is


def test_folders_that_refuse_fail_alone(folder: Path, repeating: dict[int, Path]) -> None:
    root = os.geteuid() == 0
    if root and not shutil.which('setpriv'):
        pytest.skip('root may do anything, unless setpriv is there')
    as_others = ['setpriv', '--bounding-set', '-dac_override,-dac_read_search'] if root else []
    for name, rights in (('closed', 0), ('kept', 0o500)):
        shutil.copytree('in', name)
        Path(name).chmod(rights)
    words = command(repeating[2], 'closed', 'closed/a.png', 'kept/a.png', 'in/a.png', 'closed/*.png')
    try:
        done = subprocess.run([*as_others, sys.executable, *words], capture_output=True, text=True, timeout=120)
    finally:
        for name in ('closed', 'kept'):
            Path(name).chmod(0o700)
    assert done.stderr.splitlines() == [
        'nlsn: closed cannot be read: Permission denied',
        'nlsn: closed/a.png cannot be read: Permission denied',
        'nlsn: kept/a.png: the folder kept cannot be written to: Permission denied',
        'nlsn: closed/*.png cannot be read: Permission denied',
    ]
    assert done.stdout.startswith('in/a.png -> in/a_x2.png: ')


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
@pytest.mark.parametrize('words', [['-o', '-'], ['-o', 'out']])
def test_a_full_standard_output_is_one_line(folder: Path, repeating: dict[int, Path], words: list[str]) -> None:
    with Path('/dev/full').open('wb') as full:
        process = start(command(repeating[2], 'in/a.png', *words), stdout=full, stderr=subprocess.PIPE)
    with process:
        assert process.wait(timeout=120) == 1
        assert process.stderr is not None
        assert process.stderr.read() == 'nlsn: standard output could not be written: No space left on device\n'


@pytest.mark.parametrize('words', [['-o', '-'], ['-o', 'out', '--json']])
def test_a_reader_that_has_enough_ends_it_quietly(folder: Path, repeating: dict[int, Path], words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with start(command(repeating[2], 'in/a.png', *words), stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        assert process.wait(timeout=120) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ''


def test_names_that_are_no_utf_8_are_printed_with_marks(
    folder: Path, repeating: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsdecode(b'caf\xe9.png')
    try:
        shutil.copy('in/a.png', name)
    except OSError:
        pytest.skip('file names are UTF-8 here')
    folder_of_results = Path(os.fsdecode(b'out\xe9'))
    folder_of_results.mkdir()
    for result in ('a.png', 'a_x2.png'):
        shutil.copy('in/a.png', folder_of_results / result)
    words = command(repeating[2], name, os.fsdecode(b'absent\xe9.png'), str(folder_of_results), '--force')
    monkeypatch.setenv('PYTHONIOENCODING', 'utf-8:strict')
    done = run(*words, cwd=folder, check=False)
    assert done.stderr.splitlines() == [
        'out\ufffd: earlier results (1) were left out: name them to enlarge them too',
        'nlsn: there is no file absent\ufffd.png',
    ]
    assert done.stdout.startswith('caf\ufffd.png -> caf\ufffd_x2.png: 60x40, ')
    assert Path(os.fsdecode(b'caf\xe9_x2.png')).is_file()
