"""Kill and resume a run thirty times, and check that it ends like an undisturbed one: `nlsn check-resume`."""

import sys

from nlsn_plugin.cli import main

if __name__ == '__main__':
    main(['check-resume', *sys.argv[1:]])
