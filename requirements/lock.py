"""Lock what `make demo` and `make test` install: the pinned versions of constraints.txt, each file by its hash.

    make lock        (needs uv, https://docs.astral.sh/uv)

PyTorch and the libraries of CUDA are left out: their files are other ones on each index of PyTorch's.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent
EXTRAS = {"demo": ("serve",), "test": ("dev", "serve", "openvino", "datasets", "ray", "search")}
"""The extras that each command installs."""
PYTORCH = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
UV = "uv pip compile --no-config --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate"


def lock(name: str) -> str:
    """The requirements of a command with their hashes, a block of lines for each."""
    extras = [word for extra in EXTRAS[name] for word in ("--extra", extra)]
    command = [*UV.split(), "--constraint", "constraints.txt", *extras, "pyproject.toml"]
    locked = subprocess.run(command, cwd=FOLDER.parent, check=True, capture_output=True, text=True).stdout
    blocks = re.findall(r"^\S.*?(?=^\S|\Z)", locked, flags=re.DOTALL | re.MULTILINE)
    return "".join(block for block in blocks if not PYTORCH.match(block))


if __name__ == "__main__":
    for name in EXTRAS:
        title = f"# What `make {name}` installs beside PyTorch, each file by its hash. Made by `make lock`.\n"
        (FOLDER / f"{name}.txt").write_text(title + lock(name), encoding="utf-8")
