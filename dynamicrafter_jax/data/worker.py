"""The main module of the loader's worker processes, which runs before anything else they import.

A spawned process first imports the main module of its parent; a training program's imports JAX and
everything built on it. Workers only read and decode, so they get this module instead.
"""

import sys
from types import ModuleType
from typing import cast

from absl import logging

if __name__ == "__mp_main__":
    # `grain` imports JAX if it can, and logs a message if it can't.
    cast(dict[str, ModuleType | None], sys.modules)["jax"] = None
    logging.set_verbosity(logging.ERROR)
