"""Write a trained base as the folder that the package embeds: matrices in float16, without what only training needs.

    python embed.py OUTPUT last=0.45 middle=0.25 first=0.3

Several states of one training are averaged, each with its share: their mean makes fewer errors than any of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from overtone import load_model, save_model
from overtone.models.asr_model import AsrModel

PREPROCESSOR = "preprocessor."
"""Tensors that are not learnt: the first state's are taken as they are."""


def average(models: list[tuple[AsrModel, float]]) -> AsrModel:
    """The first model with the mean of the weights of all, each with its share; shares add up to 1."""
    model = models[0][0]
    states = [(own.base_state_dict(), share) for own, share in models]
    model.load_state_dict(
        {
            name: sum(state[name].double() * share for state, share in states)
            for name, tensor in states[0][0].items()
            if tensor.is_floating_point() and not name.startswith(PREPROCESSOR)
        },
        strict=False,
    )
    return model


def folder_and_share(text: str) -> tuple[str, float]:
    """`last=0.45` -> ("last", 0.45); of one state alone the share may be left out: ("last", 1.0)."""
    folder, _, share = text.partition("=")
    try:
        return folder, float(share or 1.0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no folder with a share, such as last=0.45") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("models", nargs="+", type=folder_and_share, help="model folders or .nemo files: MODEL=SHARE")
    arguments = parser.parse_args()
    total = sum(share for _, share in arguments.models)
    if abs(total - 1.0) > 1e-6:
        raise SystemExit(f"the shares add up to {total:g}; give shares that add up to 1")
    model = average([(load_model(folder), share) for folder, share in arguments.models])
    model.name = "fundamental"
    save_model(model, arguments.output, storage="float16")
    print(f"{arguments.output}: {sum(parameter.numel() for parameter in model.base_parameters()):,} parameters")


if __name__ == "__main__":
    main()
