"""OpenMMLab's `python tools/train.py CONFIG`: the same as `nlsn train-mmengine`."""

import sys

from nlsn_plugin.cli import main

if __name__ == '__main__':
    main(['train-mmengine', *sys.argv[1:]])
