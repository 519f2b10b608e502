"""The commands and snippets of the documents, and what stands in for what they speak of."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    path
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
    if path.name != "CHANGELOG.md"
]

NEEDS = {
    "weights": "files of the release, or of evaluation",
    "data": "a data set that is not ours",
    "network": "packages or files from elsewhere",
    "the TPU compiler": "the extra `tpu`, and minutes",
    "an accelerator": "a GPU or TPU",
    "a cluster": "a scheduler",
    "a cloud": "an account there",
    "a browser": "somebody to look",
    "time": "a machine for itself, for minutes or hours",
}
"""What a block may lack, as the mark before it says: `<!-- needs: weights, an accelerator -->`."""

_SHELL = (
    *("python", ".venv/bin/python", "pip", ".venv/bin/pip", "make", "source", "tensorboard"),
    *("#!/bin/bash", "gcloud", "for", "srun", "git", "dynamicrafter-"),
)


@dataclass(frozen=True)
class Block:
    """A block of code in a document.

    Attributes:
        document: Its file.
        line: Where it starts, from 1.
        kind: "shell", "python", "yaml", or "" for what is no code, such as a table.
        text: What is in it, without indentation.
        needs: What it lacks here; nothing if it can be run.
    """

    document: Path
    line: int
    kind: str
    text: str
    needs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell, or of the arrays of commands in YAML."""
        if self.kind == "yaml":
            arrays = re.findall(r"command: \[(.*?)\]", self.text, re.DOTALL)
            return [re.findall(r"[^\s,\"]+", array) for array in arrays]
        return _commands(self.text)

    @property
    def programs(self) -> list[list[str]]:
        """The arguments of each call of Python, also in a loop or behind a scheduler."""
        return [
            words[index + 1 :]
            for words in self.commands
            for index, word in enumerate(words)
            if Path(word).name == "python"
        ]


def blocks(document: Path) -> Iterator[Block]:
    """Yields the blocks of code of a document, indented or fenced, in order."""
    lines = document.read_text(encoding="utf-8").splitlines()
    needs: tuple[str, ...] = ()
    number = 0
    while number < len(lines):
        line, start = lines[number], number + 1
        number += 1
        if mark := re.fullmatch(r"<!-- needs: (.*) -->", line):
            needs = tuple(mark[1].split(", "))
        elif fence := re.fullmatch(r"```(\w*)", line):
            end = lines.index("```", number)
            kind = {"bash": "shell", "sh": "shell"}.get(fence[1], fence[1])
            yield Block(document, start, kind, "\n".join(lines[number:end]), needs)
            needs, number = (), end + 1
        elif line.startswith("    ") and (start == 1 or not lines[start - 2].strip()):
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number]):
                number += 1
            text = "\n".join(line[4:] for line in lines[start - 1 : number]).rstrip()
            yield Block(document, start, "shell" if text.startswith(_SHELL) else "", text, needs)
            needs = ()
        elif line.strip():
            assert not needs, f"{document.name}:{start}: no block follows the mark"


def code(document: Path) -> list[Block]:
    """Returns the blocks of a document that are commands or snippets."""
    return [block for block in blocks(document) if block.kind in ("shell", "python", "yaml")]


def _commands(text: str) -> list[list[str]]:
    """Splits what a shell reads into commands, those in a quoted command included."""
    text = re.sub(r"\s*\\\n\s*", " ", text)
    text = re.sub(r"(?m)(^|\s)#.*$", "", text)
    parser = shlex.shlex(text, posix=True, punctuation_chars=";&\n")
    parser.whitespace, parser.commenters, parser.whitespace_split = " \t", "", True
    found: list[list[str]] = [[]]
    for word in parser:
        if set(word) <= set(";&\n"):
            found.append([])
        else:
            found[-1].append(word)
            if "\n" in word or "python " in word:
                found[-1:-1] = _commands(word.partition("=")[2])
    return [words for words in found if words]
