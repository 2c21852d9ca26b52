"""What an installation costs: packages, disk and time, in a fresh environment that is removed again.

python -m benchmarks.install [-- PIP ARGUMENTS]

PyTorch is counted apart, being the larger part. Downloads count as they come: run it twice to time a warm cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import ROOT, print_machine

TORCH = ("torch", "torchgen", "functorch", "nvidia", "triton")


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="only create the environment and count")
    parser.add_argument("pip_arguments", nargs="*", help="handed to pip install, after --")
    arguments = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        python = folder / "venv" / "bin" / "python"
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        start = time.perf_counter()
        if not arguments.smoke:
            command = [*pip, "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(ROOT)]
            subprocess.run([*command, *arguments.pip_arguments], check=True)
        seconds = time.perf_counter() - start
        listing = subprocess.run([*pip, "list", "--format=json"], capture_output=True, text=True, check=True)
        packages = json.loads(listing.stdout)
        (site,) = (folder / "venv" / "lib").glob("python3*/site-packages")
        torch_bytes = sum(folder_bytes(site / part) for part in TORCH if (site / part).is_dir())
        rest = folder_bytes(site) - torch_bytes
    print(f"packages: {len(packages)}, disk: {rest / 1e6:.0f} MB + torch {torch_bytes / 1e6:.0f} MB, {seconds:.1f} s")


if __name__ == "__main__":
    main()
