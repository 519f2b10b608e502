"""Ahead-of-time compilation, which can be observed, timed and reused."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Sharding


class _Key(NamedTuple):
    """What an executable was compiled for.

    Attributes:
        what: Structure, shapes and types of the arguments, the static ones, and the precision.
        where: The sharding of each array.
    """

    what: tuple[Any, ...]
    where: tuple[Sharding, ...]

    def fits(self, shapes: list[tuple[int, ...]], other: "_Key") -> bool:
        """Returns whether keys differ at most in how equal shardings are written."""
        return self.what == other.what and all(
            one.is_equivalent_to(wanted, len(shape))
            for shape, one, wanted in zip(shapes, self.where, other.where, strict=True)
        )


class Program:
    """A jitted function with explicit compilation.

    Positional arguments are traced; keyword arguments are static and must be hashable. What is
    compiled depends on them and on how products are rounded (`jax.default_matmul_precision`).
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Wraps a pure `function`."""
        self._function = function
        self._compiled: dict[_Key, Any] = {}
        self._found: dict[_Key, Any] = {}

    def compile(self, *args: Any, **static: Any) -> Callable[..., Any]:
        """Returns the executable for arguments of this kind, compiling it the first time."""
        leaves, structure = jax.tree.flatten(args)
        kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
        what = (structure, kinds, precision, tuple(sorted(static.items())))
        key = _Key(what, tuple(leaf.sharding for leaf in leaves))
        if key not in self._found:
            # What a program returns may be placed as its argument was, and say so otherwise.
            shapes = [leaf.shape for leaf in leaves]
            same = [one for other, one in self._compiled.items() if other.fits(shapes, key)]
            if not same:
                self._compiled[key] = self._compile(args, static)
            self._found[key] = same[0] if same else self._compiled[key]
        return self._found[key]

    def _compile(self, args: tuple[Any, ...], static: dict[str, Any]) -> Callable[..., Any]:
        def bound(*args: Any) -> Any:
            return self._function(*args, **static)

        return jax.jit(bound).lower(*args).compile()

    def __call__(self, *args: Any, **static: Any) -> Any:
        """Runs the function, compiling it first if needed."""
        return self.compile(*args, **static)(*args)
