"""What the command lines share: flags, and one readable line for errors that users can fix.

Entry points import this first. From then on, Ctrl-C ends them with one line instead of a traceback
of whatever was being imported.
"""

import contextlib
import io
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NoReturn

from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import quiet

flags.disclaim_key_flags()  # flags defined here belong in the entry point's --help

SETTINGS = "config.SECTION.FIELD"
"""The flag that every `--config.section.field=value` becomes, named for display in --help."""

# Exit status of errors that users can fix, and of Ctrl-C, as in shells.
_WRONG, _INTERRUPTED = 2, 130
_STOPPED = "stopped by Ctrl-C\n"


class ConfigFlag:
    """`--config` (a file, or the name of a packaged config) and `--config.section.field=value`.

    The settings apply to the config in the file or, without a file, to the model's own.

    Attributes:
        name: Name of the flag.
    """

    name = "config"

    def __init__(self) -> None:
        """Defines the two flags."""
        self._file = flags.DEFINE_string(
            self.name, None, "Config file or name, such as i2v_512; by default the model's own."
        )
        self._settings = define_settings()

    @property
    def settings(self) -> Sequence[str]:
        """The settings, such as "sampling.steps=25"."""
        return self._settings.value

    @property
    def value(self) -> ConfigDict | None:
        """The config in the file, with the settings applied; None without a file.

        Raises:
            UserError: There is no such config, or it has no such setting.
        """
        from dynamicrafter_jax.cli.overrides import set_fields
        from dynamicrafter_jax.config import load_config  # imports JAX

        if self._file.value is None:
            return None
        config = load_config(self._file.value)
        set_fields(config, self.settings)
        return config

    def of_model(self, source: epath.PathLike) -> ConfigDict:
        """Returns the config in the file, or else the model's, with the settings applied.

        Raises:
            UserError: As in `value` or `names.config_for`.
        """
        from dynamicrafter_jax.cli.overrides import set_fields
        from dynamicrafter_jax.weights.names import config_for  # imports JAX and Orbax

        if (given := self.value) is not None:
            return given
        config = config_for(source, None)
        set_fields(config, self.settings)
        return config


class ProcessFlags:
    """`--multihost`, and the flags that describe the processes of a run."""

    def __init__(self) -> None:
        """Defines the flags."""
        self._multihost = flags.DEFINE_bool(
            "multihost", False, "Find the other processes of a TPU pod."
        )
        self._address = flags.DEFINE_string("coordinator_address", None, "Process 0, as host:port.")
        self._count = flags.DEFINE_integer("num_processes", None, "Processes that share the work.")
        self._number = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Joins the other processes, if there are any, and exits at once if this one fails.

        Raises:
            UserError: As in `distributed.initialize`.
        """
        from dynamicrafter_jax.runtime import distributed  # imports JAX

        distributed.initialize(
            self._address.value,
            self._count.value,
            self._number.value,
            multihost=self._multihost.value,
        )
        with distributed.leaving_at_once():
            yield


def define_processes() -> ProcessFlags:
    """Defines the flags for runs of several processes."""
    return ProcessFlags()


def define_config() -> ConfigFlag:
    """Defines `--config` and its settings."""
    return ConfigFlag()


def define_settings() -> flags.FlagHolder[list[str]]:
    """Defines `--config.section.field=value` alone; its value lists "section.field=value"."""
    return flags.DEFINE_multi_string(
        SETTINGS, [], "Any setting of the config, such as --config.sampling.steps=25."
    )


def collect_settings(
    words: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
    """Turns `--config.a.b=c`, `--config.a.b c` and `--noconfig.a.b` into values of one flag.

    Args:
        words: A command line.
        flag_values: Its flags. If settings are not among them, nothing changes.
    """
    if SETTINGS not in flag_values:
        return list(words)
    rest, collected = list(words), []
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*collected, word, *rest]
        found = re.fullmatch(r"--?(no)?config\.(.+)", word, re.DOTALL)
        if found is None:
            collected.append(word)
            continue
        negated, setting = found.groups()
        if negated:
            setting += "=False"
        elif "=" not in setting and rest and not re.match("--?[A-Za-z]", rest[0]):
            setting += f"={rest.pop(0)}"
        collected.append(f"--{SETTINGS}={setting}")
    return collected


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an entry point; if it fails, prints a readable reason and exits.

    `UserError`, bad flags and missing devices give one line and exit status 2, Ctrl-C one line and
    130. With `DYNAMICRAFTER_DEBUG=1` the traceback is shown too.
    """

    def parse(argv: Sequence[str]) -> Sequence[str]:
        program, *words = argv
        with ending_readably():
            words = flags.FLAGS.read_flags_from_files(words, force_gnu=False)
            try:
                rest = flags.FLAGS([program, *collect_settings(words)])
            except SystemExit as shown:  # help, after which absl exits with 1
                raise SystemExit(0) from shown
            if len(rest) > 1:
                raise UserError(f"unexpected argument {rest[1]!r}: write flags as --name=value")
            return rest

    def guarded(argv: Sequence[str]) -> None:
        with ending_readably():
            enable_compilation_cache()
            logging.set_verbosity(logging.WARNING)  # libraries log every step they take
            warnings.showwarning = _show_warning
            main(argv)

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold characters that can't be printed, such as bytes that are not UTF-8.
        sys.stdout.reconfigure(errors="backslashreplace")
    app.run(guarded, flags_parser=parse)


