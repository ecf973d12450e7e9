"""Preparation of what BasicSR's datasets read, from folders of photographs: LR images, sub-images, LMDBs, meta info.

Training data are pairs of LMDBs of sub-images, named as in BasicSR's DIV2K recipe:

    <output>/<name>_HR_sub.lmdb, <output>/<name>_LR_bicubic_X<scale>_sub.lmdb, each with its meta_info.txt

Test data are folders, laid out as the benchmark archive of EDSR and of the NLSN authors:

    <output>/HR/<image>.png, <output>/LR_bicubic/X<scale>/<image>x<scale>.png

LR images are made by MATLAB-style bicubic reduction, or given.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nlsn_plugin.data.images import (
    SMALLEST_IMAGE,
    Sighting,
    crop_to_multiple,
    encode,
    key_of,
    list_images,
    look_at,
    read_image,
    reduce,
)
from nlsn_plugin.data.parallel import in_parallel, processes
from nlsn_plugin.data.workshop import Entry, Folder, Lmdb, Settings, Store, Workshop, missing
from nlsn_plugin.errors import ArgumentError, DataError, UserError

STORAGE = {'png': '.png', 'raw': '.bmp'}
"""Suffix of the format of an LMDB's values. A BMP holds raw pixels: it is large, and needs no decoding."""


@dataclass(frozen=True)
class Source:
    """A photograph, and its given LR images by scale, if any."""

    hr: Path
    lr: Mapping[int, Path]


def prepare_training_data(
    source: Path | Sequence[Path],
    output: Path,
    name: str = 'DIV2K_train',
    scales: Sequence[int] = (2,),
    crop_size: int = 480,
    step: int = 240,
    lr: str | None = None,
    storage: str = 'png',
    workers: int | None = None,
) -> list[Path]:
    """Write one LMDB of HR sub-images and one of LR sub-images per scale.

    Work that was interrupted is continued. LMDBs that exist already, made from the same images in the same way, are
    left as they are.

    Args:
        source: folder of 8-bit HR images with the suffixes of `images.IMAGE_SUFFIXES`, or several folders.
        output: folder where the LMDBs go.
        name: start of their names, such as DIV2K_train.
        scales: reductions; every HR image is first cropped to a multiple of all of them.
        crop_size: edge of an HR sub-image, in pixels; an image smaller than it gives one smaller sub-image.
        step: distance between neighbouring sub-images, in pixels; the last ones end at the image's edge.
        lr: folder of given LR images, with {scale} in its name if there are several scales; None makes them by bicubic.
        storage: 'png', or 'raw' for pixels that need no decoding.
        workers: number of processes; one per core if None.

    Returns:
        The paths of the LMDBs, HR first.

    Raises:
        UserError: images cannot be used (all are named), another LMDB has the name, or the disk has no room.
        ArgumentError: crop_size or step is not a multiple of the scales, or step is larger than crop_size.
    """
    scales = sorted(set(scales))
    unit = math.lcm(*scales)
    for argument, value in (('crop_size', crop_size), ('step', step)):
        if value < unit or value % unit:
            nearest = max(unit, round(value / unit) * unit)
            raise ArgumentError(
                f'{argument}={value} is not a multiple of {unit}, as scale {join(scales)} needs: {nearest}'
            )
    if step > crop_size:
        raise ArgumentError(f'step={step} is more than crop_size={crop_size}: pixels between sub-images would be lost')
    sources, seen = checked(source, scales, lr, workers)
    settings = {
        'images': digest([seen[image.hr] for image in sources]),
        'unit': unit,
        'crop_size': crop_size,
        'step': step,
        'storage': storage,
    }
    targets = {output / f'{name}_HR_sub.lmdb': settings}
    for scale in scales:
        targets[output / f'{name}_LR_bicubic_X{scale}_sub.lmdb'] = {**settings, **origin(scale, sources, seen)}

    def pixels(sighting: Sighting) -> int:
        height, width = sighting.height - sighting.height % unit, sighting.width - sighting.width % unit
        grid = len(starts(height, crop_size, step, unit)) * len(starts(width, crop_size, step, unit))
        return grid * min(crop_size, height) * min(crop_size, width)

    sizes = [(pixels(seen[image.hr]), 1.0 if storage == 'raw' else seen[image.hr].png_share) for image in sources]
    make = SubImages(scales, unit, crop_size, step, STORAGE[storage])
    return Plan(make, sources, targets, Lmdb, sizes, workers).carry_out()


def prepare_test_data(
    source: Path | Sequence[Path],
    output: Path,
    scales: Sequence[int],
    lr: str | None = None,
    workers: int | None = None,
) -> list[Path]:
    """Write HR images as PNG, and their LR images for each scale, made after cropping to a multiple of that scale.

    Gray images stay gray. The arguments, and UserError, are as for `prepare_training_data`.

    Returns:
        The paths of the folders, HR first.
    """
    return plan_test_data(source, output, scales, lr, workers).carry_out()


def plan_test_data(
    source: Path | Sequence[Path], output: Path, scales: Sequence[int], lr: str | None, workers: int | None
) -> Plan:
    """Check the images that `prepare_test_data` takes, and plan what to make of them."""
    scales = sorted(set(scales))
    sources, seen = checked(source, scales, lr, workers)
    settings: Settings = {'images': digest([seen[image.hr] for image in sources])}
    targets = {output / 'HR': settings}
    for scale in scales:
        targets[output / 'LR_bicubic' / f'X{scale}'] = {**settings, **origin(scale, sources, seen)}
    sizes = [(seen[image.hr].height * seen[image.hr].width, seen[image.hr].png_share) for image in sources]
    return Plan(Whole(scales), sources, targets, Folder, sizes, workers)


def checked(
    source: Path | Sequence[Path], scales: Sequence[int], lr: str | None, workers: int | None
) -> tuple[list[Source], dict[Path, Sighting]]:
    """Find the photographs and their LR images, and decode each of them; return both, with what decoding showed.

    Raises:
        UserError: images cannot be used; the message names all of them.
    """
    images = list_images([source] if isinstance(source, Path) else source)
    given = {scale: given_images(lr, scale, scales, images) for scale in scales} if lr else {}
    faults = [
        f'{path} has no LR image {path.stem}x{scale} or {path.stem} in {folder_of(str(lr), scale)}'
        for path in images
        for scale, found in given.items()
        if path.stem not in found
    ]
    sources = [
        Source(path, {scale: found[path.stem] for scale, found in given.items() if path.stem in found})
        for path in images
    ]
    paths = [path for image in sources for path in (image.hr, *image.lr.values())]
    looked = list(in_parallel(look_at, paths, workers or processes(), 'checking images'))
    faults += [str(result) for result in looked if isinstance(result, DataError)]
    seen = {path: result for path, result in zip(paths, looked) if isinstance(result, Sighting)}
    for image in sources:
        if image.hr in seen:
            faults += misfits(image, seen)
    if faults:
        listed = '\n  '.join(faults)
        raise UserError(listed if len(faults) == 1 else f'{len(faults)} faults, nothing was made:\n  {listed}')
    return sources, seen


def given_images(lr: str, scale: int, scales: Sequence[int], images: Sequence[Path]) -> dict[str, Path]:
    """Map the names of HR images to their LR images, called foox2 or foo: in the same way for all where possible."""
    if len(scales) > 1 and '{scale}' not in lr:
        raise UserError(
            f'--lr {lr} is one folder for scale {join(scales)}: write {{scale}} where its name has the scale'
        )
    there = {path.stem: path for path in list_images([folder_of(lr, scale)])}
    names = [path.stem for path in images]
    scaled = {name: there[f'{name}x{scale}'] for name in names if f'{name}x{scale}' in there}
    plain = {name: there[name] for name in names if name in there}
    if len(scaled) < len(plain) == len(names):
        return plain
    taken = set(scaled.values())  # each belongs to one photograph
    return {name: path for name, path in plain.items() if path not in taken} | scaled


def folder_of(lr: str, scale: int) -> Path:
    """The folder of given LR images of a scale."""
    return Path(lr.replace('{scale}', str(scale)))


def misfits(source: Source, seen: Mapping[Path, Sighting]) -> Iterator[str]:
    """Yield what is wrong with the sizes of a photograph and its LR images."""
    hr = seen[source.hr]
    size = f'{hr.width}x{hr.height}'
    if min(hr.height, hr.width) < SMALLEST_IMAGE:
        yield f'{source.hr} is of {size} pixels: at least {SMALLEST_IMAGE} each way are expected'
    for scale, path in source.lr.items():
        height, width = hr.height // scale, hr.width // scale
        lr = seen.get(path)
        if lr and (lr.height, lr.width) != (height, width):
            yield f'{path} is of {lr.width}x{lr.height} pixels: {width}x{height} are expected for {source.hr}, {size}'


def digest(sightings: Sequence[Sighting]) -> str:
    """SHA-256 of the contents of images."""
    return hashlib.sha256(' '.join(sighting.digest for sighting in sightings).encode()).hexdigest()


def origin(scale: int, sources: Sequence[Source], seen: Mapping[Path, Sighting]) -> Settings:
    """Settings that say where the LR images of a scale come from."""
    given = [seen[source.lr[scale]] for source in sources if scale in source.lr]
    return {'scale': scale, 'LR images': digest(given) if given else 'bicubic'}


