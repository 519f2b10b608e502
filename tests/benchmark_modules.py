"""Imports scripts of benchmarks/: their flags share names, which one process does not take."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from absl import flags

FOLDER = Path(__file__).parent.parent / "benchmarks"


def load(*names: str) -> list[ModuleType]:
    """Returns modules of benchmarks/; two of them may define flags of one name."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    modules = []
    for name in names:
        modules.append(importlib.import_module(name))
        for defined in list(flags.FLAGS.flags_by_module_dict().get(name, [])):
            delattr(flags.FLAGS, defined.name)
    return modules
