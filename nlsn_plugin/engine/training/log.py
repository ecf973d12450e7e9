"""BasicSR's text log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from basicsr.utils import get_env_info, get_root_logger, get_time_str
from basicsr.utils.options import dict2str

LONGEST_CONSOLE_MESSAGE = 12
"""In lines. Longer ones (the banner, all options, the whole network) go to the log file alone."""


def start_log(opt: dict[str, Any], kind: str) -> logging.Logger:
    """BasicSR's logger, its console rid of messages that nobody reads there."""
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
