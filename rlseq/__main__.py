"""``python -m rlseq`` is the command line ``rlseq``."""

import sys

from rlseq.cli import main

sys.exit(main())
