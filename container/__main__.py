"""``python -m container serve`` is ``berth serve``."""

import sys

from container.cli import main

sys.exit(main())
