"""A model as files that run without its code: serialised XLA programs and their weights.

`load` and `Artifact` need none of the networks' code. `exporting`, which has to be imported by
its name, does: it is what makes artifacts. See docs/exporting.md.
"""

from dynamicrafter_jax.artifact.loading import Artifact, Samples, load

__all__ = ["Artifact", "Samples", "load"]
