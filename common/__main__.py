"""``python -m common VERB``: see :mod:`common.course.cli`."""

import sys

from common.course.cli import main

if __name__ == "__main__":
    sys.exit(main())
