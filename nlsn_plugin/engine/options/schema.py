"""What an option file may say: every key that the plugin and BasicSR's image models read, its type and its meaning.

Keys that only one model reads are found by `model_keys.py`.
Sections that name a class (network_g, losses, optimisers, schedulers, metrics) hold that class's own arguments, which
`reading.py` compares with its signature.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    model_validator,
)
from pydantic.fields import FieldInfo

from nlsn_plugin.engine.names import CONTROL


def whole(value: Any) -> Any:
    """Refuse true and text ('5', or 5e3, which is text in YAML) as whole numbers; 5.0e+3 and !!float 5e3 are some."""
    if isinstance(value, (bool, str)):
        is_number = isinstance(value, str) and re.fullmatch(r'\d+(\.\d*)?[eE]\+?\d{1,2}', value)
        raise ValueError('a whole number is expected' + (f' (in YAML write {float(value):.0f})' if is_number else ''))
    return value


def switched(value: Any) -> Any:
    """Turn false back into 'off', which YAML 1.1 reads as false."""
    return 'off' if value is False else value


def folder_name(name: str) -> str:
    """Refuse a name that is not that of a folder inside another one, or that would break a line of the log."""
    if name in ('', '.', '..') or '/' in name or CONTROL.search(name):
        raise ValueError('the name of a folder is expected')
    return name


def part_of_a_name(text: str) -> str:
    """Refuse text that, as part of a file's name, would lead out of its folder."""
    if '/' in text or '\0' in text:
        raise ValueError('a part of a name is expected, without folders')
    return text


def template(name: str) -> str:
    """Refuse a name without {}, which stands for the name of the other image."""
    try:
        is_one = 'stem' in name.format('stem')
    except (ArithmeticError, AttributeError, LookupError, ValueError):
        is_one = False
    if not is_one:
        raise ValueError("a name with {} in it is expected, such as '{}x2'")
    return name


def gpus(value: Any) -> Any:
    """Refuse anything but a number of GPUs or 'auto'."""
    if value == 'auto' or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError("'auto', or a whole number of at least 0, is expected")


Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Whole = Annotated[int, BeforeValidator(whole), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(whole), Field(ge=1)]
Name = Annotated[Text, AfterValidator(folder_name)]
PartOfName = Annotated[Text, AfterValidator(part_of_a_name)]
Seed = Annotated[int, BeforeValidator(whole), Field(ge=0, lt=2**32)]
GPUs = Annotated[int | Literal['auto'], BeforeValidator(gpus)]


READERS = {'NLSNModel': 'NLSNModel', 'GAN': 'GAN models', 'training': 'training', 'testing': 'testing'}
"""Readers of keys that not everything reads, and their names in messages.

A reader is a part of the name of a model's class or of one of its base classes, or one of the two commands.
"""


def read_by(reader: str, default: Any, description: str) -> Any:
    """A field that only one of READERS reads; `misfits.ignored` refuses it elsewhere."""
    return Field(default, description=f'{description} ({READERS[reader]})', json_schema_extra={'read_by': reader})


def reader_of(field: FieldInfo) -> str | None:
    """The one of READERS that reads a key; None if all do."""
    extra = field.json_schema_extra
    return str(extra['read_by']) if isinstance(extra, dict) else None


class Section(BaseModel):
    """A section that has no keys but those listed."""

    model_config = ConfigDict(extra='forbid', protected_namespaces=())  # else pydantic before 2.10 warns of model_type


class Typed(BaseModel):
    """A class by its name, with its arguments beside it."""

    model_config = ConfigDict(extra='allow')
    type: Text = Field(description='name of the class')


class Backend(Section):
    type: Literal['disk', 'lmdb'] = Field(description='how the images lie')


