"""Threads for work that can wait: loading, comparing, building environments.

Batches go before it in two ways. Its threads have a lower priority, for else each takes a time slice (4 ms) from a
batch that is on the same core; and what holds the interpreter's lock for long is begun when no batch runs
(``Lanes.await_lull``). Either alone changes little (decision 23).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

#: Added to the niceness of the process: about a tenth of a core where something else wants all of it.
NICE = 10


def threads(count: int, name: str) -> ThreadPoolExecutor:
    """Return ``count`` threads that step back behind those that answer; on Linux each has a niceness of its own."""
    return ThreadPoolExecutor(count, name, os.nice, (NICE,))
