"""What `nlsn prepare` makes, as a data set of mmengine."""

from __future__ import annotations

from typing import Any

from nlsn_plugin import checks
from nlsn_plugin.data.paired import SafePairedImageDataset
from nlsn_plugin.errors import ArgumentError


class SuperResolutionDataset(SafePairedImageDataset):
    """SafePairedImageDataset by arguments instead of options. Registered by `nlsn_plugin.registry`.

    A sample is {'inputs': low resolution [3, h, w], 'data_samples': {'gt': [3, h * scale, w * scale], 'gt_path': ...,
    'lq_path': ...}}, RGB in [0, 1]; batches are made by collate_fn=dict(type='default_collate').

    Args:
        dataroot_gt, dataroot_lq: two LMDBs (ending in .lmdb) or two folders of images.
        scale: of the pairs.
        gt_size: edge of the patches to train on, in pixels of the ground truth; None gives whole images.
        use_hflip, use_rot: mirror and turn the patches at random.
        filename_tmpl: how the low-resolution file of {} is called, '{}x2'; of folders.

    Raises:
        ArgumentError (a ValueError): an argument of another type, or a gt_size that scale does not divide.
        DataError: see SafePairedImageDataset.
    """

    def __init__(
        self,
        dataroot_gt: str,
        dataroot_lq: str,
        scale: int,
        gt_size: int | None = None,
        use_hflip: bool = True,
        use_rot: bool = True,
        filename_tmpl: str = '{}',
    ) -> None:
        checks.whole('scale', scale, least=1)
        if gt_size is not None and checks.whole('gt_size', gt_size, least=1) % scale:
            nearest = gt_size // scale * scale or scale
            raise ArgumentError(f'gt_size={gt_size} is not divisible by scale={scale}: {nearest} is')
        is_lmdb = [str(root).rstrip('/').endswith('.lmdb') for root in (dataroot_gt, dataroot_lq)]
        super().__init__(
            {
                'dataroot_gt': str(dataroot_gt),
                'dataroot_lq': str(dataroot_lq),
                'io_backend': {'type': 'lmdb' if all(is_lmdb) else 'disk'},
                'filename_tmpl': filename_tmpl,
                'scale': scale,
                'phase': 'val' if gt_size is None else 'train',
                'gt_size': gt_size,
                'use_hflip': checks.boolean('use_hflip', use_hflip),
                'use_rot': checks.boolean('use_rot', use_rot),
            }
        )
        self.metainfo = {'scale': scale, 'images': len(self.paths)}
        """What mmengine compares when a run goes on."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return {'inputs': sample.pop('lq'), 'data_samples': sample}