class PairedDataset(Section):
    name: Name = Field(description='for the log, and of the folder of its images')
    type: Literal['PairedImageDataset', 'SafePairedImageDataset'] = Field(description='pairs of images')
    dataroot_gt: Text = Field(description='folder or LMDB of high-resolution images')
    dataroot_lq: Text = Field(description='folder or LMDB of low-resolution images')
    io_backend: Backend = Field(description='type: disk or lmdb')
    filename_tmpl: Annotated[Text, AfterValidator(template)] = Field(
        '{}', description='name of the low-resolution image, {} being that of the other'
    )
    meta_info_file: Text | None = Field(None, description='file that lists the images')
    mean: list[Number] | None = Field(None, description='taken off each channel')
    std: list[Number] | None = Field(None, description='each channel is divided by it')
    color: Literal['y'] | None = Field(None, description='y: luma alone')


class Loading(BaseModel):
    """What training reads of a training set, whatever its class."""

    num_worker_per_gpu: Whole = Field(description='processes that read')
    batch_size_per_gpu: Positive = Field(description='patches of each process and update')
    dataset_enlarge_ratio: Positive = Field(1, description='times an epoch goes through the images')
    prefetch_mode: Literal['cuda', 'cpu'] | None = Field(None, description='cuda: copy ahead to the GPU')
    num_prefetch_queue: Positive = Field(1, description='batches that each worker reads ahead, 2 at least')
    pin_memory: Flag = Field(False, description='for faster copies to a GPU')


class TrainingDataset(Loading, PairedDataset):
    name: Text = Field(description='for the log')
    gt_size: Positive = Field(description='edge of a high-resolution patch, pixels; divisible by scale')
    use_hflip: Flag = Field(description='mirror half of the patches')
    use_rot: Flag = Field(description='turn half of the patches')
    use_shuffle: Literal[True] = Field(True, description="is in BasicSR's recipes; training data are always shuffled")
    persistent_workers: Literal[True] = Field(True, description="is in BasicSR's recipes; workers always persist")

    @model_validator(mode='before')
    @classmethod
    def older_names(cls, values: Any) -> Any:
        """Take use_flip for use_hflip: BasicSR called it so before version 1.3.4, and some of its recipes still do."""
        if isinstance(values, dict) and 'use_flip' in values and 'use_hflip' not in values:
            values = {**values, 'use_hflip': values['use_flip']}
            del values['use_flip']
        return values


class OtherDataset(Typed):
    """A data set of another class, which may read keys of its own."""

    name: Name = Field(description='for the log, and of the folder of its images')


class OtherTrainingDataset(Loading, OtherDataset):
    """A training set of another class, which may read keys of its own."""

    name: Text = Field(description='for the log')


def kind_of_dataset(value: Any) -> str:
    kind = value.get('type') if isinstance(value, dict) else getattr(value, 'type', None)
    return 'paired' if kind in ('PairedImageDataset', 'SafePairedImageDataset') else 'other'


def phases(values: Any) -> Any:
    """Refuse names of data sets other than train, val, val_2, test_1 and the like."""
    for name in values if isinstance(values, dict) else ():
        if str(name).split('_')[0] not in ('train', 'val', 'test'):
            raise ValueError(f'{name} is no phase: train, val, val_2, test_1 and the like are expected')
    return values


Measured = Annotated[
    Annotated[PairedDataset, Tag('paired')] | Annotated[OtherDataset, Tag('other')],
    Discriminator(kind_of_dataset),
]


class TrainingDatasets(BaseModel):
    model_config = ConfigDict(extra='allow')
    __pydantic_extra__: dict[str, Measured]
    train: Annotated[
        Annotated[TrainingDataset, Tag('paired')] | Annotated[OtherTrainingDataset, Tag('other')],
        Discriminator(kind_of_dataset),
    ] = Field(description='what to train on')

    check = model_validator(mode='before')(phases)


class TestDatasets(BaseModel):
    model_config = ConfigDict(extra='allow')
    __pydantic_extra__: dict[str, Measured]

    check = model_validator(mode='before')(phases)


