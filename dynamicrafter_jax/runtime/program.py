"""Ahead-of-time compilation, which can be observed, timed and reused."""

from collections.abc import Callable
from typing import Any

import jax


class Program:
    """A jitted function with explicit compilation.

    Positional arguments are traced; keyword arguments are static and must be hashable. What is
    compiled depends on them and on how products are rounded (`jax.default_matmul_precision`).
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Wraps a pure `function`."""
        self._function = function
        self._compiled: dict[Any, Any] = {}

    def compile(self, *args: Any, **static: Any) -> Callable[..., Any]:
        """Returns the executable for arguments of this kind, compiling it the first time."""
        leaves, structure = jax.tree.flatten(args)
        kinds = tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves)
        precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
        key = (structure, kinds, precision, tuple(sorted(static.items())))
        if key not in self._compiled:

            def bound(*args: Any) -> Any:
                return self._function(*args, **static)

            self._compiled[key] = jax.jit(bound).lower(*args).compile()
        return self._compiled[key]

    def __call__(self, *args: Any, **static: Any) -> Any:
        """Runs the function, compiling it first if needed."""
        return self.compile(*args, **static)(*args)
