"""Models as files that run without their code: serialised XLA programs and their weights.

`load` and `Artifact` need none of the networks' code. `exporting`, which makes artifacts, does need
it, and must be imported by its name. See docs/exporting.md.
"""

from dynamicrafter_jax.artifact.loading import Artifact, Samples, load

__all__ = ["Artifact", "Samples", "load"]
