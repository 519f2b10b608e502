"""The models that a page offers, and those it keeps in memory."""

import functools
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from dynamicrafter_jax.cli.overrides import set_fields
from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.weights.names import config_for

_CONFIG = ",config="


def split_config(name: str) -> tuple[str, str | None]:
    """Splits "model.ckpt,config=i2v_512" into the model and its config, which may be None."""
    source, separator, config = name.partition(_CONFIG)
    return source, config if separator else None


def load_model(name: str, overrides: Sequence[str] = ()) -> ImageToVideo:
    """Loads a model by name, with a config if it needs one.

    Args:
        name: A source for `ImageToVideo.from_pretrained`, optionally followed by a config.
        overrides: Settings that override the config's, such as "precision.dtype=bfloat16".

    Raises:
        UserError: The model can't be loaded, or a setting can't be used.
    """
    source, given = split_config(name)
    if not overrides:
        return ImageToVideo.from_pretrained(source, config=given)
    config = config_for(source, None if given is None else load_config(given))
    set_fields(config, overrides)
    return ImageToVideo.from_pretrained(source, config=config)


class ModelCatalogue:
    """Loads models when they are first used, and drops the least recently used ones.

    Attributes:
        names: The models that everyone may use; the first is the default.
        overrides: Settings that override those of all models, such as "sampling.steps=25".
        allow_any: Whether users may name others: any file or repository this machine can read.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        overrides: Sequence[str] = (),
        allow_any: bool = False,
        capacity: int = 1,
        load: Callable[[str], ImageToVideo] | None = None,
    ) -> None:
        """Takes the names of models; none is loaded yet.

        Args:
            names: Names for `load_model`.
            overrides: See the attribute.
            allow_any: See the attribute.
            capacity: How many models are kept in memory.
            load: Loads a model by name, instead of `load_model`.
        """
        self.names = list(dict.fromkeys(names))
        self.overrides = tuple(overrides)
        self.allow_any = allow_any
        self._capacity = capacity
        self._load = load or functools.partial(load_model, overrides=overrides)
        self._loaded: OrderedDict[str, ImageToVideo] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> ImageToVideo:
        """Returns a model, from memory if possible.

        Raises:
            UserError: The model is not allowed, or can't be loaded.
        """
        self._check(name)
        with self._lock:
            if name not in self._loaded:
                # Make room first, since two large models may not fit in memory.
                while len(self._loaded) >= self._capacity:
                    self._loaded.popitem(last=False)
                self._loaded[name] = self._load(name)
            self._loaded.move_to_end(name)
            return self._loaded[name]

    def _check(self, name: str) -> None:
        if name in self.names:
            return
        if not self.allow_any or not isinstance(name, str) or not name:
            raise UserError(f"this page has no such model: choose from {', '.join(self.names)}")
        _, config = split_config(name)
        # A config file is a program, which a stranger must not be able to upload and run.
        if config is not None and not re.fullmatch(r"\w+", config):
            raise UserError(f"{config!r} is not the name of a packaged config, such as i2v_512")
