"""`nlsn prepare`: makes data for training and testing from folders of images."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nlsn_plugin import checks
from nlsn_plugin.compat import load_toolbox
from nlsn_plugin.errors import UserError
from nlsn_plugin.files import check_folder

FOR_TRAINING = ('validation', 'name', 'crop_size', 'step', 'storage')
FOR_MAKING = ('input', 'output', 'scale', 'test', 'lr', *FOR_TRAINING)
"""Options that --check refuses; --test refuses those of FOR_TRAINING."""


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        'prepare',
        help='make training or test data from a folder of images',
        description='Make training data (LMDBs of sub-images) or test data (folders) from a folder of HR images; '
        'LR images are made by MATLAB-style bicubic.',
    )
    parser.add_argument('--input', type=Path, nargs='+', help='folders of HR images')
    parser.add_argument('--output', type=Path, help='folder to write to')
    parser.add_argument('--scale', type=int, nargs='+', choices=[2, 3, 4], help='of the LR images (default: 2)')
    parser.add_argument('--test', action='store_true', help='make test data: whole images in HR/ and LR_bicubic/')
    parser.add_argument(
        '--validation',
        type=Path,
        nargs='+',
        help='HR folders to validate on, such as Set5/HR; made in benchmark/ beside OUTPUT',
    )
    parser.add_argument('--lr', help='folder of given LR images, such as DIV2K_train_LR_bicubic/X{scale}')
    parser.add_argument('--name', help='what the LMDBs are called (default: DIV2K_train)')
    parser.add_argument('--crop-size', type=int, help='edge of an HR sub-image, pixels (default: 480)')
    parser.add_argument('--step', type=int, help='stride of HR sub-images, pixels (default: 240)')
    parser.add_argument('--storage', choices=['png', 'raw'], help='raw: larger, and nothing to decode (default: png)')
    parser.add_argument('--workers', type=int, help='processes (default: one for each core)')
    parser.add_argument(
        '--check', type=Path, nargs='+', metavar='LMDB', help='make nothing; check these LMDBs, or folders of LMDBs'
    )
    parser.set_defaults(run=prepare)


def prepare(args: argparse.Namespace) -> None:
    load_toolbox('basicsr')
    given = {key: value for key, value in vars(args).items() if value is not None and value is not False}
    for option in ('crop_size', 'step', 'workers'):
        if option in given:
            checks.whole(f'--{option.replace("_", "-")}', given[option], least=1)
    if '/' in given.get('name', '') or given.get('name') == '':
        raise UserError(f'--name {args.name or "(empty)"}: a name without folders is expected')
    if args.check:
        refuse(given, FOR_MAKING, 'is for making data: leave it or --check out')
        from nlsn_plugin.data.lmdb_check import check

        print('\n'.join(check(args.check, args.workers)))
        return
    for option in ('input', 'output'):
        if option not in given:
            raise UserError(f'--{option} is missing: nlsn prepare --input FOLDER --output FOLDER')
    check_folder(args.output)
    scales = args.scale or [2]
    say_what_is_passed_over([*args.input, *(args.validation or [])])
    if args.test:
        from nlsn_plugin.data.prepare import prepare_test_data

        refuse(given, FOR_TRAINING, 'is for training data: leave it or --test out')
        made = prepare_test_data(args.input, args.output, scales, args.lr, args.workers)
    else:
        chosen = {key: value for key, value in given.items() if key in ('name', 'crop_size', 'step', 'storage', 'lr')}
        made = make_training_data(args, scales, chosen)
    print('ready: ' + '\n       '.join(map(str, made)))


def say_what_is_passed_over(folders: list[Path]) -> None:
    from nlsn_plugin.data.images import passed_over

    for folder in folders:
        if left := folder.is_dir() and passed_over(folder):
            print(f'{folder}: passing over {left}')


def make_training_data(args: argparse.Namespace, scales: list[int], chosen: dict[str, Any]) -> list[Path]:
    """Make the LMDBs and the validation sets; return their paths."""
    from nlsn_plugin.data.prepare import plan_test_data, prepare_training_data

    plans: dict[Path, Any] = {}
    for folder in map(Path.resolve, args.validation or []):  # checked before hours of work
        place = args.output.parent / 'benchmark' / (folder.parent.name if folder.name == 'HR' else folder.name)
        if place in plans:
            raise UserError(f'--validation: {folder} and another folder would both be made in {place}')
        plans[place] = plan_test_data(folder, place, scales, None, args.workers)
        try:
            plans[place].missing()
        except UserError as error:
            raise UserError(f'{error}, or leave --validation {folder} out: that set is there') from error
    made = prepare_training_data(args.input, args.output, scales=scales, workers=args.workers, **chosen)
    return [*made, *(path for plan in plans.values() for path in plan.carry_out())]


def refuse(given: Iterable[str], others: Iterable[str], advice: str) -> None:
    """Refuse options that were given but would have no effect, namely `others`."""
    for option in others:
        if option in given:
            raise UserError(f'--{option.replace("_", "-")} {advice}')
