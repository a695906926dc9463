"""`python -m minidiff` is `minidiff`: for torchrun, which starts modules."""

import sys

from minidiff.cli import main

sys.exit(main())
