"""`nlsn upscale`: enlarges pictures."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from nlsn_plugin.cli.parser import sentence
from nlsn_plugin.cli.streams import abandon
from nlsn_plugin.engine.options.words import pairs
from nlsn_plugin.errors import SaveError, UserError
from nlsn_plugin.files import exists, is_dir

TEXT = 'enlarge pictures by 2, 3 or 4'


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        'upscale',
        help=TEXT,
        description=f'{sentence(TEXT)}: PNG, JPEG, WebP, TIFF and BMP, of 8 or 16 bits; colour profile, EXIF and '
        'transparency are kept. A picture that fails is reported, and the rest goes on.',
        epilog='Exit status: 0 if all went well, 1 if not. Examples: nlsn upscale photo.jpg; '
        "nlsn upscale frames/ -o larger/ --scale 4 --suffix '' --resume",
    )
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help="files, folders, patterns, or '-' for stdin")
    parser.add_argument(
        '-o', '--output', metavar='OUT', help="a file, a folder, or '-' for stdout (default: beside each picture)"
    )
    network = parser.add_argument_group('network')
    network.add_argument('--scale', type=int, choices=[2, 3, 4], help='(default: that of --weights, or 2)')
    network.add_argument('--weights', type=Path, help='.pt, .pth or .safetensors (default: small ones in the package)')
    network.add_argument(
        '--set',
        nargs='+',
        action='extend',
        metavar='KEY=VALUE',
        default=[],
        dest='arguments',
        help='arguments of the network that its file does not say',
    )
    network.add_argument('--n-hashes', type=int, help="rounds of hashing (default: the network's own)")
    network.add_argument('--self-ensemble', action='store_true', help='mean over eight orientations, 8 times as slow')
    network.add_argument('--device', help="'cpu', 'cuda' or 'cuda:N' (default: cuda if there is a GPU)")
    network.add_argument('--dtype', default='float32', help='float32, bfloat16 or float16 (default: float32)')
    network.add_argument(
        '--tile',
        default='auto',
        help="'none', a number of pixels, or 'auto': in tiles only where memory does not suffice (default: auto)",
    )
    network.add_argument('--tile-overlap', type=int, help='pixels that tiles share (default: 32)')
    results = parser.add_argument_group('results')
    results.add_argument('--format', help="png, jpeg, webp, tiff or bmp (default: the original's)")
    results.add_argument('--quality', type=int, help='of JPEG and WebP, 1 to 100 (default: 95)')
    results.add_argument(
        '--suffix', help='appended to the names of results, unless OUT is a file (default: _x2, by the scale)'
    )
    results.add_argument('--compare', action='store_true', help='write ..._compare.png too: bicubic and the result')
    results.add_argument('--force', action='store_true', help='overwrite results that are there (never originals)')
    results.add_argument('--resume', action='store_true', help='leave out results that are there')
    results.add_argument('--max-megapixels', type=float, help='refuse pictures that say they have more (default: 100)')
    results.add_argument('--json', action='store_true', help='a line of JSON for each picture on stdout')
    parser.set_defaults(run=upscale)


def upscale(args: argparse.Namespace) -> None:
    from nlsn_plugin.engine.upscaling import batch
    from nlsn_plugin.engine.upscaling.finding import find_inputs
    from nlsn_plugin.engine.upscaling.upscaler import OVERLAP, Settings, Upscaler

    if args.output == '':
        raise UserError("-o is empty: a file, a folder or '-' is expected")
    inputs = find_inputs(args.inputs, args.output, args.suffix)
    output = chosen_output(args, inputs)
    tile = args.tile if args.tile in ('auto', 'none') else as_number(args.tile)
    if tile == 'none' and args.tile_overlap is not None:
        raise UserError('--tile-overlap is for tiles, and --tile none makes none: leave one out')
    overlap = OVERLAP if args.tile_overlap is None else args.tile_overlap
    arguments = pairs(args.arguments)
    if args.n_hashes is not None and 'n_hashes' in arguments:
        raise UserError(f'--n-hashes {args.n_hashes} and --set n_hashes={arguments["n_hashes"]}: leave one out')
    settings = Settings(
        args.scale, args.weights, arguments, args.n_hashes, args.self_ensemble, args.device, args.dtype, tile, overlap
    )
    upscaler = Upscaler(settings)
    if args.suffix is None:
        output = replace(output, suffix=f'_x{upscaler.scale}')
    if batch.run(inputs, upscaler, output, as_json if args.json else as_text(output.place)):
        sys.exit(1)


def chosen_output(args: argparse.Namespace, inputs: list[Any]) -> Any:
    """Build the `Output` that the command line asks for; `inputs` are those of `find_inputs`.

    Raises:
        UserError: options are invalid, contradict one another, or have no effect.
    """
    from nlsn_plugin.data.encoding import LOSSY, QUALITY
    from nlsn_plugin.data.pictures import FORMATS, MOST_PIXELS, SUFFIXES
    from nlsn_plugin.engine.upscaling.finding import STANDARD
    from nlsn_plugin.engine.upscaling.planning import Output

    kind = SUFFIXES.get(f'.{args.format.lower()}') if args.format else None
    if args.format and kind is None:
        raise UserError(f'--format {args.format}: choose {", ".join(name.lower() for name in FORMATS)}')
    place = args.output
    is_stdout = place == STANDARD
    is_folder = not is_stdout and (place is None or is_for_a_folder(place))
    if place is None and any(found.is_standard for found in inputs):
        raise UserError('a picture of the standard input needs a place: add -o OUT')
    if is_stdout and sys.__stdout__ is None:  # some services start programs so
        raise UserError('-o -: standard output is closed')
    is_file = not is_stdout and not is_folder
    if is_file:
        of_name = SUFFIXES.get(Path(place).suffix.lower())
        if of_name is None:
            raise UserError(f'-o {place}: its ending is none of {", ".join(SUFFIXES)}; a folder is named {place}/')
        if kind not in (None, of_name):
            raise UserError(f'-o {place} and --format {args.format} differ: leave --format out')
        kind = of_name
    if not is_folder and len(inputs) > 1:
        raise UserError(f'-o {place} is one file, for {len(inputs)} pictures: name a folder')
    for option, given, needs in (
        ('--suffix', args.suffix is not None, 'a folder'),
        ('--compare', args.compare, 'a file or a folder'),
        ('--resume', args.resume, 'a file or a folder'),
        ('--json', args.json, 'a file or a folder'),
    ):
        if given and (is_stdout or (option == '--suffix' and not is_folder)):
            raise UserError(f'{option} needs {needs} for its output: -o {place} is none')
    if args.suffix and '/' in args.suffix:
        raise UserError(f'--suffix {args.suffix} is not allowed: a part of a name is expected')
    if args.force and args.resume:
        raise UserError('--force overwrites what --resume leaves: leave one out')
    if args.quality is not None:
        if not 1 <= args.quality <= 100:
            raise UserError(f'--quality {args.quality} is not allowed: 1 to 100 is expected')
        kinds = [kind] if kind else [SUFFIXES.get(found.path.suffix.lower()) for found in inputs]
        if not {*LOSSY, None}.intersection(kinds):  # None: the name does not tell the format
            raise UserError(f'--quality is for JPEG and WebP, not for {kinds[0]}: leave it out')
    megapixels = MOST_PIXELS / 1e6 if args.max_megapixels is None else args.max_megapixels
    if not (megapixels > 0 and math.isfinite(megapixels * 1e6)):
        raise UserError(f'--max-megapixels {megapixels:g} is not allowed: a number of more than 0 is expected')
    return Output(
        place,
        is_file,
        kind,
        args.quality or QUALITY,
        args.suffix or '',
        args.force,
        args.resume,
        args.compare,
        int(megapixels * 1e6),
    )


def is_for_a_folder(place: str) -> bool:
    """Whether `place` names a folder for results, rather than a file.

    Raises:
        UserError: it names a folder, but a file is there, or nothing can be written there.
    """
    path = Path(place)
    try:
        if is_dir(path):
            return True
        by_name = place.endswith('/') or not path.suffix
        if by_name and exists(path):
            raise UserError(f'-o {place} is a file: a folder is expected, or a name that ends in .png or the like')
    except OSError as error:
        raise UserError(f'-o {place} cannot be written: {error.strerror}') from error
    return by_name


def as_number(tile: str) -> int:
    try:
        return int(tile)
    except ValueError:
        raise UserError(f"--tile {tile}: 'auto', 'none' or a number of pixels is expected") from None


def as_json(record: dict[str, Any]) -> None:
    """Print the record of a picture as a line of JSON, and a failure on stderr too."""
    if record['status'] == 'failed':
        put(f'nlsn: {record["error"]}', sys.stderr)
    put(json.dumps(record), sys.stdout)


def as_text(place: str | None) -> Callable[[dict[str, Any]], None]:
    """Return a function that prints the record of a picture on stdout, or on stderr if it failed or `place` is '-'."""

    def say(record: dict[str, Any]) -> None:
        if record['status'] == 'failed':
            put(f'nlsn: {record["error"]}', sys.stderr)
            return
        text = f'{record["input"]} -> {record["output"]}: '
        if record['status'] == 'skipped':
            text += 'is there already'
        else:
            text += f'{record["width"]}x{record["height"]}, {record["seconds"]:.1f} s'
            text += f', {record["tiles"]} tiles' if record.get('tiles', 1) > 1 else ''
            text += ''.join(f'; {note}' for note in record['notes'])
        put(text, sys.stderr if place == '-' else sys.stdout)

    return say


def put(line: str, stream: TextIO) -> None:
    """Print a line without breaking a progress bar.

    Raises:
        SaveError: the stream cannot be written to.
        BrokenPipeError: the reader of the stream has ended.
    """
    from tqdm import tqdm

    from nlsn_plugin.engine.names import one_line

    try:
        tqdm.write(one_line(line), file=stream)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon(stream)
        name = 'standard error' if stream is sys.stderr else 'standard output'
        raise SaveError(f'{name} could not be written: {error.strerror}') from error
