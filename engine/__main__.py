"""`python -m kinema` is the command line."""

import sys

from kinema.cli import main

sys.exit(main())
