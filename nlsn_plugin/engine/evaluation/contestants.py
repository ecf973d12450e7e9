"""Networks to compare, named by option files or on the command line: how they are built, loaded and set to hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.utils import img2tensor, tensor2img
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from nlsn_plugin import checks
from nlsn_plugin.archs.bases import completed, innermost
from nlsn_plugin.custom_imports import digest_of_code
from nlsn_plugin.engine.available_memory import is_out_of_memory
from nlsn_plugin.engine.options.classes import Misfits, misfits_of_class
from nlsn_plugin.engine.options.documents import Document, find_option_file
from nlsn_plugin.engine.options.misfits import misfits_of_network
from nlsn_plugin.engine.options.reading import Options, check_scale, checked, complete_paths, home
from nlsn_plugin.engine.options.words import pairs
from nlsn_plugin.errors import FAILURES, ArgumentError, UserError, first_line
from nlsn_plugin.files import is_file
from nlsn_plugin.layers.nlsa import attentions_of
from nlsn_plugin.metrics.protocols import in_colour
from nlsn_plugin.models.building import ADVICE, build
from nlsn_plugin.models.checkpoint import load_weights, read_stored, read_weights
from nlsn_plugin.models.description import settled
from nlsn_plugin.models.inference import enlarged, in_whole_windows, window_of


@dataclass(frozen=True)
class Recipe:
    """All that is needed to build a network and load its weights.

    Attributes:
        label: name of the network in tables.
        type: name of its class in BasicSR's registry.
        arguments: arguments of that class.
        scale: factor by which it enlarges.
        weights: path of the file of weights.
        param_key: key of the weights in that file, see `read_weights`.
    """

    label: str
    type: str
    arguments: dict[str, Any]
    scale: int
    weights: str
    param_key: str | None


@dataclass(frozen=True)
class Inference:
    """How images are enlarged.

    Attributes:
        tile: edge of a tile in LR pixels; None enlarges the image as a whole.
        tile_overlap: LR pixels that neighbouring tiles share.
        self_ensemble: whether the result is the mean over eight orientations.
    """

    tile: int | None = None
    tile_overlap: int = 16
    self_ensemble: bool = False


def from_words(words: Sequence[str], scale: int) -> Recipe:
    """Make the recipe that `--net TYPE WEIGHTS [KEY=VALUE ...]` asks for.

    Args:
        words: the words after --net; keys are arguments of the network, label and param_key.
        scale: used where the words name no upscale.

    Raises:
        UserError: a word is missing or too many, there is no such network, or it does not take the arguments.
    """
    shown = f'--net {" ".join(words)}'
    plain = [word for word in words if not re.match(r'\w+=', word) or names_a_file(word)]
    if len(plain) != 2:
        raise UserError(f'{shown}: TYPE WEIGHTS [KEY=VALUE ...] is expected, such as --net NLSN nlsn_x2.pt n_hashes=8')
    kind, weights = plain
    try:
        arguments = pairs(word for word in words if word not in plain)
    except ArgumentError as error:
        raise UserError(f'{shown}: {error}') from error
    label, key = arguments.pop('label', None), arguments.pop('param_key', 'params_ema')
    arguments = by_metadata(kind, arguments, weights, key)
    options = completed({'type': kind, **arguments}, {'num_in_ch': 3, 'num_out_ch': 3, 'upscale': scale})
    refuse_first(misfits_of_class((), kind, options, ARCH_REGISTRY), shown)
    factor = checks.whole('upscale', innermost(options).get('upscale', scale), least=1)
    refuse_first(misfits_of_network((), options), shown)
    arguments = {key: value for key, value in options.items() if key != 'type'}
    return Recipe(kind if label is None else str(label), kind, arguments, factor, weights, key)


def names_a_file(word: str) -> bool:
    try:
        return is_file(Path(word))
    except OSError:  # too long for a file name, as an argument that is a list may be
        return False


def refuse_first(mistakes: Misfits, shown: str) -> None:
    """Raise UserError with the first of the mistakes, if there is one; `shown` is what the user has typed."""
    for keys, text in mistakes:
        raise UserError(': '.join([shown, *keys, text]))


def from_option_file(name: str) -> Recipe:
    """Make the recipe of the network_g of an option file.

    The weights are those that pretrain_network_g names or, if the file is for training, those that its run saved last.

    Raises:
        UserError: there is no such file, it has mistakes, or it names no weights.
    """
    path = find_option_file(name)
    document = Document(path)
    is_train = 'train' in document.options
    opt: Options = {**checked(document, is_train), 'is_train': is_train}
    check_scale(opt, path)
    complete_paths(opt, home(opt, path, Path.cwd()))
    if is_train:
        weights, key = str(last_saved(Path(opt['path']['models']))), 'params_ema'
    else:
        weights, key = opt['path'].get('pretrain_network_g'), opt['path'].get('param_key_g')
    if weights is None:
        raise UserError(f'{path} names no weights: set path: pretrain_network_g')
    arguments = dict(opt['network_g'])
    kind, scale = arguments.pop('type'), opt['scale']
    arguments = by_metadata(kind, arguments, weights, key)
    label = opt['name'].removeprefix('test_').removesuffix(f'_x{scale}')
    return Recipe(label, kind, arguments, scale, weights, key)


def last_saved(models: Path) -> Path:
    """The file of the network that a training run saved last.

    A run that has not ended has no net_g_latest.pth, or one from an earlier run; so the newest file is taken.
    """
    latest = models / 'net_g_latest.pth'
    saved = [path for path in models.glob('net_g_*.pth') if path.stem.removeprefix('net_g_').isdigit()]
    return max([latest, *saved], key=lambda path: (path.stat().st_mtime if path.exists() else -1, path == latest))


def by_metadata(kind: str, arguments: dict[str, Any], weights: str, param_key: str | None) -> dict[str, Any]:
    """Complete a network's arguments by the metadata of its file of weights; unchanged if there is no such file.

    Raises:
        UserError: the file does not load, or its metadata contradict the arguments.
    """
    if not is_file(Path(weights)):
        return arguments
    return settled(kind, arguments, read_stored(weights, param_key).metadata, weights)


class Contestant:
    """A network with its weights.

    Attributes:
        recipe: what it was made from.
        net: the network, in eval mode, on its device.
        digest: SHA-256 of the file of weights.
        code: digest of the user's own classes in the network; None if it has none.
        attentions: the layers that hash, in order.
        own: rounds and eval_seed of each of them, as the network was built.
        first_seed: eval_seed of the first of them; None if there are none.
        n_hashes: rounds of all of them; None if there are none, or if their rounds differ.

    Raises:
        UserError: the weights are missing or do not fit, or eval_seed is null, so that results would vary.
    """

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe = recipe
        net = build(recipe.type, recipe.arguments, recipe.label).eval()
        if load_weights(net, read_weights(recipe.weights, recipe.param_key), recipe.weights, advice=ADVICE):
            raise UserError(f'{recipe.label}: {recipe.weights} has no weights of attentions: they would be untrained')
        self.net = net.to(device)
        self.digest = hashlib.sha256(Path(recipe.weights).read_bytes()).hexdigest()
        self.code = digest_of_code(net)
        self.attentions = attentions_of(net)
        self.own = [(each.n_hashes, each.eval_seed) for each in self.attentions if each.eval_seed is not None]
        self.first_seed = self.own[0][1] if self.own else None
        rounds = {n_hashes for n_hashes, _ in self.own}
        self.n_hashes = rounds.pop() if len(rounds) == 1 else None
        if len(self.own) < len(self.attentions):
            text = 'with eval_seed null each evaluation hashes differently: give a number, or leave it out'
            raise UserError(f'{recipe.label}: {text}')

    def hash_by(self, n_hashes: int | None, seed: int | None) -> None:
        """Set how the attentions hash.

        Args:
            n_hashes: rounds of all attentions; None gives each its own number.
            seed: seed of the first attention, by which all seeds are shifted; None gives each its own.
        """
        shift = 0 if seed is None or self.first_seed is None else seed - self.first_seed
        for attention, (own_rounds, own_seed) in zip(self.attentions, self.own):
            attention.n_hashes = own_rounds if n_hashes is None else n_hashes
            attention.eval_seed = own_seed + shift

    def enlarge(self, lr: np.ndarray, inference: Inference) -> np.ndarray:
        """Enlarge an 8-bit image, BGR [h, w, 3] or gray [h, w], to 8-bit BGR [h * scale, w * scale, 3].

        Raises:
            UserError: see `upscale`.
        """
        x = img2tensor(in_colour(lr).astype(np.float32) / 255)[None]
        y = upscale(self.net, x.to(next(self.net.parameters()).device), self.recipe, inference)
        return np.ascontiguousarray(tensor2img(y))


def upscale(net: nn.Module, x: Tensor, recipe: Recipe, inference: Inference) -> Tensor:
    """Enlarge an image, [1, 3, h, w] -> [1, 3, h * scale, w * scale].

    Raises:
        UserError: the network fails on it, lacks memory, or enlarges by another factor than the recipe says.
    """

    def fitting(x: Tensor) -> Tensor:
        y = net(x)
        expected = [1, 3, *(recipe.scale * size for size in x.shape[-2:])]
        if list(y.shape) != expected:
            raise UserError(
                f'{recipe.label} made {list(y.shape)} of {list(x.shape)}: {expected} is expected at '
                f'x{recipe.scale}; say its scale by --scale'
            )
        return y

    try:
        whole = in_whole_windows(fitting, window_of({'type': recipe.type, **recipe.arguments}), recipe.scale)
        with torch.no_grad():
            return enlarged(whole, x, recipe.scale, **asdict(inference))
    except UserError:
        raise
    except (*FAILURES, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError(f'{recipe.label} has too little memory for {list(x.shape)}: try --tile 256') from error
        raise UserError(f'{recipe.label} fails on an input of shape {list(x.shape)}: {first_line(error)}') from error
