"""Lists the commands of the package."""

import sys

from dynamicrafter_jax import commands

if __name__ == "__main__":
    print(commands.listed())
    if set(sys.argv[1:]) - {"--help", "-h"}:
        sys.stderr.write(
            f"error: unexpected argument {sys.argv[1]!r}: the first word of a line above runs it\n"
        )
        sys.exit(2)
