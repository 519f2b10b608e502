"""Programs in this process: command lines parsed by their flags, and what they refuse."""

import contextlib
import functools
import importlib.util
import io
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint  # noqa: F401  # its own flags are then there before the programs'
import pytest
from absl import flags
from ml_collections import ConfigDict

from dynamicrafter_jax import cli
from dynamicrafter_jax.cli.overrides import set_fields
from dynamicrafter_jax.config import load_config

ROOT = Path(__file__).parent.parent


def split(words: Sequence[str]) -> tuple[Path, list[str]]:
    """Returns the file of a program and its arguments, of what follows the word python."""
    if words[0] != "-m":
        return ROOT / words[0], list(words[1:])
    spec = importlib.util.find_spec(words[1])
    assert spec is not None and spec.origin is not None, f"no module {words[1]}"
    file = Path(spec.origin)
    return file.with_name("__main__.py") if file.name == "__init__.py" else file, list(words[2:])


class Program(NamedTuple):
    """A program that was loaded and not run.

    Attributes:
        names: What its file defines.
        main: Its entry point.
        flags: Its flags, which are no flags of this process.
    """

    names: dict[str, Any]
    main: Callable[[Sequence[str]], object]
    flags: flags.FlagValues


@contextlib.contextmanager
def _without_other_programs() -> Iterator[None]:
    """Puts aside the flags of programs that tests have imported, as those of benchmarks."""
    others = {name: flags.FLAGS[name] for name in flags.FLAGS if not _of_a_library(name)}
    for name in others:
        delattr(flags.FLAGS, name)
    try:
        yield
    finally:
        for name, flag in others.items():
            flags.FLAGS[name] = flag


def _of_a_library(name: str) -> bool:
    module = flags.FLAGS.find_module_defining_flag(name) or ""
    if module == "jaxtyping._decorator":  # it calls functions of ours, to check their types
        return False
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in Path(file).parts


@functools.cache
def load(file: Path) -> Program:
    """Loads a program whose flags are absl's."""
    values = flags.FlagValues()
    with _without_other_programs():
        before = set(flags.FLAGS)
        try:
            names = runpy.run_path(str(file), run_name="loaded")
            main = names["main"]
            if "define_flags" in names:
                main = functools.partial(main, names["define_flags"]())
        finally:
            # A program may import a library that brings flags of its own, which are to stay.
            added = set(flags.FLAGS) - before
            for name in sorted(name for name in added if not _of_a_library(name)):
                values[name] = flags.FLAGS[name]
                delattr(flags.FLAGS, name)
    assert len(values), f"{file} defines no flags"
    return Program(names, main, values)


@contextlib.contextmanager
def called(*words: object) -> Iterator[Program]:
    """Gives a program with its flags in force, as after the word python; ends as it would."""
    file, arguments = split([str(word) for word in words])
    program = load(file)
    program.flags.unparse_flags()
    parsed = flags.FLAGS.is_parsed()
    with _without_other_programs(), cli.ending_readably():
        try:
            program.flags([file.name, *cli.collect_settings(arguments, program.flags)])
            for name in program.flags:
                flags.FLAGS[name] = program.flags[name]
            flags.FLAGS.mark_as_parsed()
            yield program
        finally:
            for name in set(program.flags) & set(flags.FLAGS):
                delattr(flags.FLAGS, name)
            if not parsed:
                flags.FLAGS.unparse_flags()


class Done(NamedTuple):
    """What a program that ran has said, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


def ran(*words: object) -> Done:
    """Calls a program in this process, where what others compiled is found again."""
    errors, output, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
        try:
            with called(*words) as program:
                program.main([])
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            status = ended.code
    return Done(status, output.getvalue(), errors.getvalue())


def refused(*words: object, status: int = 2) -> str:
    """Calls a program that must refuse to run, and returns the one line that it says."""
    errors, output = io.StringIO(), io.StringIO()
    with (
        pytest.raises(SystemExit) as ended,
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(output),
        called(*words) as program,
    ):
        program.main([])
    (line,) = errors.getvalue().splitlines()
    assert ended.value.code == status and output.getvalue() == ""
    assert len(line) < 1000, line
    return line


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
    if file.parent.name == "benchmarks":
        source = "".join(other.read_text() for other in file.parent.glob("*.py"))
    if "cli.run(" not in source or file.parent.name == "benchmarks":
        for flag in re.findall(r"--([a-z]\w*)", " ".join(arguments)):
            assert f'"{flag}"' in source or f'"--{flag}"' in source, f"{file.name} has no --{flag}"
        return
    values = load(file).flags
    values.unparse_flags()
    rest = values([file.name, *cli.collect_settings(arguments, values)])
    assert rest[1:] == [], f"{file.name} takes no {rest[1:]}"
    settings = (values[cli.SETTINGS].value if cli.SETTINGS in values else None) or []
    named = values["config"].value if "config" in values else None
    set_fields(_config(named or "i2v_512"), settings)


def _config(name: str) -> ConfigDict:
    return load_config(ROOT / name if name.endswith(".py") else name)
