"""Non-Local Sparse Attention, the layer.

Paper: Mei, Fan, Zhou, "Image Super-Resolution with Non-Local Sparse Attention", CVPR 2021, Section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nlsn_plugin import checks, ops
from nlsn_plugin.errors import ArgumentError
from nlsn_plugin.layers.residual import ResidualAttention, channels_behind
from nlsn_plugin.ops import library, traceable
from nlsn_plugin.ops.context import is_exporting
from nlsn_plugin.ops.dense import in_windows

PARTITIONS = ('lsh', 'random')


class NonLocalSparseAttention(ResidualAttention):
    """Global attention at linear cost: each pixel attends to pixels that hash alike, over several rounds.

    x -> x + res_scale * NLSA(x), on images of any height and width.

    Args:
        channels: C, of the input and the output.
        n_hashes: r, the number of independent rounds of hashing, or of random orders. It can be changed at any time,
            since training and test may use different numbers (Table 3).
        chunk_size: k, pixels per chunk of the sorted order; it can be changed at any time too.
        reduction: queries and keys have C / reduction channels; must divide C.
        res_scale: factor of the attention's output, which is added to the input.
        eval_seed: seed of the rotations or orders used in eval mode, so that the output depends only on the image and
            the weights. None draws them from the global generator in eval mode too, as the released code
            does. In training mode they always come from the global generator, drawn on the CPU for any device.
        backend: 'auto', or the name of one of the others in `nlsn_plugin.ops.BACKENDS`.
        partition: 'lsh', or 'random' for the comparison of Table 2: the pixels are cut into chunks in a random order,
            drawn anew for each round and shared by the images of a batch, rather than sorted by hash code.
        neighbours: the chunks, circularly, that a chunk attends to besides itself: 'both', as in the released code,
            'previous' or 'none'.
        window: edge in pixels of square windows, each of which attends as if it were an image (the receptive fields of
            Figure 6); those at the right and lower borders are smaller. torch.compile then compiles a graph for each
            image size. None for the whole image.

    Raises:
        ArgumentError (a ValueError): an argument is out of range, or `rotations` has a wrong shape or is given where
            none are used.

    State dict: `conv_match.0.{weight,bias}` (3x3, C -> C / reduction; theta = phi), `conv_assembly.0.{weight,bias}`
    (1x1, C -> C; g): the released code's.
    """

    rotation_bank: Tensor | None

    def __init__(
        self,
        channels: int,
        n_hashes: int = 4,
        chunk_size: int = 144,
        reduction: int = 4,
        res_scale: float = 1.0,
        eval_seed: int | None = 0,
        backend: str = 'auto',
        partition: str = 'lsh',
        neighbours: str = 'both',
        window: int | None = None,
    ) -> None:
        super().__init__(channels, reduction, res_scale)
        self.chunk_size = chunk_size
        self.backend = checks.one_of('backend', backend, ops.BACKENDS)
        self.partition = checks.one_of('partition', partition, PARTITIONS)
        self.neighbours = checks.one_of('neighbours', neighbours, tuple(ops.NEIGHBOURS))
        self.window = None if window is None else checks.whole('window', window, least=1)
        self.register_buffer('rotation_bank', None, persistent=False)
        self._n_hashes = checks.whole('n_hashes', n_hashes, least=1)
        self.eval_seed = eval_seed

    @property
    def n_hashes(self) -> int:
        """Number of hashing rounds, r."""
        return self._n_hashes

    @n_hashes.setter
    def n_hashes(self, rounds: int) -> None:
        self._n_hashes = checks.whole('n_hashes', rounds, least=1)
        self._fill_rotation_bank()

    @property
    def chunk_size(self) -> int:
        """Pixels per chunk, k."""
        return self._chunk_size

    @chunk_size.setter
    def chunk_size(self, pixels: int) -> None:
        self._chunk_size = checks.whole('chunk_size', pixels, least=1)

    @property
    def eval_seed(self) -> int | None:
        """Seed of the rotations or orders in eval mode; None draws them from the global generator."""
        return self._eval_seed

    @eval_seed.setter
    def eval_seed(self, seed: int | None) -> None:
        self._eval_seed = None if seed is None else checks.seed('eval_seed', seed)
        self._fill_rotation_bank()

    def forward(self, x: Tensor, rotations: Tensor | None = None) -> Tensor:
        """Add the attention to `x`.

        Args:
            x: [N, C, H, W], any H, W >= 1.
            rotations: the rotations to use in place of the layer's own, [C / reduction, n_hashes, m/2] with
                m = ops.count_buckets(H * W, chunk_size).

        Returns:
            [N, C, H, W].
        """
        rows = self._checked(x)
        if rotations is not None and (self.partition != 'lsh' or self.window is not None):
            raise ArgumentError(
                f'rotations are not allowed with partition={self.partition!r}, window={self.window}: they are for '
                "partition='lsh' on the whole image"
            )
        attended = self._attend(rows, rotations)
        return torch.add(x, attended, alpha=self.res_scale)

    def _attend(self, x: Tensor, rotations: Tensor | None = None) -> Tensor:
        """NLSA(x), [N, C, H, W]."""
        match, value = channels_behind(self.conv_match(x)), channels_behind(self.conv_assembly(x))  # [N, H, W, *]
        if self.window is None:
            attended = self._attend_pixels(match.flatten(1, 2), value.flatten(1, 2), rotations).view(value.shape)
        else:
            if is_exporting() and not all(isinstance(edge, int) for edge in x.shape[2:]):
                raise ArgumentError(f'window={self.window} cannot be exported for any height and width: fix the size')
            attended = in_windows(self._attend_in_each, self.window, match, value)
        return attended.permute(0, 3, 1, 2)

    def _attend_in_each(self, match: Tensor, value: Tensor) -> Tensor:
        """Attend within each window as if it were an image, [N, windows, P, *]."""
        return self._attend_pixels(match.flatten(0, 1), value.flatten(0, 1), None).view(value.shape)

    def _attend_pixels(self, match: Tensor, value: Tensor, rotations: Tensor | None) -> Tensor:
        """Attend over pixels: [N, L, C / reduction], [N, L, C] -> [N, L, C]."""
        if is_exporting():
            return traceable.attend(match, value, self._exported_rotations(rotations), self.chunk_size, self.neighbours)
        settings = self.chunk_size, self.backend, self.neighbours
        if self.partition == 'lsh':
            return ops.attend(match, value, self.rotations_for(match.shape[1], rotations), *settings)
        return ops.attend_in_order(match, value, self._random_order(match), *settings)

    def extra_repr(self) -> str:
        return (
            f'{self.channels}, n_hashes={self.n_hashes}, chunk_size={self.chunk_size}, reduction={self.reduction}, '
            f'res_scale={self.res_scale}, eval_seed={self.eval_seed}, backend={self.backend!r}, '
            f'partition={self.partition!r}, neighbours={self.neighbours!r}, '
            f'window={self.window}'
        )

    def rotations_for(self, length: int, given: Tensor | None = None) -> Tensor:
        """The rotations that hash `length` pixels, [C / reduction, r, m/2]: `given`, those of eval mode, or new ones.

        Raises:
            ArgumentError (a ValueError): `given` has another shape.
        """
        half = ops.count_buckets(length, self.chunk_size) // 2
        shape = (self.channels // self.reduction, self.n_hashes, half)
        if given is not None:
            if tuple(given.shape) != shape:
                raise ArgumentError(
                    f'rotations has the shape {list(given.shape)}: {list(shape)} is expected '
                    f'([channels / reduction, n_hashes, buckets / 2], {length} pixels in chunks of {self.chunk_size})'
                )
            return given
        if self.rotation_bank is not None and not self.training:
            if self.rotation_bank.is_meta and self._device().type != 'meta':
                self._fill_rotation_bank()  # built on the meta device; weights were assigned later
            return self.rotation_bank[..., :half]
        if half == 0:
            return torch.empty(shape, dtype=torch.float32, device='cpu')  # nothing is hashed, so nothing is drawn
        return ops.draw_rotations(*shape)

    def _exported_rotations(self, given: Tensor | None) -> Tensor:
        """Return `given` or the whole bank, of which the exported graph itself selects what an image needs."""
        if self.partition != 'lsh':
            raise ArgumentError(f'partition={self.partition!r} cannot be exported: it draws an order for each size')
        if given is not None:
            return given
        if self.training:
            raise ArgumentError('a layer in training mode cannot be exported, as it draws rotations: call eval() first')
        if self.rotation_bank is None:
            raise ArgumentError('eval_seed=None cannot be exported, as it draws rotations: a whole number is expected')
        return self.rotation_bank

    def _random_order(self, match: Tensor) -> Tensor | None:
        """Draw an order of the pixels for each round, the same for all images, [N, r, L]; None if L < chunk_size.

        In eval mode, unless eval_seed is None, round h depends on eval_seed and L alone.
        """
        images, length, _ = match.shape
        if length < self.chunk_size:
            return None
        orders = ops.draw_orders(length, self.n_hashes, None if self.training else self.eval_seed)
        return library.onto(match.device, orders).expand(images, -1, -1)

    def _fill_rotation_bank(self) -> None:
        """Draw the eval-mode rotations, [C / reduction, r, 64], round by round from a generator of this layer's own.

        Round h is therefore the same for any n_hashes and any image size.
        """
        if self.eval_seed is None:
            self.rotation_bank = None
            return
        generator = torch.Generator('cpu').manual_seed(self.eval_seed)
        size = (self.channels // self.reduction, ops.MAX_BUCKETS // 2)
        with torch.inference_mode(False):  # DistributedDataParallel writes to buffers
            rounds = [
                torch.randn(size, generator=generator, dtype=torch.float32, device='cpu') for _ in range(self.n_hashes)
            ]
            self.rotation_bank = torch.stack(rounds, dim=1).to(self._device())

    def _device(self) -> torch.device:
        weight: Any = self.conv_assembly.get_submodule('0').weight  # replicas of nn.DataParallel have no parameters()
        return torch.device(weight.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the rotations too, but keep them in float32: rounded ones would move pixels to other buckets."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fill_rotation_bank()
        return self


def attentions_of(net: nn.Module) -> list[NonLocalSparseAttention]:
    """The NonLocalSparseAttention layers of a network, in the order of its modules."""
    return [module for module in net.modules() if isinstance(module, NonLocalSparseAttention)]


def set_rounds(net: nn.Module, n_hashes: int | None) -> None:
    """Set n_hashes of all NonLocalSparseAttention layers of a network; None leaves them unchanged."""
    if n_hashes is not None:
        for layer in attentions_of(net):
            layer.n_hashes = n_hashes
