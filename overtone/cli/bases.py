"""Bases of `overtone serve` on the command line: one, or several with a name, adapters and a language each."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overtone.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from overtone.serving.settings import ServerSettings


def add_bases(parser: argparse.ArgumentParser) -> None:
    """Models, and the options that each of several may have of its own."""
    parser.add_argument(
        "model",
        nargs="*",
        metavar="[NAME=]MODEL",
        help="a .nemo file, a model folder, or a name (default: fundamental); several, which stand "
        "together in the command, are served side by side, by their NAMEs, else those of their files",
    )
    parser.add_argument(
        "--adapters",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="one adapter folder each, watched for changes; s3://… is mirrored; with several models, one for each NAME",
    )
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        metavar="[NAME=]TAG",
        help="language of the model, or of the model of that NAME (default: en-US)",
    )


def base_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of the server about its bases: `model`, `base`, `adapters`, `language`, and `more` of them.

    Raises UsageError.
    """
    from overtone.serving.recognition.bases import check_base_names
    from overtone.serving.settings import BaseSettings, ServerSettings

    named = [name_of(text) for text in arguments.model or [ServerSettings().model]]
    are_several = len(named) > 1
    names = [name or plain_name(model) for name, model in named] if are_several else [named[0][0]]
    if are_several:
        check_base_names(names)
    folders = by_base("--adapters", arguments.adapters, names)
    languages = by_base("--language", arguments.language, names)
    if are_several and folders.get(""):
        raise UsageError(
            f"--adapters {folders['']}: of several bases, each has a folder of its own. Say which base it is for: "
            f"--adapters {names[0]}={folders['']}"
        )
    if len({*folders.values()}) < len(folders):
        raise UsageError("--adapters: one folder is given to two bases; adapters fit the base that they were made for.")
    own = [
        {
            "model": model,
            "base": name,
            **({"language": language} if (language := languages.get(name) or languages.get("")) else {}),
            **place_of(folders.get(name) or folders.get("")),
        }
        for name, (_, model) in zip(names, named, strict=True)
    ]
    return {**own[0], "more": tuple(BaseSettings(**each) for each in own[1:])}


def name_of(text: str) -> tuple[str, str]:
    """Name and model of `NAME=MODEL`; a path that is there, or a text without a name, is the model itself."""
    name, equals, model = text.partition("=")
    if not equals or not name or not model or "/" in name or Path(text).expanduser().exists():
        return "", text
    return name, model


def plain_name(model: str) -> str:
    """Name of a base by its model: the last part of the path, without `.nemo`."""
    return Path(model).name.removesuffix(".nemo")


def by_base(option: str, texts: Sequence[str], names: Sequence[str]) -> Mapping[str, str]:
    """Values of an option by the base's name; the one without a name stands under the empty one.

    Raises UsageError for a base that is not there, and for two values of one base; of two for a single base that both
    name it, or both do not, the last one counts.
    """
    found: dict[str, str] = {}
    are_several = len(names) > 1
    for text in texts:
        head, equals, rest = text.partition("=")
        name, value = (head, rest) if head and equals and head in names else ("", text)
        if equals and not name and (option == "--language" or (are_several and "/" not in head)):
            known = ", ".join(filter(None, names)) or "none; NAME=MODEL gives a name"
            raise UsageError(f"{option} {text}: no base is called '{head}'.{did_you_mean(head, names)} Known: {known}.")
        given = found.get(name) if are_several else next((found[other] for other in found if other != name), None)
        if given is not None:
            whose = name or ("all bases" if are_several else names[0])
            raise UsageError(f"{option} is given twice for {whose}: {given} and {value}.")
        found[name] = value
    return found


def place_of(adapters: str | None) -> dict[str, Any]:
    """Setting of a folder of adapters, or of a URI that is mirrored."""
    if adapters is None or "://" not in adapters:
        return {"adapters": None if adapters is None else Path(adapters)}
    return {"adapters_from": adapters}


def check_options(settings: ServerSettings, *, demo: bool) -> None:
    """Raises UsageError for options that go with one base alone."""
    if settings.more and demo:
        raise UsageError(
            "--demo goes with one base. Leave it out, and give each base its adapters: --adapters NAME=FOLDER"
        )
    if settings.more and settings.learn:
        raise UsageError("--learn goes with one base. Leave it out, or run a server for each base.")
