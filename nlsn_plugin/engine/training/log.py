"""BasicSR's text log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from basicsr.utils import get_env_info, get_root_logger, get_time_str
from basicsr.utils.options import dict2str

LONGEST_CONSOLE_MESSAGE = 12
"""Lines of the longest message on the console; longer ones (banner, all options, network) go to the log file only."""


def start_log(opt: dict[str, Any], kind: str) -> logging.Logger:
    """Start BasicSR's logger, keep long messages off its console, and log the environment and all options."""
    log_file = Path(opt['path']['log']) / f'{kind}_{opt["name"]}_{get_time_str()}.log'
    logger = get_root_logger('basicsr', logging.INFO, str(log_file))
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.addFilter(is_short)
    logger.info(get_env_info())
    logger.info(dict2str(opt))
    return logger


def is_short(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or record.getMessage().count('\n') < LONGEST_CONSOLE_MESSAGE
