"""`python tools/prepare_data.py --input IMAGES --output FOLDER --scale 2`: the same as `nlsn prepare`."""

import sys

from nlsn_plugin.cli import main

if __name__ == '__main__':
    main(['prepare', *sys.argv[1:]])
