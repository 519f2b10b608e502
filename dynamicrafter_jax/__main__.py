"""Lists the package's commands, and runs the installed ones, such as `dynamicrafter-sample`.

An installed command runs a module of the package as `python -m` does. `sample.py` and `train.py`
are at the top of the repository, where they are easy to find; like `configs/`, they are linked into
the package.
"""

import ast
import functools
import importlib.util
import runpy
import sys
from pathlib import Path

INSTALLED = ("sample", "train", "convert", "evaluate", "plan", "app")
"""Modules with an installed command, `dynamicrafter-NAME`."""

OTHERS = ("demo", "artifact", "data.cache", "data.prepare", "data.synthetic")
"""Modules that are only run as `python -m dynamicrafter_jax.NAME`."""


def run(name: str) -> None:
    """Runs a command's module as the main program, with the arguments of this process."""
    runpy.run_module(f"dynamicrafter_jax.{name}", run_name="__main__", alter_sys=True)


sample, train, convert, evaluate, plan, app = (functools.partial(run, name) for name in INSTALLED)


def listed() -> str:
    """Returns the commands as text, one per line, each with its purpose."""
    commands = {f"dynamicrafter-{name}": name for name in INSTALLED}
    commands |= {f"python -m dynamicrafter_jax.{name}": name for name in OTHERS}
    width = max(map(len, commands))
    lines = [f"{command:{width}}  {_purpose(name)}" for command, name in commands.items()]
    return "\n".join([*lines, "", "Each takes --help."])


def _purpose(name: str) -> str:
    """Returns the first line of a command's docstring, without importing the command."""
    spec = importlib.util.find_spec(f"dynamicrafter_jax.{name}")
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin)
    if file.name == "__init__.py":
        file = file.with_name("__main__.py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert text is not None
    return text.partition("\n")[0]


if __name__ == "__main__":
    print(listed())
    if set(sys.argv[1:]) - {"--help", "-h"}:
        sys.stderr.write(
            f"error: unexpected argument {sys.argv[1]!r}: run a command from the list above\n"
        )
        sys.exit(2)