@contextlib.contextmanager
def ending_readably() -> Iterator[None]:
    """Turns errors that users can fix, and Ctrl-C, into one line on stderr and an exit status.

    Raises:
        SystemExit: Instead of the original error.
    """
    try:
        yield
    except (UserError, flags.Error) as error:
        _leave(f"error: {' '.join(str(error).split())}", _WRONG, error)
    except KeyboardInterrupt as error:
        _leave(_STOPPED.strip(), _INTERRUPTED, error)
    except Exception as error:
        if (reason := _lack_of_devices()) is None:
            raise
        _leave(f"error: {reason}", _WRONG, error)


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk between runs, unless JAX already has a folder for them."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = epath.Path("~/.cache/dynamicrafter_jax").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache))


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Prints a warning as one line, without the line of code that raised it."""
    sys.stderr.write(f"warning: {message}\n")


def _leave(line: str, status: int, error: BaseException) -> NoReturn:
    """Ends the process with a line and a status, and a traceback when debugging."""
    if isinstance(error, UserError) and error.details and quiet.debugging():
        line = f"{line}\n{error.details}"
    if quiet.debugging():
        sys.__excepthook__(type(error), error, error.__traceback__)
    sys.stderr.write(f"{line}\n")
    sys.exit(status)


def _lack_of_devices() -> str | None:
    """Returns a message if JAX has no devices of the kind it was told to use; otherwise None."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX's own words, without its advice in brackets; for some kinds there are none.
        words = str(error).partition(" (set ")[0].rstrip(".") or "its support is not installed"
        asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        return (
            f"JAX has no device of the kind that JAX_PLATFORMS={asked or ''} asks for "
            f"({' '.join(words.split())}): unset it, set it to cpu, or install "
            "jax[cuda13] for an NVIDIA GPU, jax[tpu] for a TPU"
        )
    return None


def _heed_interrupts() -> None:
    """Makes Ctrl-C end the process with one line even before `run` starts, and never lose one.

    Python drops a Ctrl-C that arrives during garbage collection, in which JAX runs its own code.
    """
    show_before, drop_before = sys.excepthook, sys.unraisablehook
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt) or quiet.debugging():
            show_before(kind, error, trace)
            return
        sys.stderr.write(_STOPPED)
        raise SystemExit(_INTERRUPTED)

    def drop(unraisable: Any) -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            drop_before(unraisable)
            return
        again = threading.Timer(0.05, signal.pthread_kill, (main_thread, signal.SIGINT))
        again.daemon = True
        again.start()

    sys.excepthook, sys.unraisablehook = show, drop


_heed_interrupts()
