"""BasicSR's `python tools/train.py -opt options/FILE.yml`: the same as `nlsn train`."""

import sys

from nlsn_plugin.cli import main

if __name__ == '__main__':
    main(['train', *sys.argv[1:]])