class Path(Section):
    pretrain_network_g: Text | None = Field(None, description='weights to begin with')
    param_key_g: Text | None = Field('params', description='which of them: params, params_ema, or null for a flat file')
    strict_load_g: Flag = Field(True, description='refuse weights that do not fit everywhere')
    resume_state: Text | None = read_by('training', None, 'state to go on from')
    ignore_resume_networks: list[Text] | None = read_by('training', None, 'networks not taken from the run resumed')
    experiments_root: Text | None = read_by('training', None, "instead of the working directory's experiments/")
    results_root: Text | None = read_by('testing', None, "instead of the working directory's results/")
    pretrain_network_d: Text | None = read_by('GAN', None, 'weights of the discriminator')
    param_key_d: Text | None = read_by('GAN', 'params', 'which of them')
    strict_load_d: Flag = read_by('GAN', True, 'refuse weights of the discriminator that do not fit')


class Train(Section):
    total_iter: Positive = Field(description='updates in all')
    warmup_iter: Annotated[int, BeforeValidator(whole), Field(ge=-1)] = Field(
        -1, description='updates over which the learning rate rises from 0'
    )
    optim_g: Typed = Field(description='an optimiser of torch.optim, and its arguments')
    scheduler: Typed = Field(description="a scheduler of BasicSR's or torch's, and its arguments")
    pixel_opt: Typed | None = Field(None, description='a loss between pixels, and its arguments')
    perceptual_opt: Typed | None = Field(None, description='a perceptual loss, and its arguments')
    ema_decay: Annotated[float, Strict(), Field(ge=0, lt=1)] = Field(
        0, description='of the moving average of the weights, which is what is validated; 0 for none'
    )
    amp: Annotated[Literal['off', 'bf16', 'fp16'], BeforeValidator(switched)] = read_by(
        'NLSNModel', 'off', 'precision of the network'
    )
    compile: Flag = read_by('NLSNModel', False, 'torch.compile the network')
    channels_last: Flag = read_by('NLSNModel', False, 'memory format of weights and images')
    clip_grad_norm: Annotated[float, Strict(), Field(gt=0)] | None = read_by(
        'NLSNModel', None, 'largest norm of all gradients together'
    )
    accumulate: Positive = read_by('NLSNModel', 1, 'parts in which a batch is computed, to save memory')
    nonfinite_limit: Whole = read_by('NLSNModel', 20, 'updates that may be skipped because they are not finite')
    optim_d: Typed | None = read_by('GAN', None, "the discriminator's optimiser")
    gan_opt: Typed | None = read_by('GAN', None, 'the adversarial loss')
    net_d_iters: Positive = read_by('GAN', 1, 'updates of the discriminator for one of the network')
    net_d_init_iters: Whole = read_by('GAN', 0, 'updates of the discriminator alone')

    @model_validator(mode='after')
    def has_a_loss(self) -> Train:
        if self.pixel_opt is None and self.perceptual_opt is None:
            raise ValueError('pixel_opt or perceptual_opt is expected: there is no loss')
        return self


class Metric(Typed):
    better: Literal['higher', 'lower'] = Field('higher', description='which is the best')


class Validation(Section):
    save_img: Flag = Field(description='write the images')
    metrics: dict[Text, Metric] | None = Field(None, description='by any names; the first one chooses net_g_best.pth')
    suffix: PartOfName | None = read_by('testing', None, "of the images' names, instead of the experiment's")
    pbar: Flag = Field(False, description='show a progress bar')
    tile: Positive | None = read_by('NLSNModel', None, 'upscale in tiles of so many pixels')
    tile_overlap: Whole = read_by('NLSNModel', 16, 'pixels that neighbouring tiles share')
    self_ensemble: Flag = read_by('NLSNModel', False, 'mean over eight orientations')

    @model_validator(mode='after')
    def tiles_advance(self) -> Validation:
        if self.tile is not None and self.tile_overlap >= self.tile:
            raise ValueError(f'tile_overlap={self.tile_overlap} is not less than tile={self.tile}')
        return self


class TrainingValidation(Validation):
    val_freq: Positive = Field(description='updates between two validations')


