"""Write a trained base as the folder that the package embeds: matrices in float16, without what only training needs."""

from __future__ import annotations

import argparse
from pathlib import Path

from overtone import load_model, save_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a model folder or .nemo file")
    parser.add_argument("output", type=Path, help="a new folder")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    model.name = "fundamental"
    save_model(model, arguments.output, storage="float16")
    print(f"{arguments.output}: {sum(parameter.numel() for parameter in model.base_parameters()):,} parameters")


if __name__ == "__main__":
    main()
