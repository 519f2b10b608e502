"""Reads what batches need from disk, and finds out which of their outputs must be made."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media import fit_images
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.sampling.bulk.encoder import Row
from dynamicrafter_jax.sampling.bulk.manifest import Manifest, failure, fingerprint
from dynamicrafter_jax.sampling.bulk.table import Request
from dynamicrafter_jax.tokenizer import tokenize

# Settings that change numbers only by rounding: outputs need not be made again if they change.
_MEMORY = ("sequential_guidance", "vae_frames")


@dataclasses.dataclass(frozen=True)
class Inspected:
    """What is known of a request before its images are decoded.

    Attributes:
        request: The request.
        facts: Facts for the manifest: the request's fields, hashes of its images, its fingerprint.
        finished: Whether its output exists already.
        stale: Whether its output was made before, but from other inputs, or is not whole.
        error: Why its images can't be used, or None.
    """

    request: Request
    facts: dict[str, Any]
    finished: bool = False
    stale: bool = False
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A batch read from disk.

    Attributes:
        rows: A row for each request of the batch; another row stands in for one that can't be
            read. Empty if there is nothing to make.
        inspected: The inspected requests.
    """

    rows: Sequence[Row]
    inspected: Sequence[Inspected]

    @property
    def wanted(self) -> list[tuple[int, Inspected]]:
        """The outputs to make, each with its place in the batch."""
        return [
            (i, one)
            for i, one in enumerate(self.inspected)
            if not one.finished and one.error is None
        ]


class Loader:
    """Reads batches; several threads may call it."""

    def __init__(
        self,
        manifest: Manifest,
        made_from: Mapping[str, Any],
        context_length: int,
        *,
        together: bool = False,
    ) -> None:
        """Takes what all batches share.

        Args:
            manifest: The manifest, which knows what is finished.
            made_from: What every output depends on besides its request, such as the weights.
            context_length: Tokens in a text.
            together: Whether other processes sample the same batches, so that all must read the
                same rows.
        """
        self._manifest = manifest
        self._made_from = dict(made_from)
        self._context_length = context_length
        self._together = together
        tokenize([""], context_length)  # loads the tokenizer, which two threads must not do at once

    def inspect(self, request: Request) -> Inspected:
        """Finds out whether the output exists already, made from exactly the same inputs."""
        settings = dataclasses.asdict(request.settings)
        facts: dict[str, Any] = {
            "id": request.name,
            "image": request.image,
            "end_image": request.end_image,
            "loop": request.loop,
            "prompt": request.prompt,
            "seed": request.settings.seed,
            "sample_index": request.sample_index,
            "settings": settings,
        }
        try:
            hashes = {"image_sha256": _hash(request.image)}
            if request.end_image is not None:
                hashes["end_image_sha256"] = _hash(request.end_image)
        except Exception as error:
            return Inspected(request, facts, error=in_words(error))
        places = ("id", "image", "end_image")
        decides = {name: value for name, value in facts.items() if name not in places}
        decides["settings"] = {k: v for k, v in settings.items() if k not in _MEMORY}
        facts |= hashes
        facts["fingerprint"] = fingerprint(decides | hashes | self._made_from)
        finished = self._manifest.finished(request.name, facts["fingerprint"])
        stale = not finished and self._manifest.knows(request.name)
        return Inspected(request, facts, finished, stale)

    def check(self, request: Request) -> Inspected:
        """Does what `inspect` does, and finds out whether the images can be decoded."""
        return self._read(self.inspect(request))[0]

    def load(self, inspected: Sequence[Inspected]) -> Loaded:
        """Reads a batch, unless all of its outputs are finished or have failed.

        Raises:
            UserError: An image that all processes could read before can't be read any more.
        """
        if not Loaded((), inspected).wanted:
            return Loaded((), inspected)
        read = [self._read(one) for one in inspected]
        checked = [one for one, _ in read]
        for before, now in zip(inspected, checked, strict=True):
            if self._together and now.error is not None and before.error is None:
                self._manifest.add(failure(now.facts, now.error))
                raise UserError(f"an image that all processes could read has failed: {now.error}")
        good = next((row for _, row in read if row is not None), None)
        if good is None:
            return Loaded((), checked)
        return Loaded([good if row is None else row for _, row in read], checked)

    def _read(self, inspected: Inspected) -> tuple[Inspected, Row | None]:
        if inspected.error is not None:
            return inspected, None
        request = inspected.request
        settings = request.settings
        paths = [path for path in (request.image, request.end_image) if path is not None]
        # Any failure of a picture or a text must not affect the other rows.
        try:
            pictures, window = fit_images(paths, settings.height, settings.width, settings.fit)
            texts = [request.prompt, settings.negative_prompt]
            ids, negative_ids = tokenize(texts, self._context_length)
        except Exception as error:
            failed = dataclasses.replace(inspected, error=in_words(error))
            return inspected if inspected.finished else failed, None
        first, last = pictures[0], pictures[-1] if request.has_end else None
        hashes = inspected.facts["image_sha256"], inspected.facts.get("end_image_sha256")
        return inspected, Row(request, first, last, window, *hashes, ids, negative_ids)


def in_words(error: Exception) -> str:
    """Returns an error as one line, with its type unless it is a `UserError`."""
    words = " ".join(str(error).split())
    return words if isinstance(error, UserError) else f"{type(error).__name__}: {words}"


def _hash(path: str) -> str:
    return hashlib.sha256(files.read_bytes(path)).hexdigest()
