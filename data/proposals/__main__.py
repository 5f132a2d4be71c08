"""`python -m data.proposals`; see `data/proposals/command.py`."""

import sys

from data.proposals import command

if __name__ == "__main__":
    sys.exit(command.main())
