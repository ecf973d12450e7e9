"""A network that enlarges pictures one at a time, as a whole or in tiles, according to the memory."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nlsn_plugin import checks
from nlsn_plugin.data.pictures import Picture
from nlsn_plugin.data.pixels import as_tensor, bleed, larger_alpha, quantised
from nlsn_plugin.engine.available_memory import available_memory, is_out_of_memory
from nlsn_plugin.engine.devices import device_of
from nlsn_plugin.engine.dtypes import DTYPES
from nlsn_plugin.engine.upscaling import memory
from nlsn_plugin.errors import FAILURES, ArgumentError, UserError, first_line
from nlsn_plugin.layers.nlsa import attentions_of, set_rounds
from nlsn_plugin.models.building import channels_of, network_of, scale_of
from nlsn_plugin.models.checkpoint import read_stored
from nlsn_plugin.models.description import Description, describe, warn_of_assumed
from nlsn_plugin.models.inference import cuts, enlarged, in_whole_windows, window_of
from nlsn_plugin.ops.cpu_matmul import has_products_in

SCALES = (2, 3, 4)
OVERLAP = 32
"""Default number of pixels that neighbouring tiles share."""
LUMA = torch.tensor([0.299, 0.587, 0.114])
"""Weights of BT.601. A network for RGB is given a gray picture in all three channels; its output is averaged by these
weights."""

Advance = Callable[[float], object]

log = logging.getLogger('nlsn_plugin')


@dataclass(frozen=True)
class Settings:
    """How pictures are enlarged.

    Attributes:
        scale: 2, 3 or 4, or with `weights` the scale that these are for; None is that of `weights`, or 2.
        weights: a file that `load_network` reads; None is the small network that comes with the package.
        arguments: arguments of the network that the file does not say.
        n_hashes: rounds of hashing; None keeps the network's own number.
        self_ensemble: whether the result is the mean over eight orientations.
        device: 'cpu', 'cuda' or 'cuda:N'; None is a GPU if there is one.
        dtype: 'float32', 'bfloat16' or 'float16', the type of the features.
        tile: edge of a tile in pixels of the picture; 'none' for the whole picture; 'auto' for the whole picture if
            memory allows, else for tiles that fit.
        overlap: pixels that neighbouring tiles share at least; with 'auto' no more than half a tile.
    """

    scale: int | None = None
    weights: str | Path | None = None
    arguments: dict[str, Any] | None = None
    n_hashes: int | None = None
    self_ensemble: bool = False
    device: str | torch.device | None = None
    dtype: str = 'float32'
    tile: int | str = 'auto'
    overlap: int = OVERLAP


@dataclass(frozen=True)
class Result:
    """An enlarged picture, and how it was made.

    Attributes:
        picture: the result, with the profile, EXIF and format of the original.
        tile: edge of a tile; None if the picture was enlarged as a whole.
        tiles: number of tiles.
        predicted: bytes that the memory model predicted at first.
        notes: what did not go as usual, a line each.
    """

    picture: Picture
    tile: int | None
    tiles: int
    predicted: int
    notes: list[str]


class Upscaler:
    """A network with its weights on its device; enlarges one picture after another.

    Raises:
        UserError: weights are missing or do not fit, settings are out of range or contradict one another, or there is
            no such device.
    """

    def __init__(self, settings: Settings) -> None:
        check(settings)
        self.settings = settings
        self.device = device_of(settings.device)
        self.dtype = DTYPES[settings.dtype]
        weights = settings.weights or weights_in_the_box(settings.scale or 2)
        net, description = network_in(weights, settings)
        if (
            self.device == 'cpu'
            and not has_products_in(self.dtype)
            and any(type(m) is nn.Conv2d for m in net.modules())
        ):
            log.warning('convolutions in %s are very slow on this CPU: float32 is faster', settings.dtype)
        self.scale = scale_of(net)
        if settings.scale not in (None, self.scale):
            raise ArgumentError(f'{weights} enlarges by {self.scale}, not by {settings.scale}: leave the scale out')
        if settings.n_hashes is not None and not attentions_of(net):
            raise ArgumentError(f'n_hashes={settings.n_hashes}: {weights} hashes nothing: leave it out')
        set_rounds(net, settings.n_hashes)
        self.channels = channels_of(net)
        self.net = net.to(self.device)
        self.window = window_of({'type': description.type, **description.arguments})

    def enlarge(self, picture: Picture, named: str, advance: Advance = lambda share: None) -> Result:
        """Enlarge a picture.

        Args:
            picture: what to enlarge.
            named: its name in messages.
            advance: is called with each share of the work that is done; the shares add up to 1, unless memory runs out
                on the way and the work begins again in smaller tiles.

        Raises:
            UserError: there is too little memory even for the smallest tiles, or the picture has colours and the
                network takes gray.
        """
        notes: list[str] = []
        colour = picture.colour if picture.alpha is None else bleed(picture.colour, picture.alpha)
        if self.channels == 1 and colour.ndim == 3:
            raise UserError(f'{named} has colours, and the network takes gray')
        height, width = colour.shape[:2]
        tile, predicted = self.plan(height, width, named, notes)
        while True:
            try:
                y = self.run(self.as_input(colour), tile, advance)
                break
            except (*FAILURES, MemoryError) as error:
                tile = self.smaller_tile(tile, height, width, named, error, notes)
        if tile is not None and self.overlap(tile) < self.settings.overlap:
            notes.append(f'tiles share {self.overlap(tile)} pixels, not {self.settings.overlap}: at most half a tile')
        alpha = None if picture.alpha is None else larger_alpha(picture.alpha, self.scale)
        larger = replace(picture, colour=self.as_pixels(y, colour), alpha=alpha)
        return Result(larger, tile, self.count(height, width, tile), predicted, notes)

    def plan(self, height: int, width: int, named: str, notes: list[str]) -> tuple[int | None, int]:
        """Choose the edge of a tile, None for the whole picture, and predict the bytes that this takes.

        Raises:
            UserError: the picture and its result alone take more memory than is free.
        """
        wanted = self.settings.tile
        always = memory.held(height, width, self.scale, self.settings.self_ensemble)
        there = available_memory('cpu')
        if always > there:
            raise UserError(
                f'{named} of {width}x{height} pixels and its x{self.scale} take {always / 1e9:.1f} GB, and only '
                f'{there / 1e9:.1f} GB are free: cut the picture into pieces'
            )
        on_cpu = always if self.device == 'cpu' else 0
        tile: int | None = None
        if isinstance(wanted, int):
            tile = wanted if wanted < max(height, width) else None
        elif wanted == 'auto':
            room = memory.USABLE * available_memory(self.device) - on_cpu
            tile = memory.tile_that_fits(self.net, self.scale, height, width, self.dtype, room)
            tile = tile if tile is not None and tile < max(height, width) else None
        edges = (height, width) if tile is None else (min(tile, height), min(tile, width))
        predicted = memory.needed(self.net, self.scale, *edges, self.dtype) + on_cpu
        if tile is not None and wanted == 'auto':
            whole = memory.needed(self.net, self.scale, height, width, self.dtype) + on_cpu
            notes.append(f'the whole would take about {whole / 1e9:.1f} GB of memory: done with {described(tile)}')
            log.warning('%s: %s', named, notes[-1])
        return tile, predicted

    def smaller_tile(
        self, tile: int | None, height: int, width: int, named: str, error: Exception, notes: list[str]
    ) -> int:
        """The edge of a tile to try next after `error`, if that says that memory ran out.

        Raises:
            UserError: something else went wrong, or the tile is not chosen by 'auto' or cannot be smaller.
        """
        subject = f'{named} of {width}x{height} pixels'
        if not is_out_of_memory(error):
            raise UserError(f'{subject}: the network fails on it: {first_line(error)}') from error
        edge = tile or max(height, width)
        smaller = max(memory.SMALLEST_TILE, edge // 2)
        if self.settings.tile != 'auto':
            raise UserError(f'{subject}: too little memory for {described(tile)}; try --tile auto') from error
        if smaller >= edge:
            raise UserError(f'{subject}: too little memory even for {described(tile)}') from error
        notes.append(f'memory ran out with {described(tile)}: tried again with {described(smaller)}')
        log.warning('%s: %s', named, notes[-1])
        return smaller

    def run(self, x: Tensor, tile: int | None, advance: Advance) -> Tensor:
        """Run the network, [1, C, H, W] -> [1, C, H * scale, W * scale], both in the computer's memory."""
        orientations = 8 if self.settings.self_ensemble else 1
        share = 1 / (orientations * self.count(x.shape[2], x.shape[3], tile))

        def on_device(part: Tensor) -> Tensor:
            with self.reporting(share, advance):
                return self.net(part.to(self.device)).float().cpu()

        autocast = torch.autocast(torch.device(self.device).type, self.dtype, enabled=self.dtype != torch.float32)
        with torch.inference_mode(), autocast:
            return enlarged(
                in_whole_windows(on_device, self.window, self.scale),
                x,
                self.scale,
                tile,
                self.overlap(tile),
                self.settings.self_ensemble,
            )

    @contextlib.contextmanager
    def reporting(self, share: float, advance: Advance) -> Iterator[None]:
        """Call `advance` as each module of the network's body is done, with its part of `share`.

        A network without a sequential body reports all of `share` at its end.
        """
        body = getattr(self.net, 'body', None)
        steps = list(body) if isinstance(body, nn.Sequential) else [self.net]

        def one_more(*_: Any) -> None:
            advance(share / len(steps))

        with contextlib.ExitStack() as hooks:
            for step in steps:
                hooks.callback(step.register_forward_hook(one_more).remove)
            yield

    def count(self, height: int, width: int, tile: int | None) -> int:
        """Number of tiles of a picture."""
        if tile is None:
            return 1
        return math.prod(len(cuts(edge, tile, self.overlap(tile))) for edge in (height, width))

    def overlap(self, tile: int | None) -> int:
        """Pixels that neighbouring tiles share: those of the settings, but at most half a tile."""
        return self.settings.overlap if tile is None else min(self.settings.overlap, tile // 2)

    def as_input(self, colour: np.ndarray) -> Tensor:
        """Convert uint8, uint16 or float [H, W(, 3)] to float32 [1, C, H, W] in [0, 1], with the network's channels."""
        return as_tensor(colour).expand(-1, self.channels, -1, -1)

    def as_pixels(self, y: Tensor, like: np.ndarray) -> np.ndarray:
        """Convert float32 [1, C, H, W] to [H, W, 3], or to [H, W] if `like` is gray, in the dtype of `like`."""
        if like.ndim == 2 and y.shape[1] == 3:
            y = torch.einsum('nchw,c->nhw', y, LUMA)[:, None]
        pixels = y[0].permute(1, 2, 0).numpy() if like.ndim == 3 else y[0, 0].numpy()
        return quantised(pixels, like.dtype)


def network_in(weights: str | Path, settings: Settings) -> tuple[nn.Module, Description]:
    """Build the network of a file of weights; return it and its description.

    Arguments that neither the file nor the settings say are assumed to be those of the released networks, which is
    logged.

    Raises:
        UserError: see `load_network`.
    """
    stored = read_stored(weights, 'params_ema')
    arguments = dict(settings.arguments or {})
    if settings.n_hashes is not None and stored.metadata is None:
        arguments['n_hashes'] = settings.n_hashes  # otherwise the log would say that it is assumed
    description = describe(stored, weights, arguments)
    warn_of_assumed(description, weights)
    return network_of(description, stored.weights, weights), description


def check(settings: Settings) -> None:
    """Refuse settings that are out of range.

    Raises:
        ArgumentError: a setting is out of range; the message names the first one.
    """
    if settings.scale is not None:
        checks.one_of('scale', settings.scale, SCALES if settings.weights is None else (1, *SCALES, 8, 16))
    if settings.n_hashes is not None:
        checks.whole('n_hashes', settings.n_hashes, least=1)
    checks.boolean('self_ensemble', settings.self_ensemble)
    checks.one_of('dtype', settings.dtype, tuple(DTYPES))
    checks.whole('overlap', settings.overlap, least=0)
    if settings.tile not in ('auto', 'none'):
        if isinstance(settings.tile, str):
            raise ArgumentError(f"tile={settings.tile!r} is not allowed: 'auto', 'none' or a number of pixels")
        if checks.whole('tile', settings.tile, least=16) < 2 * settings.overlap:
            raise ArgumentError(
                f'tile={settings.tile} is less than twice overlap={settings.overlap}: larger tiles are expected, or '
                f'a smaller overlap (--tile-overlap {settings.tile // 2})'
            )


def weights_in_the_box(scale: int) -> Path:
    """The file of the weights that come with the package.

    Raises:
        UserError: there are none for this scale.
    """
    path = Path(str(files('nlsn_plugin'))) / 'weights' / f'nlsn_small_x{scale}.safetensors'
    if not path.is_file():
        raise UserError(f'this installation holds no weights for x{scale}: name a file of weights')
    return path


def described(tile: int | None) -> str:
    return 'the whole picture' if tile is None else f'tiles of {tile}x{tile} pixels'
