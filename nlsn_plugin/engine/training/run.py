"""Training and testing by an option file, from the working directory, on machines with and without a GPU."""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

import torch.distributed
from basicsr.utils import get_root_logger, set_random_seed
from basicsr.utils.dist_util import get_dist_info

from nlsn_plugin.data.paired import build_dataset
from nlsn_plugin.data.sample import prepare_sample_data
from nlsn_plugin.engine import distributed
from nlsn_plugin.engine.options.classes import networks_of, resumed_networks
from nlsn_plugin.engine.options.documents import find_option_file
from nlsn_plugin.engine.options.model_keys import lacking_ones_named
from nlsn_plugin.engine.options.reading import Options, check_paths, check_scale, read_options
from nlsn_plugin.engine.training import loop
from nlsn_plugin.engine.training.checkpoints import saved_states
from nlsn_plugin.engine.training.comparison import compare_with_bicubic
from nlsn_plugin.engine.training.folders import archive
from nlsn_plugin.engine.training.log import start_log
from nlsn_plugin.engine.training.randomness import seeded
from nlsn_plugin.engine.training.validation import validate
from nlsn_plugin.files import check_folder
from nlsn_plugin.models.mended_model import build_model, check_weights


@distributed.lost_ones_named()
def train(args: argparse.Namespace) -> None:
    """Train; afterwards compare with bicubic where the option file says so.

    Args:
        args: the command line, as `nlsn train` parses it.
    """
    opt, option_file = read(args, is_train=True)
    with lacking_ones_named(opt, option_file):
        loop.train(opt, option_file)
    if opt['compare_with_bicubic'] and opt['rank'] == 0:
        compare_with_bicubic(opt)
    leave()


@distributed.lost_ones_named()
def test(args: argparse.Namespace) -> None:
    """Measure a network on all data sets of the option file; images and log go to results/<name>.

    Args:
        args: the command line, as `nlsn test` parses it.
    """
    opt, option_file = read(args, is_train=False)
    make_folders(opt)
    start_log(opt, 'test')
    datasets = {options['name']: build_dataset(options) for options in opt['datasets'].values()}
    with lacking_ones_named(opt, option_file):
        model = build_model(opt)
        for name, dataset in datasets.items():
            get_root_logger().info(f'Testing {name}...')
            validate(model, dataset, opt['name'], None, name)
    leave()


def make_folders(opt: Options) -> None:
    """Create the folder of a test's results; with --archive an older one of this name is moved aside."""
    root = Path(opt['path']['results_root'])
    if opt['rank'] == 0:
        check_folder(root)
        if root.exists() and opt['archive']:
            archive(root)
        elif any(root.glob('visualization/*/*')):
            print(f'images of an earlier test in {root} are written over; --archive keeps them')
        Path(opt['path']['visualization']).mkdir(parents=True, exist_ok=True)
    distributed.wait_for_all()


def read(args: argparse.Namespace, is_train: bool) -> tuple[Options, Path]:
    """Read and check the option file, join the other processes, and seed all generators.

    The working directory becomes the one that the run began in, and the quickstart's data are made on first use.
    """
    option_file = find_option_file(args.opt).resolve()
    opt = read_options(option_file, args, Path.cwd(), is_train)
    join(opt, args.launcher)
    seed(opt)
    os.chdir(opt['root_path'])  # paths in the option file are relative to where the run began
    sample_data = opt['sample_data']
    if sample_data and opt['rank'] == 0 and not Path(sample_data).exists():
        with seeded(opt['manual_seed']):  # so that the first run draws the same numbers as later ones
            prepare_sample_data(Path(sample_data), opt['scale'])
    distributed.wait_for_all()
    check_scale(opt, option_file)
    goes_on = is_train and (saved_states(opt) if opt['auto_resume'] else opt['path'].get('resume_state'))
    resumed = resumed_networks(opt) if goes_on else []
    check_paths(opt, option_file, resumed)
    check_weights(opt, [name for name in networks_of(opt) if name not in resumed])
    return opt, option_file


def join(opt: Options, launcher: str) -> None:
    """Join the other processes if a launcher started them, and note this one's rank and their number in `opt`."""
    distributed.start(launcher, **opt['dist_params'], on_gpus=opt['num_gpu'] > 0)
    opt['dist'] = launcher != 'none'
    opt['rank'], opt['world_size'] = get_dist_info()


def seed(opt: Options) -> None:
    """Seed all generators by manual_seed plus rank; if the option file sets none, one is drawn for all processes."""
    opt['seed_is_drawn'] = opt['manual_seed'] is None
    if opt['seed_is_drawn']:
        opt['manual_seed'] = distributed.agreed(random.randint(1, 10000))
    set_random_seed(opt['manual_seed'] + opt['rank'])


def leave() -> None:
    """Leave the process group once all processes are done."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
