"""Train and test by BasicSR's own pipelines, from the working directory, on machines with and without a GPU."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import basicsr.test
import basicsr.train
import torch.distributed
from basicsr.utils import get_root_logger

from nlsn_plugin.compat import substituted
from nlsn_plugin.data.sample import prepare_sample_data
from nlsn_plugin.engine.comparison import compare_with_bicubic
from nlsn_plugin.engine.options import Options, check_names, check_paths, find_option_file, parse_options
from nlsn_plugin.engine.resume import load_resume_state

LONGEST_CONSOLE_MESSAGE = 12
"""In lines. Longer ones (the banner, all options, the whole network) go to the log file alone."""


def train(args: argparse.Namespace) -> None:
    """Run basicsr.train.train_pipeline; afterwards compare with bicubic where the option file says so.

    Args:
        args: the command line, as `nlsn train` parses it.
    """
    opt, basicsr_args = read_options(args, is_train=True)
    with substituted(
        basicsr.train,
        parse_options=lambda root_path, is_train: (opt, basicsr_args),
        load_resume_state=load_resume_state,
        get_root_logger=get_logger,
    ):
        basicsr.train.train_pipeline(str(Path.cwd()))
    if opt.get('compare_with_bicubic') and opt['rank'] == 0:
        compare_with_bicubic(opt)


def test(args: argparse.Namespace) -> None:
    """Run basicsr.test.test_pipeline.

    Args:
        args: the command line, as `nlsn train` parses it.
    """
    opt, basicsr_args = read_options(args, is_train=False)
    with substituted(
        basicsr.test, parse_options=lambda root_path, is_train: (opt, basicsr_args), get_root_logger=get_logger
    ):
        basicsr.test.test_pipeline(str(Path.cwd()))


def read_options(args: argparse.Namespace, is_train: bool) -> tuple[Options, Any]:
    """Find, read and check the option file, making the quickstart's data on first use."""
    option_file = find_option_file(args.opt)
    opt, basicsr_args = parse_options(option_file, args, Path.cwd(), is_train)
    sample_data = opt.get('sample_data')
    if sample_data and opt['rank'] == 0 and not Path(sample_data).exists():
        prepare_sample_data(Path(sample_data), opt['scale'])
    if opt['dist']:
        torch.distributed.barrier()
    check_paths(opt, option_file)
    check_names(opt, option_file)
    return opt, basicsr_args


def get_logger(*args: Any, **kwargs: Any) -> logging.Logger:
    """BasicSR's logger, its console rid of messages that nobody reads there."""
    logger = get_root_logger(*args, **kwargs)
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.addFilter(is_short)
    return logger


def is_short(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or record.getMessage().count('\n') < LONGEST_CONSOLE_MESSAGE
