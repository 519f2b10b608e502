"""Command lines, parsed by the flags of the programs that they call, without running those."""

import functools
import importlib.util
import re
import runpy
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from dynamicrafter_jax.cli import SETTINGS, collect_settings
from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.overrides import set_fields

ROOT = Path(__file__).parent.parent


def split(words: Sequence[str]) -> tuple[Path, list[str]]:
    """Returns the file of a program and its arguments, of what follows the word python."""
    if words[0] != "-m":
        return ROOT / words[0], list(words[1:])
    spec = importlib.util.find_spec(words[1])
    assert spec is not None and spec.origin is not None, f"no module {words[1]}"
    file = Path(spec.origin)
    return file.with_name("__main__.py") if file.name == "__init__.py" else file, list(words[2:])


@functools.cache
def flags_of(file: Path) -> flags.FlagValues:
    """Returns the flags that a program defines, which are then no flags of this process."""
    before = set(flags.FLAGS)
    defined = runpy.run_path(str(file), run_name="documented")
    if "define_flags" in defined:
        defined["define_flags"]()
    values = flags.FlagValues()
    for name in sorted(set(flags.FLAGS) - before):
        values[name] = flags.FLAGS[name]
        delattr(flags.FLAGS, name)
    assert len(values), f"{file} defines no flags"
    return values


def check(words: Sequence[str]) -> None:
    """Makes sure that what follows the word python can be meant: flags, settings and files.

    Raises:
        flags.Error: A flag is unknown, or has no such value.
        UserError: A setting of the config is.
        AssertionError: Anything else is wrong.
    """
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
        return
    file, arguments = split(words)
    assert file.exists(), f"there is no {words[0]}"
    arguments = [word for word in arguments if word != "--help"]  # which all have
    source = file.read_text(encoding="utf-8")
    if "cli.run(" not in source or file.parent.name == "benchmarks":
        for flag in re.findall(r"--([a-z]\w*)", " ".join(arguments)):
            assert f'"{flag}"' in source or f'"--{flag}"' in source, f"{file.name} has no --{flag}"
        return
    values = flags_of(file)
    values.unparse_flags()
    rest = values([file.name, *collect_settings(arguments, values)])
    assert rest[1:] == [], f"{file.name} takes no {rest[1:]}"
    settings = values[SETTINGS].value if SETTINGS in values else []
    named = values["config"].value if "config" in values else None
    set_fields(_config(named or "i2v_512"), settings)


def _config(name: str) -> ConfigDict:
    return load_config(ROOT / name if name.endswith(".py") else name)
