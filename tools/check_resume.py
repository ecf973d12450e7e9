"""Kill a run thirty times and see whether it ends as if it had not been: `nlsn check-resume`."""

import sys

from nlsn_plugin.cli import main

if __name__ == '__main__':
    main(['check-resume', *sys.argv[1:]])
