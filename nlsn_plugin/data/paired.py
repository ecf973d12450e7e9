"""Pairs of images read as BasicSR does, with errors that name the file or key, and what is wrong with it."""

from __future__ import annotations

import os
import re
import threading
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import bgr2ycbcr, img2tensor
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import Dataset
from torchvision.transforms.functional import normalize

from nlsn_plugin.data.damage import named_in_errors
from nlsn_plugin.data.images import contents
from nlsn_plugin.errors import DataError
from nlsn_plugin.files import exists, is_file

Options = dict[str, Any]

LISTED = re.compile(r'(?P<key>[^.\s]+)\.\w+ \((?P<height>\d+),(?P<width>\d+),(?P<channels>\d+)\) \d+')
"""Matches a line of an LMDB's meta_info.txt, such as `baboon.png (120,125,3) 1`."""


def build_dataset(options: Options) -> Dataset[Any]:
    """Build a data set from its options; a PairedImageDataset becomes a SafePairedImageDataset, with the same samples.

    Nothing is logged, unlike by BasicSR's build_dataset: a run whose data are faulty leaves no log behind.

    Raises:
        DataError: the data are faulty, or an option that the class needs is missing.
    """
    paired = options['type'] == 'PairedImageDataset'
    dataset_class = SafePairedImageDataset if paired else DATASET_REGISTRY.get(options['type'])
    try:
        dataset: Dataset[Any] = dataset_class(deepcopy(options))
    except KeyError as error:
        raise DataError(f'data set {options["name"]}: {options["type"]} needs the key {error.args[0]}') from error
    return dataset


class SafePairedImageDataset(PairedImageDataset):
    """PairedImageDataset that says which data are faulty; BasicSR's own fails without saying so, or waits for ever.

    Registered by `nlsn_plugin.registry`. Options and samples are PairedImageDataset's.

    Raises:
        DataError: when built, if the folders or LMDBs do not hold pairs; when read, if an image is faulty.
    """

    def __init__(self, opt: Options) -> None:
        for key in ('dataroot_gt', 'dataroot_lq'):
            root = Path(opt[key])
            if not exists(root):
                raise DataError(f'there is no {root} ({key})')
            if opt['io_backend']['type'] == 'lmdb':
                check_lmdb(root)
                opt = {**opt, key: str(root)}  # without the slash that shells append to folders
            elif is_file(root / 'data.mdb'):
                raise DataError(
                    f'{root} is an LMDB ({key}), and folders of images were asked for: two LMDBs are expected, whose '
                    'names end in .lmdb, and in an option file io_backend: {type: lmdb}'
                )
        try:
            super().__init__(opt)
        except (AssertionError, ValueError, FileNotFoundError, NotADirectoryError) as error:
            roots = f'{opt["dataroot_gt"]} and {opt["dataroot_lq"]}'
            reason = ' '.join(str(error).split()).replace('lq_paths', 'the latter').replace('gt_paths', 'the former')
            raise DataError(f'{roots} do not hold pairs: {reason}{hint_at_template(opt)}') from error
        if not self.paths:
            raise DataError(f'there is no image in {opt["dataroot_gt"]}')
        if opt['phase'] == 'train' and opt['io_backend']['type'] == 'lmdb':  # in folders, when they are read
            for line in contents(Path(self.gt_folder) / 'meta_info.txt').decode('ascii', 'replace').splitlines():
                if listed := LISTED.fullmatch(line):
                    self.check_size(listed['key'], int(listed['height']), int(listed['width']))

    def __getitem__(self, index: int) -> dict[str, Any]:
        paths, scale = self.paths[index], self.opt['scale']
        gt_path, lq_path = paths['gt_path'], paths['lq_path']
        gt, lq = self.read(self.gt_folder, gt_path), self.read(self.lq_folder, lq_path)
        height, width = lq.shape[0] * scale, lq.shape[1] * scale
        is_training = self.opt['phase'] == 'train'
        exact = gt.shape[:2] == (height, width)
        if not exact and (is_training or not all(map(is_cut_from, lq.shape[:2], gt.shape[:2], (scale, scale)))):
            raise DataError(
                f'{self.named(self.gt_folder, gt_path)} is {gt.shape[1]}x{gt.shape[0]}, and '
                f'{self.named(self.lq_folder, lq_path)} {lq.shape[1]}x{lq.shape[0]}: the former should be {scale} '
                'times as large'
            )
        if is_training:
            self.check_size(gt_path, *gt.shape[:2])
            gt, lq = paired_random_crop(gt, lq, self.opt['gt_size'], scale, gt_path)
            gt, lq = augment([gt, lq], self.opt['use_hflip'], self.opt['use_rot'])
        if self.opt.get('color') == 'y':
            gt, lq = (bgr2ycbcr(image, y_only=True)[..., None] for image in (gt, lq))
        if not is_training:
            gt = gt[:height, :width]
        gt, lq = img2tensor([gt, lq], bgr2rgb=True, float32=True)
        if self.mean is not None or self.std is not None:
            for image in (gt, lq):
                normalize(image, self.mean, self.std, inplace=True)
        return {'lq': lq, 'gt': gt, 'lq_path': lq_path, 'gt_path': gt_path}

    def check_size(self, gt_path: str, height: int, width: int) -> None:
        """Refuse an image that is smaller than a patch."""
        size = self.opt['gt_size']
        if min(height, width) < size:
            raise DataError(
                f'{self.named(self.gt_folder, gt_path)} is {width}x{height}: '
                f'at least gt_size, {size}x{size}, is expected'
            )

    def read(self, root: str, path: str) -> np.ndarray[Any, Any]:
        """Read an image as float32 in [0, 1], BGR [H, W, 3]."""
        is_lmdb = self.io_backend_opt['type'] == 'lmdb'
        content = stored(root, path) if is_lmdb else contents(Path(path))
        with named_in_errors(self.named(root, path)):
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if len(content) else None
        if image is None or is_cut_short(content):
            raise DataError(f'{self.named(root, path)} is not an image, or a damaged one ({len(content)} bytes)')
        return image.astype(np.float32) / 255.0

    def named(self, root: str, path: str) -> str:
        return f'{root}, key {path},' if self.io_backend_opt['type'] == 'lmdb' else str(path)


