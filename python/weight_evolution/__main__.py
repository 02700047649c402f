"""``python -m weight_evolution``: the command ``weight-evolution``."""

import sys

from .command import main

sys.exit(main())
