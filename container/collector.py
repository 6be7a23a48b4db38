"""Python's garbage collector in a process that serves: what is there once it is up is never looked at again.

Imports leave some hundred thousand objects behind (torch alone most of them), and each full collection walks them all:
a pause of a tenth of a second that the slowest requests of a minute see.
"""

from __future__ import annotations

import gc

#: New objects before the youngest are looked at; Python's 700 are reached by 30 requests in flight.
_YOUNGEST = 10_000


def settle(*, ours: bool = True) -> None:
    """Put all that is there aside for good; call once, when the process is up.

    ours: only our own code runs here, which makes no circles that hold memory, so the youngest are looked at less
    often, too.
    """
    gc.freeze()
    if ours:
        gc.set_threshold(_YOUNGEST, *gc.get_threshold()[1:])
