"""Data made by `nlsn prepare`, as a data set of mmengine."""

from __future__ import annotations

from typing import Any

from nlsn_plugin import checks
from nlsn_plugin.data.paired import SafePairedImageDataset
from nlsn_plugin.errors import ArgumentError


class SuperResolutionDataset(SafePairedImageDataset):
    """SafePairedImageDataset with arguments instead of an options dict. Registered by `nlsn_plugin.registry`.

    A sample is {'inputs': low resolution [3, h, w], 'data_samples': {'gt': [3, h * scale, w * scale], 'gt_path': ...,
    'lq_path': ...}}, RGB in [0, 1]; batches are made by collate_fn=dict(type='default_collate').

    Args:
        dataroot_gt, dataroot_lq: two LMDBs (ending in .lmdb) or two folders of images.
        scale: ratio of the images' sizes in a pair.
        gt_size: edge of the patches to train on, in pixels of the ground truth; None gives whole images.
        use_hflip, use_rot: whether to mirror and to turn the patches at random.
        filename_tmpl: name of the low-resolution file for the ground truth {}, such as '{}x2'; for folders only.

    Raises:
        ArgumentError (a ValueError): an argument has a wrong type, or gt_size is not a multiple of scale.
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
        """Saved in checkpoints; mmengine warns if it differs when a run is resumed."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return {'inputs': sample.pop('lq'), 'data_samples': sample}
