"""Tarred sets as NeMo's conversion script writes them, of the corpora of `support.train_samples`."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from support.train_samples import write_corpus


def pack(manifest: Path, folder: Path, *, shards: int = 3, split_manifest: bool = False) -> tuple[str, str]:
    """The patterns of manifests and archives: the lines of a manifest dealt out to `shards` archives in order.

    split_manifest: a manifest for each archive, besides the one of all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    each = -(-len(lines) // shards)
    packed: list[dict[str, Any]] = []
    for shard in range(shards):
        own = [{**line, "shard_id": shard} for line in lines[shard * each : (shard + 1) * each]]
        with tarfile.open(folder / f"audio_{shard}.tar", "w") as archive:
            for name in dict.fromkeys(line["audio_filepath"] for line in own):
                archive.add(manifest.parent / name, name)
        write_lines(folder / "sharded" / f"manifest_{shard}.json", own)
        packed += own
    write_lines(folder / "tarred_audio_manifest.json", packed)
    manifests = f"sharded/manifest__OP_0..{shards - 1}_CL_.json" if split_manifest else "tarred_audio_manifest.json"
    return str(folder / manifests), str(folder / f"audio__OP_0..{shards - 1}_CL_.tar")


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def packed_corpus(folder: Path, *, count: int = 12, shards: int = 3, split_manifest: bool = False) -> tuple[str, str]:
    """The patterns of a small corpus in `folder`, packed into `folder/tarred`."""
    return pack(write_corpus(folder, count=count), folder / "tarred", shards=shards, split_manifest=split_manifest)
