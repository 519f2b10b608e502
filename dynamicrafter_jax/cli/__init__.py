"""What the command lines share: flags, and one readable line for what the user can mend.

Entry points import this first: from then on, Ctrl-C ends them with a line, not with a traceback of
whatever was being imported.
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

flags.disclaim_key_flags()  # what is defined here belongs to the entry point's --help

SETTINGS = "config.SECTION.FIELD"
"""The flag that every `--config.section.field=value` becomes, named as --help should show it."""

# Exit status of what the user can mend, and of Ctrl-C, as shells have it.
_WRONG, _INTERRUPTED = 2, 130
_STOPPED = "stopped by Ctrl-C\n"


class ConfigFlag:
    """`--config` (a file, or the name of a config that ships) and `--config.section.field=value`.

    The settings are of the config in the file, or without one of the model's own.

    Attributes:
        name: Of the flag.
    """

    name = "config"

    def __init__(self) -> None:
        """Defines the two flags."""
        self._file = flags.DEFINE_string(
            self.name, None, "Config file or name, as i2v_512; by default the model's own, if any."
        )
        self._settings = define_settings()

    @property
    def settings(self) -> Sequence[str]:
        """What is set, as "sampling.steps=25"."""
        return self._settings.value

    @property
    def value(self) -> ConfigDict | None:
        """The config of the file, settings included; None without a file.

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
        """Returns the config of the file, else that of the model `source`, settings included.

        Raises:
            UserError: As `value`, or as `pretrained.config_for`.
        """
        from dynamicrafter_jax.cli.overrides import set_fields
        from dynamicrafter_jax.weights.names import config_for  # imports JAX and Orbax

        if (given := self.value) is not None:
            return given
        config = config_for(source, None)
        set_fields(config, self.settings)
        return config


class ProcessFlags:
    """`--multihost`, and the flags that say who the processes of a run are."""

    def __init__(self) -> None:
        """Defines the flags."""
        self._multihost = flags.DEFINE_bool(
            "multihost", False, "Find the other processes of a TPU pod."
        )
        self._address = flags.DEFINE_string("coordinator_address", None, "Process 0, as host:port.")
        self._count = flags.DEFINE_integer("num_processes", None, "Processes that share the work.")
        self._number = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Joins the other processes, if there are any, and leaves at once when one fails.

        Raises:
            UserError: As `distributed.initialize`.
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
    """Defines the flags of runs of several processes."""
    return ProcessFlags()


def define_config() -> ConfigFlag:
    """Defines `--config` and its settings."""
    return ConfigFlag()


def define_settings() -> flags.FlagHolder[list[str]]:
    """Defines `--config.section.field=value` alone; its value lists "section.field=value"."""
    return flags.DEFINE_multi_string(
        SETTINGS, [], "Any setting of the config, as --config.sampling.steps=25."
    )


def collect_settings(
    words: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
    """Turns `--config.a.b=c`, `--config.a.b c` and `--noconfig.a.b` into values of one flag.

    Args:
        words: A command line.
        flag_values: Its flags. Where settings are none of them, nothing changes.
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
    """Runs an entry point, and ends it so that its user knows why.

    `UserError`, bad flags and devices that are not there become one line and exit status 2, Ctrl-C
    one line and 130. With `DYNAMICRAFTER_DEBUG=1` the traceback is shown.
    """

    def parse(argv: Sequence[str]) -> Sequence[str]:
        program, *words = argv
        with ending_readably():
            words = flags.FLAGS.read_flags_from_files(words, force_gnu=False)
            try:
                rest = flags.FLAGS([program, *collect_settings(words)])
            except SystemExit as shown:  # help, after which absl gives 1
                raise SystemExit(0) from shown
            if len(rest) > 1:
                raise UserError(f"unexpected argument {rest[1]!r}: flags are written --name=value")
            return rest

    def guarded(argv: Sequence[str]) -> None:
        with ending_readably():
            enable_compilation_cache()
            logging.set_verbosity(logging.WARNING)  # libraries report every step of theirs
            warnings.showwarning = _show_warning
            main(argv)

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold what can't be printed here, as bytes that are not UTF-8.
        sys.stdout.reconfigure(errors="backslashreplace")
    app.run(guarded, flags_parser=parse)


@contextlib.contextmanager
def ending_readably() -> Iterator[None]:
    """Turns what the user can mend, or did, into one line on stderr and an exit status.

    Raises:
        SystemExit: In place of those.
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
    """Keeps compiled programs on disk from run to run, unless JAX was told where already."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = epath.Path("~/.cache/dynamicrafter_jax").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache))


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """One line for the person at the keyboard, without the line of code that raised it."""
    sys.stderr.write(f"warning: {message}\n")


def _leave(line: str, status: int, error: BaseException) -> NoReturn:
    """Ends the process with a line and a status, and the traceback for who looks for a fault."""
    if isinstance(error, UserError) and error.details and quiet.debugging():
        line = f"{line}\n{error.details}"
    if quiet.debugging():
        sys.__excepthook__(type(error), error, error.__traceback__)
    sys.stderr.write(f"{line}\n")
    sys.exit(status)


def _lack_of_devices() -> str | None:
    """Says that JAX has no devices of the kind that it was told to use; None if it has."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # In its own words, without its advice in brackets; for some kinds it has none.
        words = str(error).partition(" (set ")[0].rstrip(".") or "its support is not installed"
        asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        return (
            f"JAX has no device of the kind that JAX_PLATFORMS={asked or ''} asks for "
            f"({' '.join(words.split())}): unset it, set it to cpu, or install "
            "jax[cuda13] for an NVIDIA GPU, jax[tpu] for a TPU"
        )
    return None


def _heed_interrupts() -> None:
    """Has Ctrl-C end the process in a line before `run` has begun too, and lose none.

    Python drops a Ctrl-C that comes while it collects garbage, for which JAX runs code of its own.
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
