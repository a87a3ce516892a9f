"""Other Pythons that work for this one."""

from __future__ import annotations

import os
import sys


def environment() -> dict[str, str]:
    """Return the environment for a child that runs a module of this package with ``-P``.

    No entry of its path is empty: the working directory, which may hold anything, is no place to import from.
    """
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