class Wandb(Section):
    project: Text | None = Field(None, description='project on wandb')
    resume_id: Text | None = Field(None, description='run to go on with')


class Logger(Section):
    print_freq: Positive = Field(description='updates between two lines of the log')
    save_checkpoint_freq: Positive = Field(description='updates between two saves')
    use_tb_logger: Flag = Field(False, description='write for TensorBoard')
    keep_last: Positive | None = Field(None, description='states and networks that are kept; null for all')
    wandb: Wandb | None = Field(None, description='log to wandb')


class Distributed(Section):
    backend: Literal['nccl', 'gloo'] = Field('nccl', description='without a GPU always gloo')
    port: Positive = Field(29500, description='where SLURM processes meet')


class Common(Section):
    base: Text | None = Field(
        None, alias='_base_', exclude=True, description='option file whose keys this one changes and adds to'
    )
    name: Name = Field(description='of the experiment, and of its folder')
    model_type: Text = Field(description="NLSNModel, or another of BasicSR's registry, which may read more keys")
    custom_imports: list[Text] = Field([], description='modules of your own, imported for what they register')
    scale: Positive = Field(description='of the low-resolution images')
    num_gpu: GPUs = Field('auto', description='of this process; auto takes all; without one 0 is taken')
    manual_seed: Seed | None = Field(None, description='of all random numbers; drawn if null')
    onednn_matmul: Flag = Field(
        False, description='multiply float32 matrices on a CPU with oneDNN; refused where it would round'
    )
    network_g: Typed = Field(description='the network, and its arguments')
    path: Path = Field(description='weights and states')
    dist_params: Distributed = Field(Distributed.model_validate({}), description='several processes')
    sample_data: Text | None = Field(None, description='folder for the sample data, made on first use')
    compare_with_bicubic: Flag = read_by(
        'training', False, 'at the end compare with bicubic on the first validation image'
    )


class TrainingOptions(Common):
    """An option file for training."""

    datasets: TrainingDatasets = Field(description='train, and val, val_2 ... to validate on')
    train: Train = Field(description='how to train')
    val: TrainingValidation | None = Field(None, description='how to validate')
    logger: Logger = Field(description='what is written, and when')
    network_d: Typed | None = read_by('GAN', None, 'the discriminator')
    find_unused_parameters: Flag = Field(False, description='for networks that do not use all their parameters')


class TestOptions(Common):
    """An option file for testing."""

    datasets: TestDatasets = Field(description='test_1, test_2 ...')
    val: Validation = Field(description='how to measure')


def documented(model: type[BaseModel], indent: str = '') -> Iterator[str]:
    """Yield a line for each key of a section, nested as in an option file: key, default, meaning."""
    for name, field in model.model_fields.items():
        sections = [kind for kind in kinds(field.annotation) if issubclass(kind, BaseModel)]
        default = '' if field.is_required() else f' [{shown(field.default)}]'
        yield f'{indent}{field.alias or name}:{default}  # {field.description}'
        below = indent + '  '
        if is_mapping(field.annotation):
            yield f'{below}NAME:  # one or more of them'
            below += '  '
        for section in sections[:1]:
            yield from documented(section, below)
            if issubclass(section, Typed):
                yield f'{below}...:  # arguments of the class'
    extra = model.__annotations__.get('__pydantic_extra__')
    if extra:
        yield f'{indent}...:  # more of them'
        yield from documented(PairedDataset, indent + '  ')


def shown(default: Any) -> str:
    """Format a default value as YAML writes it."""
    if isinstance(default, bool) or default is None:
        return {None: 'null', True: 'true', False: 'false'}[default]
    return str(default)


def is_mapping(annotation: Any) -> bool:
    """Whether an annotation contains a dict, the keys of which the user chooses."""
    return get_origin(annotation) is dict or any(is_mapping(part) for part in get_args(annotation))


def kinds(annotation: Any) -> Iterator[type]:
    """Yield the classes in an annotation."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from kinds(part)
