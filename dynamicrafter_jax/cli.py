"""What the command lines share: flags, and one readable line for what the user got wrong."""

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from dynamicrafter_jax.config import config_path
from dynamicrafter_jax.errors import UserError

flags.disclaim_key_flags()  # what is defined here belongs to the entry point's --help


def define_config() -> flags.FlagHolder:
    """Defines `--config` (a file, or the name of a config that ships) and its overrides."""
    return config_flags.DEFINE_config_file("config", None, "Config file or name, as i2v_512.")


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an entry point: `UserError` and bad flags become one line and exit status 2."""

    def parse(argv: Sequence[str]) -> Sequence[str]:
        with _one_line_errors():
            rest = flags.FLAGS(list(argv))
            if len(rest) > 1:
                raise UserError(f"unexpected argument {rest[1]!r}: flags are written --name=value")
            return rest

    def guarded(argv: Sequence[str]) -> None:
        enable_compilation_cache()
        logging.set_verbosity(logging.WARNING)  # libraries report every step of theirs
        warnings.showwarning = _show_warning
        with _one_line_errors():
            main(argv)

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold what can't be printed here, as bytes that are not UTF-8.
        sys.stdout.reconfigure(errors="backslashreplace")
    with _one_line_errors():
        # The flag reads overrides off sys.argv, so names become paths there.
        sys.argv[1:] = [_resolve_config(argument) for argument in sys.argv[1:]]
    app.run(guarded, flags_parser=parse)


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk from run to run, unless JAX was told where already."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = epath.Path("~/.cache/dynamicrafter_jax").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache))


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """One line for the person at the keyboard, without the line of code that raised it."""
    sys.stderr.write(f"warning: {message}\n")


def _resolve_config(argument: str) -> str:
    flag, _, value = argument.partition("=")
    return f"{flag}={config_path(value)}" if flag in ("--config", "-config") else argument


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turns errors that the user can mend into one line on stderr and exit status 2."""
    try:
        yield
    except (UserError, flags.Error) as error:
        message = " ".join(str(error).split())
    except AttributeError as error:
        # config_flags raises this, with the bare name, for an override of no known field.
        if not _is_unknown_override(error):
            raise
        field, *rest = re.findall(r"\w+", str(error).replace("\\n", " "))
        hint = f" (did you mean {rest[3]!r}?)" if rest[:3] == ["Did", "you", "mean"] else ""
        message = f"the config has no field {field!r}{hint}: configs/i2v_512.py has them all"
    else:
        return
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)


def _is_unknown_override(error: AttributeError) -> bool:
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("ml_collections.config_flags"):
            return True
        trace = trace.tb_next
    return False
