"""`python -m data.check`; see `aligndet/check_data.py`, which uses the detectors' assigners."""

import sys

from aligndet import check_data

if __name__ == "__main__":
    sys.exit(check_data.main())
