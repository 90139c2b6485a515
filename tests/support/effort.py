"""How much the tests with generated input try.

Usually it is the same each time and over soon. ``FUSE_AUFS_EFFORT=N``, with N more than 1, asks for
N times as many examples, drawn anew each time; `scripts/torture` does.
"""

from __future__ import annotations

import os
from typing import Any, Final

from hypothesis import HealthCheck, settings

EFFORT: Final = max(1, int(os.environ.get("FUSE_AUFS_EFFORT", "1")))


def examples(count: int, **more: Any) -> settings:
    """Return settings of Hypothesis for ``count`` examples at the usual effort.

    Nothing is kept between runs, and no example has a time limit: what is slow here is a mount.
    """
    return settings(
        max_examples=count * EFFORT,
        derandomize=EFFORT == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )
