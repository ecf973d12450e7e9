"""`nlsn upscale` as it is typed: files, folders, streams, what is there already, what is broken."""

from __future__ import annotations

import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT, Upscale, error_of, run
from odd_files import NO_PICTURES, odd_files
from PIL import Image
from warm import start


def test_a_file_becomes_a_file_of_the_format_that_its_name_says(folder: Path, upscale: Upscale) -> None:
    assert upscale('in/a.png', '-o', 'larger.tiff') == 0
    with Image.open('larger.tiff') as larger, Image.open('in/a.png') as original:
        assert larger.format == 'TIFF'
        np.testing.assert_array_equal(np.asarray(larger)[::2, ::2], np.asarray(original))


def test_without_a_place_results_lie_beside_the_pictures(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upscale('in/a.png', 'in/c.jpg') == 0
    assert {'a_x2.png', 'c_x2.jpg'} <= {path.name for path in Path('in').iterdir()}
    assert upscale('in/a.png', '--suffix', '', '--force') == 1
    assert 'in/a.png is one of the originals' in capsys.readouterr().err


def test_a_folder_goes_on_past_what_is_broken_and_the_status_tells(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upscale('in', '-o', 'out', scale=3) == 1
    said = capsys.readouterr()
    assert sorted(path.name for path in Path('out').iterdir()) == ['a_x3.png', 'b_x3.bmp', 'c_x3.jpg']
    assert said.out.splitlines()[0].startswith('in/a.png -> out/a_x3.png: 90x60, ')
    (line,) = said.err.splitlines()
    assert line.startswith('nlsn: in/d.png is truncated or damaged: ')
    with Image.open('out/b_x3.bmp') as gray:
        assert gray.mode == 'L'


def test_patterns_and_files_are_each_taken_once(folder: Path, upscale: Upscale) -> None:
    assert upscale('in/[ab].*', 'in/a.png', 'in/c.jpg', '-o', 'out/', '--format', 'webp', '--suffix', '_large') == 0
    assert sorted(path.name for path in Path('out').iterdir()) == ['a_large.webp', 'b_large.webp', 'c_large.webp']


def test_results_that_are_there_are_left_refused_or_overwritten(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upscale('in/a.png', '-o', 'out/') == 0
    there = Path('out/a_x2.png')
    Image.new('RGB', (60, 40)).save(there)
    black = there.read_bytes()
    assert upscale('in/a.png', '-o', 'out/') == 1
    assert 'out/a_x2.png is there already: --resume leaves it, --force overwrites it' in capsys.readouterr().err
    assert upscale('in/a.png', 'in/c.jpg', '-o', 'out/', '--resume') == 0
    assert capsys.readouterr().out.startswith('in/a.png -> out/a_x2.png: is there already\nin/c.jpg -> out/c_x2.jpg: ')
    assert there.read_bytes() == black
    Image.new('RGB', (60, 41)).save(there)
    assert upscale('in/a.png', '-o', 'out/', '--resume') == 1
    assert 'of 60x41 pixels: it is not this picture enlarged by 2; --force overwrites it' in capsys.readouterr().err
    assert upscale('in/a.png', '-o', 'out/', '--force') == 0
    assert there.read_bytes() != black


def test_originals_are_never_overwritten(folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path('in/a.png').read_bytes()
    for words in (['in/a.png', '-o', 'in/', '--suffix', ''], ['in/a.png', '-o', './in/../in/a.png']):
        assert upscale(*words, '--force') == 1
        assert 'is one of the originals, and they are never overwritten' in capsys.readouterr().err
    assert Path('in/a.png').read_bytes() == before


def test_two_pictures_of_one_name_do_not_overwrite_each_other(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]
) -> None:
    Path('more').mkdir()
    shutil.copy('in/a.png', 'more/a.png')
    assert upscale('in/a.png', 'more/a.png', '-o', 'out/', '--force') == 1
    assert 'more/a.png: out/a_x2.png is made of in/a.png already' in capsys.readouterr().err


def test_a_line_of_json_for_each_picture(folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]) -> None:
    assert upscale('in', 'absent.png', '-o', 'out', '--json', '--tile', '16', '--tile-overlap', '4') == 1
    said = capsys.readouterr()
    records = {record['input']: record for record in map(json.loads, said.out.splitlines())}
    assert {name: record['status'] for name, record in records.items()} == {
        'in/a.png': 'done',
        'in/b.bmp': 'done',
        'in/c.jpg': 'done',
        'in/d.png': 'failed',
        'absent.png': 'failed',
    }
    assert records['absent.png']['error'] == 'there is no file absent.png'
    assert 'nlsn: there is no file absent.png' in said.err.splitlines()
    done = records['in/a.png']
    expected = {'output': 'out/a_x2.png', 'width': 60, 'height': 40, 'format': 'PNG', 'tile': 16, 'tiles': 6}
    assert done.items() >= {**expected, 'dtype': 'float32', 'device': 'cpu', 'scale': 2, 'bits': 8}.items()
    assert done['seconds'] > 0
    assert done['memory_peak'] > 0


def test_a_comparison_with_bicubic_lies_beside(folder: Path, upscale: Upscale) -> None:
    assert upscale('in/a.png', '-o', 'out/', '--compare') == 0
    with Image.open('out/a_x2_compare.png') as sheet, Image.open('out/a_x2.png') as larger:
        left, right = np.asarray(sheet)[28:, :60], np.asarray(sheet)[28:, -60:]
        np.testing.assert_array_equal(right, np.asarray(larger))
        bicubic = np.asarray(Image.open('in/a.png').resize((60, 40), Image.Resampling.BICUBIC))
        assert np.abs(left.astype(int) - bicubic).max() <= 2


def test_a_process_of_its_own_ends_without_a_word(folder: Path, repeating: dict[int, Path]) -> None:
    """What commands of tests that are forked would not show: the end of the interpreter."""
    words = ['-m', 'nlsn_plugin', 'upscale', 'in/a.png', '-o', 'out', '--weights', repeating[2]]
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, '')


def test_standard_input_to_standard_output(folder: Path, repeating: dict[int, Path]) -> None:
    words = [ROOT / 'tools' / 'upscale.py', '-', '-o', '-', '--weights', repeating[2]]
    with Path('in/a.png').open('rb') as given, Path('larger').open('wb') as larger:
        process = start(words, stdin=given, stdout=larger, stderr=subprocess.PIPE)
    with process:
        assert process.wait(timeout=120) == 0
        assert process.stderr is not None
        assert process.stderr.read().startswith('- -> -: 60x40, ')
    with Image.open('larger') as picture:
        assert (picture.format, picture.size) == ('PNG', (60, 40))


def test_what_the_name_says_and_what_it_is(folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy('in/a.png', 'in/e.jpg')
    assert upscale('in/e.jpg', '-o', 'out/') == 0
    assert 'in/e.jpg -> out/e_x2.png' in (said := capsys.readouterr().out)
    assert 'it is a PNG, whatever its name says' in said


def test_a_limit_of_pixels_that_can_be_raised(
    folder: Path, upscale: Upscale, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upscale('in/a.png', '-o', 'out/', '--max-megapixels', '0.0005') == 1
    assert 'says that it has 30x20 pixels: 0.0005 megapixels are allowed' in capsys.readouterr().err
    Image.new('1', (9000, 1)).save('wide.png')
    assert upscale('wide.png', '-o', 'wide.webp') == 1
    assert 'would have 18000x2 pixels, and WEBP holds 16383 along an edge' in capsys.readouterr().err
    Image.new('1', (32751, 1)).save('wide.png')
    assert upscale('wide.png', '-o', 'wide.jpg') == 1
    assert 'would have 65502x2 pixels, and JPEG holds 65500 along an edge: --format png' in capsys.readouterr().err


def test_a_quality_is_taken_where_a_result_may_have_one(folder: Path, upscale: Upscale) -> None:
    shutil.copy('in/c.jpg', 'nameless')
    sizes = {}
    for quality in ('5', '95'):
        assert upscale('in/a.png', 'in/c.jpg', '-o', f'of_{quality}', '--quality', quality) == 0
        assert upscale('nameless', '-o', f'of_{quality}', '--quality', quality) == 0
        sizes[quality] = [Path(f'of_{quality}/{name}_x2.jpg').stat().st_size for name in ('c', 'nameless')]
    assert max(sizes['5']) < min(sizes['95'])


NO_MEMORY = cv2.error('Failed to allocate 9 bytes')
NO_MEMORY.code = cv2.Error.StsNoMem


@pytest.mark.parametrize(
    ('place', 'error'),
    [
        ('upscaler.larger_alpha', RuntimeError('DefaultCPUAllocator: not enough memory')),
        ('batch.encode', NO_MEMORY),
        ('batch.side_by_side', MemoryError()),
    ],
)
def test_memory_that_runs_out_behind_the_network_fails_one_picture_alone(
    folder: Path,
    upscale: Upscale,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
) -> None:
    Image.new('RGBA', (30, 20), (9, 9, 9, 99)).save('in/alpha.png')
    name, errors = f'nlsn_plugin.engine.upscaling.{place}', [error]
    whole = pkgutil.resolve_name(name)

    def fail_once(*arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return whole(*arguments)

    monkeypatch.setattr(name, fail_once)
    assert upscale('in/alpha.png', 'in/a.png', '-o', 'out', '--compare') == 1
    said = capsys.readouterr()
    assert said.err == 'nlsn: in/alpha.png: too little memory\n'
    assert said.out.startswith('in/a.png -> out/a_x2.png: ')


def test_what_fails_otherwise_is_a_defect_and_keeps_its_trace(
    folder: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError('no memory is missing')

    monkeypatch.setattr('nlsn_plugin.engine.upscaling.batch.encode', fail)
    with pytest.raises(RuntimeError, match='no memory is missing'):
        upscale('in/a.png', '-o', 'out')


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['-'], 'a picture of the standard input needs a place: add -o OUT'),
        (['in', '-o', 'out.png'], '-o out.png is one file, for 4 pictures: name a folder'),
        (['in/a.png', '-o', 'out.gif'], '-o out.gif: its ending is none of .png'),
        (['in/a.png', '-o', 'out.png', '--format', 'jpeg'], '-o out.png and --format jpeg differ'),
        (['in/a.png', '-o', 'out', '--format', 'gif'], '--format gif: choose png, jpeg, webp, tiff, bmp'),
        (['in/a.png', '-o', 'out.png', '--quality', '9'], '--quality is for JPEG and WebP, not for PNG'),
        (['in/a.png', '-o', 'out', '--quality', '9'], '--quality is for JPEG and WebP, not for PNG: leave it out'),
        (['in/a.png', '-o', 'out', '--quality', '0'], '--quality 0 is not allowed'),
        (['in/a.png', '-o', '-', '--json'], '--json needs a file or a folder for its output'),
        (['in/a.png', '-o', 'x.png', '--suffix', 'y'], '--suffix needs a folder for its output'),
        (['in/a.png', '-o', 'out', '--suffix', '../y'], '--suffix ../y is not allowed'),
        (['in/a.png', '-o', 'out', '--force', '--resume'], '--force overwrites what --resume leaves'),
        (['in/a.png', '-o', 'out', '--tile', 'some'], "--tile some: 'auto', 'none' or a number of pixels"),
        (['in/a.png', '-o', 'out', '--tile', 'none', '--tile-overlap', '7'], '--tile-overlap is for tiles, and --tile'),
        (['in/a.png', '-o', 'out', '--set', 'n_hashes=2', '--n-hashes', '8'], '--n-hashes 8 and --set n_hashes=2: '),
        (['in/a.png', '-o', 'out', '--set', 'chunk'], 'chunk: KEY=VALUE is expected'),
        (['in/a.png', '-o', 'out', '--max-megapixels', '0'], '--max-megapixels 0 is not allowed'),
        (['in/a.png', '-o', 'out', '--max-megapixels', 'inf'], '--max-megapixels inf is not allowed'),
        (['in/a.png', '-o', 'out', '--max-megapixels', '1e308'], '--max-megapixels 1e+308 is not allowed'),
        (['in/*.gif', '-o', 'out'], 'nothing fits in/*.gif'),
        (['i*', '-o', 'out'], 'i* fits nothing but folders: name these, or the pictures in them'),
        (['.', '-o', 'out'], '. holds no pictures'),
        ([''], 'an INPUT is empty'),
        (['in/a.png', '-o', ''], '-o is empty'),
        (['in/a.png', '-o', 'n' * 300], f'-o {"n" * 300} cannot be written: File name too long'),
        (['in/a.png', '-o', 'out', '--weights', 'n' * 300], f'{"n" * 300} cannot be read: File name too long'),
        (['in/a.png', '-o', 'out', '--tile', '16'], 'tile=16 is less than twice overlap=32: larger tiles are expected'),
        (
            ['in/a.png', '-o', 'out', '--tile', '17', '--tile-overlap', '16'],
            'tile=17 is less than twice overlap=16: larger tiles are expected, or a smaller overlap (--tile-overlap 8)',
        ),
        (['in/a.png', '-o', 'out', '--device', 'meta'], "device 'meta' cannot be used: 'cpu', 'cuda' or 'cuda:N' is"),
        (
            ['in/a.png', '-o', 'out', '--weights', 'in/a.png'],
            'in/a.png does not load (nothing in it was executed): it is no file of weights: .pt, .pth or .safetensors',
        ),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_mistakes_are_one_line(folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(['upscale', *words], capsys).startswith(f'nlsn: {said}')
    assert not Path('out').exists()


def test_200_odd_files_end_in_a_result_or_in_a_line_each(tmp_path: Path, repeating: dict[int, Path]) -> None:
    contents = dict(odd_files())
    assert len(contents) >= 200
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    words = ['upscale', *contents, '-o', 'out', '--json', '--weights', repeating[2]]
    done = run('-m', 'nlsn_plugin', *words, cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stderr
    records = {record['input']: record for record in map(json.loads, done.stdout.splitlines())}
    failures = [record['error'] for record in records.values() if record['status'] == 'failed']
    assert done.stderr.splitlines() == [f'nlsn: {error}' for error in failures]
    assert len(records) == len(done.stdout.splitlines())
    assert records.keys() == contents.keys()
    for name, record in records.items():
        if record['status'] == 'done':
            with Image.open(tmp_path / record['output']) as larger:
                larger.load()
                assert larger.size == (record['width'], record['height'])
        else:
            assert record['status'] == 'failed'
            assert name in record['error']
            assert '\n' not in record['error']
    statuses = {name: record['status'] for name, record in records.items()}
    for name in (*NO_PICTURES, 'lab.tif', 'float.tif', 'of_32_bits.tif', 'moved.gif', 'says_65000.png', 'says_0.png'):
        assert statuses[name] == 'failed'
    whole = [name for name in contents if name.startswith(('good.', 'of_1x', 'of_40x', 'really_', 'palette', 'cmyk'))]
    for name in [*whole, 'gray_of_16_bits.png', 'gray_of_16_bits.tif', 'two_pages.tif', 'broken_exif.jpg']:
        assert statuses[name] == 'done', records[name]
