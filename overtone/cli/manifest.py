"""Make manifests of recordings and texts: folders with a .txt beside each recording, CSV and TSV tables, Kaldi's
folders, data sets that Hugging Face has saved, and other manifests. Every recording is opened and its length counted;
parts for training and testing have no speaker in common."""

from __future__ import annotations

import argparse

from overtone.cli.screen import note
from overtone.startup import fast_imports

EXAMPLES = """examples:
  overtone manifest recordings/ --output manifest.json
  overtone manifest clips.tsv --output data/ --split train=0.8,valid=0.1,test=0.1
  overtone manifest data/train --output kaldi.json --drop

Tables name their columns in the first line; usual names are known (path, file_name, audio_filepath; text, sentence,
transcript; speaker, client_id), others are named with --audio-column, --text-column and --speaker-column."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a folder, a table (.csv, .tsv), or a manifest")
    parser.add_argument(
        "--output", "-o", required=True, metavar="PATH", help="a file ending in .json, or a folder for the parts"
    )
    parser.add_argument("--split", metavar="NAME=SHARE,…", help="parts and their shares, such as train=0.9,test=0.1")
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    parser.add_argument("--no-speakers", action="store_true", help="let a speaker be in several parts")
    parser.add_argument("--audio-column", metavar="NAME", help="the column of the recordings")
    parser.add_argument("--text-column", metavar="NAME", help="the column of the transcripts")
    parser.add_argument("--speaker-column", metavar="NAME", help="the column of the speakers")
    parser.add_argument("--language-column", metavar="NAME", help="the column of the languages")
    parser.add_argument("--delimiter", metavar="SIGN", help="between the columns of a table (default: found out)")
    parser.add_argument("--part", metavar="NAME", help="the part of a saved data set that has several")
    parser.add_argument("--drop", action="store_true", help="leave out what cannot be used, and say so")
    parser.add_argument("--overwrite", action="store_true", help="replace manifests that are there")


def run(arguments: argparse.Namespace) -> int:
    with fast_imports():
        from overtone.data.corpus.build import build_manifest
        from overtone.data.corpus.rows import Columns
        from overtone.data.corpus.split import read_parts

    made = build_manifest(
        arguments.sources,
        arguments.output,
        parts=read_parts(arguments.split) if arguments.split else None,
        seed=arguments.seed,
        columns=Columns(
            audio=arguments.audio_column,
            text=arguments.text_column,
            speaker=arguments.speaker_column,
            language=arguments.language_column,
        ),
        delimiter=arguments.delimiter,
        part=arguments.part,
        speakers=not arguments.no_speakers,
        drop=arguments.drop,
        overwrite=arguments.overwrite,
    )
    print(made)
    if arguments.split and not arguments.no_speakers and not any(line.row.speaker for line in made.lines):
        note("No speaker is known: a speaker may be in several parts.")
    note(f"Written: {', '.join(map(str, made.files.values()))}")
    return 0