@dataclass(frozen=True)
class Plan:
    """What is to be made, and from what.

    Args:
        make: called with a source, returns the entries for each target.
        sources: the photographs.
        targets: paths for the HR images and for the LR images of each scale, with their settings.
        kind: class of the targets, Folder or Lmdb.
        sizes: for each source, the pixels of its HR images, and the bytes stored per byte of raw pixels.
        workers: number of processes; one per core if None.
    """

    make: Whole | SubImages
    sources: Sequence[Source]
    targets: Mapping[Path, Settings]
    kind: type[Store]
    sizes: Sequence[tuple[int, float]]
    workers: int | None

    def missing(self) -> list[Path]:
        """List the targets that have to be made.

        Raises:
            UserError: a target exists and was made otherwise, or holds the photographs or their LR images themselves.
        """
        try:
            return missing(self.targets)
        except UserError as error:
            read = {path.parent.resolve() for source in self.sources for path in (source.hr, *source.lr.values())}
            for target in self.targets:
                if target.resolve() in read:  # which the user is not to be told to remove
                    raise UserError(f'{target} holds images that are to be read: give another --output') from error
            raise

    def carry_out(self) -> list[Path]:
        """Make the targets that are missing, and return all of them."""
        wanted = {target: self.targets[target] for target in self.missing()}
        for target in self.targets:
            if target not in wanted:
                print(f'{target} is there already, made from the same images in the same way')
        if wanted:
            self.fill(wanted)
        return list(self.targets)

    def fill(self, wanted: Mapping[Path, Settings]) -> None:
        """Make the `wanted` targets."""
        names = [source.hr.name for source in self.sources]
        largest = sum(3 * pixels for pixels, _ in self.sizes)
        with Workshop(wanted, self.kind, names, largest) as workshop:
            if workshop.done:
                print(f'{len(workshop.done)} of {len(names)} images were made before, going on')
            left = [number for number, name in enumerate(names) if name not in workshop.done]
            hr_bytes = sum(3 * self.sizes[number][0] * self.sizes[number][1] for number in left)
            check_room(workshop.path, hr_bytes * sum(settings.get('scale', 1) ** -2 for settings in wanted.values()))
            sources = [self.sources[number] for number in left]
            making = in_parallel(self.make, sources, self.workers or processes(), f'making {self.make.what}')
            with contextlib.closing(making):  # closes its progress bar too, before an error is printed
                for made, number in zip(making, left):
                    if isinstance(made, DataError):
                        raise made
                    workshop.put(names[number], dict(zip(self.targets, made)))


def check_room(folder: Path, expected: float) -> None:
    """Refuse a disk without room for what is to be written.

    Raises:
        UserError: there is too little; the message says how much is needed, as estimated from a part of each image.
    """
    free = shutil.disk_usage(folder).free
    if free < 1.1 * expected:
        raise UserError(
            f'{folder} has {free / 1e9:.2f} GB free, and about {1.1 * expected / 1e9:.2f} GB are needed: choose '
            'another --output, or fewer scales, or a larger --step'
        )


@dataclass(frozen=True)
class SubImages:
    """Cuts a photograph and its LR images into sub-images, where those at the same place belong together."""

    scales: Sequence[int]
    unit: int
    crop_size: int
    step: int
    suffix: str
    what = 'sub-images'

    def __call__(self, source: Source) -> list[list[Entry]]:
        hr = crop_to_multiple(read_image(source.hr), self.unit)
        lrs = [
            read_image(source.lr[scale])[: hr.shape[0] // scale, : hr.shape[1] // scale]
            if scale in source.lr
            else reduce(hr, scale)
            for scale in self.scales
        ]
        corners = list(sub_image_corners(hr.shape, self.crop_size, self.step, self.unit))
        made = []
        for image, scale in zip([hr, *lrs], [1, *self.scales]):
            size = self.crop_size // scale
            parts = [image[top // scale :, left // scale :][:size, :size] for top, left in corners]
            made.append(
                [
                    (f'{key_of(source.hr)}_s{number:03d}{self.suffix}', encode(part, self.suffix), part.shape)
                    for number, part in enumerate(parts, start=1)
                ]
            )
        return made


@dataclass(frozen=True)
class Whole:
    """Encodes a whole photograph and its LR images as PNG."""

    scales: Sequence[int]
    what = 'test images'

    def __call__(self, source: Source) -> list[list[Entry]]:
        hr = read_image(source.hr, keep_gray=True)
        images = {f'{source.hr.stem}.png': hr}
        for scale in self.scales:
            given = source.lr.get(scale)
            images[f'{source.hr.stem}x{scale}.png'] = (
                read_image(given, keep_gray=True) if given else reduce(crop_to_multiple(hr, scale), scale)
            )
        return [[(name, encode(image, '.png'), image.shape)] for name, image in images.items()]


def sub_image_corners(shape: Sequence[int], crop_size: int, step: int, unit: int) -> Iterator[tuple[int, int]]:
    """Yield the top-left corners of the sub-images of an image of `shape`, row by row, all multiples of `unit`."""
    for top in starts(shape[0], crop_size, step, unit):
        for left in starts(shape[1], crop_size, step, unit):
            yield top, left


def starts(length: int, crop_size: int, step: int, unit: int) -> list[int]:
    last = max(0, length - crop_size) // unit * unit
    regular = list(range(0, last + 1, step))
    return regular if regular[-1] == last else [*regular, last]


def join(values: Sequence[int]) -> str:
    return ' and '.join(map(str, values))
