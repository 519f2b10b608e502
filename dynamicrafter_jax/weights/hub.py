"""Models in repositories of the Hugging Face Hub, downloaded into its cache.

Downloads are treated as data: nothing in a repository is executed, and only `tensors` and
`converted` read its files. This is the only module that imports `huggingface_hub`.
"""

import contextlib
import errno
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.weights.converted import CARRIED_FILE, CONFIG_FILE, PARAMS_FOLDER
from dynamicrafter_jax.weights.tensors import EXTENSIONS, check_readable

RELEASES = {
    "Doubiiu/DynamiCrafter": "i2v_256",
    "Doubiiu/DynamiCrafter_512": "i2v_512",
    "Doubiiu/DynamiCrafter_1024": "i2v_1024",
    "Doubiiu/DynamiCrafter_512_Interp": "interp_512",
}
"""The authors' repositories, each with the config of its model."""

_RELEASE_FILE = "model.ckpt"
_CONVERTED = (CONFIG_FILE, CARRIED_FILE, f"{PARAMS_FOLDER}/*")

_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
_TIMEOUT = 10  # seconds without an answer, after which the cache is used
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Repository:
    """A repository, or a revision of one.

    Attributes:
        id: Its owner and name, such as "Doubiiu/DynamiCrafter_512".
        revision: A branch, a tag or a commit; None for the newest.
    """

    id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Repository | None":
        """Reads "owner/name" or "owner/name@revision"; returns None for any other text.

        A name with the extension of a tensor file is taken to be a path.
        """
        found = _ID.fullmatch(text)
        if found is None or _is_of_tensors(found[1]):
            return None
        return cls(found[1], found[2])

    @property
    def config(self) -> str | None:
        """The name of its model's config, if it is one of `RELEASES`; otherwise None."""
        return RELEASES.get(self.id)

    def download(self) -> Path:
        """Returns the path of its model in this machine's cache, downloading it if necessary.

        For one of `RELEASES`, that is `model.ckpt`; for others, the folder of a converted model or
        the only file of tensors. Without a network, the cached version is used.

        Raises:
            UserError: The model can't be downloaded; the message says which file to get instead,
                and what to do with it.
        """
        import huggingface_hub
        from huggingface_hub import errors

        with self._explained():
            try:
                info = huggingface_hub.HfApi().model_info(
                    self.id, revision=self.revision, timeout=_TIMEOUT
                )
            except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
                raise
            except Exception:  # whatever its HTTP client raises when the network fails
                names = self._cached_files()
                if not any(map(_is_of_model, names)):
                    raise
                return self._pick(names, cached=True)
            return self._pick([file.rfilename for file in info.siblings or ()], cached=False)

    def _cached_files(self) -> list[str]:
        """Lists the files of the repository that are in the cache."""
        import huggingface_hub
        from huggingface_hub import errors

        try:
            cached = huggingface_hub.snapshot_download(
                self.id, revision=self.revision, allow_patterns=[], local_files_only=True
            )
        except errors.LocalEntryNotFoundError:
            return []
        folder = Path(cached)
        return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]

    def _pick(self, names: Sequence[str], *, cached: bool) -> Path:
        """Picks the model from the repository's files, and gets it from the cache or the Hub."""
        import huggingface_hub

        if CONFIG_FILE in names and any(map(_is_converted, names)):
            folder = huggingface_hub.snapshot_download(
                self.id,
                revision=self.revision,
                allow_patterns=list(_CONVERTED),
                local_files_only=cached,
            )
            return Path(folder)
        name = _RELEASE_FILE if self.config else self._only_file(names)
        check_readable(name)  # rather than download 10 GB for nothing
        file = huggingface_hub.hf_hub_download(
            self.id, name, revision=self.revision, local_files_only=cached
        )
        return Path(file)

    def _only_file(self, names: Sequence[str]) -> str:
        files = sorted(filter(_is_of_tensors, names))
        if not files:
            raise UserError(
                f"{self._address} holds no model: neither a converted one nor a file of tensors "
                f"({', '.join(EXTENSIONS)})"
            )
        if len(files) > 1:
            some = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
            raise UserError(
                f"{self._address} holds several files ({some}): download the one you want, "
                "and give its path"
            )
        return files[0]

    @property
    def _address(self) -> str:
        from huggingface_hub import constants

        at = "" if self.revision is None else f"/tree/{self.revision}"
        return f"{constants.ENDPOINT}/{self.id}{at}"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns download errors into one line that says what went wrong and what to do."""
        from huggingface_hub import constants, errors

        try:
            yield
        except UserError:
            raise
        except errors.GatedRepoError as error:
            raise UserError(
                f"{self._address} requires you to accept its terms: do so there, and set "
                "HF_TOKEN to your access token"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise UserError(
                f"there is no file or folder {self.id}, and no repository {self._address}: check "
                "the name; if the repository is private, set HF_TOKEN to your access token"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise UserError(
                f"{constants.ENDPOINT}/{self.id} has no revision "
                f"{self.revision or 'main'}: give one of its branches, tags or commits"
            ) from error
        except errors.RemoteEntryNotFoundError as error:
            raise UserError(f"{self._address} has no {_RELEASE_FILE}: check the name") from error
        except Exception as error:  # of the disk, the network, or the cache
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise UserError(
                    f"there is no space for {self.id} in {constants.HF_HUB_CACHE}: free some, or "
                    "set HF_HUB_CACHE to a folder on another disk"
                ) from error
            raise UserError(self._by_hand(_reason(error))) from error

    def _by_hand(self, reason: str) -> str:
        what, then = "the model", "its path"
        if self.config is not None:
            what, then = _RELEASE_FILE, f"its path with the config {self.config}"
        return (
            f"there is no file or folder {self.id} here, and it can't be downloaded ({reason}): "
            f"download {what} from {self._address} on another machine, copy it to this one, and "
            f"give {then}"
        )


def _is_converted(name: str) -> bool:
    return name.startswith(f"{PARAMS_FOLDER}/")


def _is_of_tensors(name: str) -> bool:
    return PurePosixPath(name).suffix in EXTENSIONS


def _is_of_model(name: str) -> bool:
    return _is_converted(name) or _is_of_tensors(name)


def _reason(error: BaseException) -> str:
    """Returns the cause of a failed download in a few words."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it is not in the cache"
    while error.__cause__ is not None:  # the library wraps the cause in its own advice
        error = error.__cause__
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    first = next(iter(words.splitlines()), "")
    return first or type(error).__name__
