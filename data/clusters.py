"""`python -m data.clusters`; see `aligndet/cluster_command.py`, which needs a backbone."""

import sys

from aligndet import cluster_command

if __name__ == "__main__":
    sys.exit(cluster_command.main())
