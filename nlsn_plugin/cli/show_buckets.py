"""`nlsn show-buckets`: draws what a pixel attends to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nlsn_plugin.cli.drawings import check_drawing
from nlsn_plugin.cli.parser import sentence
from nlsn_plugin.compat import load_toolbox
from nlsn_plugin.errors import UserError
from nlsn_plugin.files import exists, is_file

TEXT = 'buckets and attention weights of one pixel, in a picture'


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        'show-buckets',
        help=TEXT,
        description=f'{sentence(TEXT)}: the bucket of each round over the image, the weights of NLSA beside those '
        'of standard attention with the same features, the sizes of buckets.',
    )
    parser.add_argument('image', type=Path, help='low-resolution image')
    parser.add_argument('--at', type=int, nargs=2, required=True, metavar=('X', 'Y'), help='the pixel')
    parser.add_argument('-opt', dest='option_file', help='option file of the network, or the name of a shipped one')
    parser.add_argument(
        '--net', nargs='+', metavar='WORD', help='TYPE WEIGHTS [KEY=VALUE ...], as for nlsn benchmark, instead'
    )
    parser.add_argument('--scale', type=int, choices=[2, 3, 4], help='of --net (default: 2)')
    parser.add_argument('--layer', type=int, help='which attention, counted from 0 (default: the last)')
    parser.add_argument('--n-hashes', type=int, help="rounds of hashing (default: the network's own)")
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'], help='(default: cpu)')
    parser.add_argument('--output', type=Path, help='PNG (default: buckets_<image>.png)')
    parser.add_argument('--force', action='store_true', help='overwrite a drawing that is there')
    parser.set_defaults(run=show_buckets)


def show_buckets(args: argparse.Namespace) -> None:
    load_toolbox('basicsr')
    import numpy as np
    from basicsr.utils import img2tensor

    from nlsn_plugin.data.images import read_image
    from nlsn_plugin.engine.devices import device_of
    from nlsn_plugin.engine.evaluation.attention_view import draw, features_of, view
    from nlsn_plugin.engine.evaluation.contestants import Contestant, from_option_file, from_words
    from nlsn_plugin.engine.names import readable
    from nlsn_plugin.models.inference import window_of

    if (args.option_file is None) == (args.net is None):
        raise UserError('name the network either by -opt FILE or by --net TYPE WEIGHTS')
    if args.option_file and args.scale:
        raise UserError('--scale comes from the option file: leave it out')
    if not is_file(args.image):
        raise UserError(f'there is no image {args.image}')
    path = args.output or Path(f'buckets_{args.image.stem}.png')
    check_drawing(path)
    if exists(path) and not args.force:
        raise UserError(f'{path} is there already: --force overwrites it')
    if exists(path) and path.samefile(args.image):
        raise UserError(f'--output {path} is the image itself')
    device_of(args.device)
    recipe = from_option_file(args.option_file) if args.option_file else from_words(args.net, args.scale or 2)
    window = window_of({'type': recipe.type, **recipe.arguments})
    image = read_image(args.image)
    image = image[: image.shape[0] // window * window, : image.shape[1] // window * window]  # whole windows
    column, row = args.at
    if not (0 <= row < image.shape[0] and 0 <= column < image.shape[1]):
        part = f' in whole windows of {window}' if window > 1 else ''
        raise UserError(
            f'--at {column} {row}: {args.image} has {image.shape[1]}x{image.shape[0]} pixels{part}, from 0 on'
        )
    contestant = Contestant(recipe, args.device)
    contestant.hash_by(args.n_hashes, None)
    x = img2tensor(image.astype(np.float32) / 255)[None].to(args.device)
    layer, features = features_of(contestant.net, x, args.layer)
    if features.shape[-2:] != x.shape[-2:]:
        sizes = f'{list(features.shape[-2:])} pixels, the image has {list(x.shape[-2:])}'
        raise UserError(f'the layer works on {sizes}: choose another by --layer')
    title = readable(f'{recipe.label} x{recipe.scale}, pixel ({column}, {row}) of {args.image.name}')
    draw(image, view(layer, features, row, column), row, column, title, path)
    print(readable(f'drawn: {path}'))