def hint_at_template(opt: Options) -> str:
    """The end of a message: the filename_tmpl that would make pairs of two folders of images, if there is one."""
    if opt['io_backend']['type'] != 'disk':
        return ''
    gt, lq = ({path.stem for path in Path(opt[key]).glob('[!.]*.*')} for key in ('dataroot_gt', 'dataroot_lq'))
    template = f'{{}}x{opt["scale"]}'
    fits = bool(gt) and all(template.format(name) in lq for name in gt)
    return (
        f" (filename_tmpl: '{template}' makes pairs of them)" if fits and opt.get('filename_tmpl') != template else ''
    )


def is_cut_short(content: bytes) -> bool:
    """Whether a JPEG ends within its pixels; OpenCV before 5 fills the missing rows with gray."""
    return content[:2] == b'\xff\xd8' and content.rfind(b'\xff\xd9') < content.rfind(b'\xff\xda')


def is_cut_from(lq: int, gt: int, scale: int) -> bool:
    """Whether edge `lq` can come from edge `gt`: cut at its end, by up to 11 pixels say, and reduced by `scale`."""
    return lq * scale <= gt and (gt - lq * scale < scale or gt // lq == scale)


OPEN: dict[str, lmdb.Environment] = {}
"""LMDBs that this process has open, by real path: a process may open each only once."""
LOOKED_AT: dict[str, tuple[int, ...]] = {}
"""Device, inode, size and time of each data.mdb that `check_lmdb` accepted, by real path."""
READING = threading.Lock()
"""Lock to hold while OPEN is used."""


def stored(path: str, key: str) -> bytes:
    """Read the value of a key that meta_info.txt lists; the LMDB stays open.

    Raises:
        DataError: the key is missing, or the LMDB is damaged there.
    """
    try:
        with READING, environment(path).begin() as transaction:
            value = transaction.get(key.encode('ascii'))
    except lmdb.Error as error:
        raise DataError(f'{path}, key {key}, cannot be read: {error}') from error
    if value is None:
        raise DataError(f'{path} has no key {key}, which its meta_info.txt lists')
    return bytes(value)


def keys(path: str) -> list[bytes]:
    """List the keys of an LMDB, which stays open. If it is damaged, liblmdb may abort the process."""
    with READING, environment(path).begin() as transaction:
        return [bytes(key) for key in transaction.cursor().iternext(values=False)]


def environment(path: str) -> lmdb.Environment:
    """Return an LMDB, opening it if needed. READING has to be held."""
    place = os.path.realpath(path)
    if place not in OPEN:
        OPEN[place] = lmdb.open(os.fsencode(path), readonly=True, lock=False, readahead=False)
    return OPEN[place]


def close_before_fork() -> None:
    """Close all LMDBs: a child can neither use nor reopen what its parent has open. Both reopen them when they read."""
    READING.acquire()  # until after the fork, since other threads may be reading
    while OPEN:
        OPEN.popitem()[1].close()


if hasattr(os, 'register_at_fork'):  # not on Windows, where nothing is forked
    os.register_at_fork(before=close_before_fork, after_in_parent=READING.release, after_in_child=READING.release)


def check_lmdb(path: Path) -> None:
    """Refuse an LMDB whose file is shorter than its pages: reading it would end the process with a bus error.

    Raises:
        DataError: it lacks a file, is damaged, or was cut short.
    """
    for name in ('data.mdb', 'meta_info.txt'):
        if not is_file(path / name):
            raise DataError(f'{path} is no LMDB of images: there is no {path / name}')
    place, file = os.path.realpath(path), (path / 'data.mdb').stat()
    identity = file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns
    try:
        with READING:
            if LOOKED_AT.get(place) == identity:
                return
            if place in OPEN:  # the file that this one has replaced
                OPEN.pop(place).close()
            with lmdb.open(os.fsencode(path), readonly=True, lock=False, readahead=False) as environment:
                expected = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
    except lmdb.Error as error:
        raise DataError(f'{path / "data.mdb"} is damaged: {error}') from error
    if file.st_size < expected:
        raise DataError(f'{path / "data.mdb"} was cut short: {file.st_size} bytes, {expected} are expected')
    LOOKED_AT[place] = identity
