"""Build the general prior of the embedded base: an n-gram of general English over the base's tokens.

Its text is that of public-domain books and of our own grammar. Neither its text nor its weights come from a test set.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from books import sentences
from grammar import load_grammar
from held_out import load_held_out
from overtone.adapters.word_text import make_words
from overtone.adapters.words import NGRAM, WordPart
from overtone.audio.load import load_audio
from overtone.checkpoints.load import load_model
from overtone.decoding.ngram import Ngram
from overtone.decoding.ngram_compact import compact, expand
from overtone.decoding.ngram_counts import build_ngram
from overtone.inference.word_weights import Heard, choose_weights
from overtone.models.asr_model import AsrModel
from overtone.nets.layers import pad_rows
from prepare import real_speech
from texts import SPEAKABLE, expansions

READ_ALOUD = {"45": "Anne of Green Gables", "76": "Adventures of Huckleberry Finn", "113": "The Secret Garden"}
"""Books that stay out, by number: LibriSpeech's readers read them in speech that the base is chosen or tested on."""
KINDS = {"everyday": 10_000, "number": 4_000, "command": 2_400, "code": 1_800}
"""Sentences of the grammar, by section; telephone systems are a domain to adapt to, and stay out."""
DRAWS_PER_SENTENCE = 30
TIMES = 5
"""Each sentence of the grammar counts so often, which makes them a fifth of all: of short ones books have few kinds."""
SEED = 1
ORDER = 6
LARGEST = 1_500_000
"""N-grams of two and more tokens: 3 MB in the compact form."""
WEIGHT, TOKEN_BONUS = 0.9, 3.0
"""Chosen on the base's validation part, speech that it is not trained on; `--choose` chooses again."""
BEAM = 16
"""Chosen likewise: prefixes of the search."""
BATCH = 16


def prior_texts(books: Path, speech: Path) -> list[str]:
    """All sentences that are counted; none holds a held-out sentence, or a passage of a book that a test set reads."""
    held_out, generator = load_held_out(speech), random.Random(SEED)
    paths = [path for path in sorted(books.glob("*.txt")) if path.stem not in READ_ALOUD]
    if not paths:
        raise SystemExit(f"{books} has no book to count; --books takes Project Gutenberg plain texts")
    said = [sentence for path in paths for sentence in sentences(path, generator)]
    grammar = load_grammar(Path(__file__).parent / "grammar")
    for section, count in KINDS.items():
        drawn = islice(expansions(grammar, section, generator), count * DRAWS_PER_SENTENCE)
        said += list(islice(dict.fromkeys(drawn), count)) * TIMES
    kept = [text for text in said if SPEAKABLE.fullmatch(text) and held_out.violation(text) is None]
    print(
        f"{len(kept)} sentences, {sum(len(text.split()) for text in kept)} words of {len(paths)} books and the grammar"
    )
    return kept


def hear_validation(model: AsrModel, speech: Path) -> list[Heard]:
    """The emissions of the base's validation part, in batches of like lengths."""
    _, validation = real_speech(speech)
    ordered, found = sorted(validation, key=lambda utterance: utterance.duration), []
    with model.evaluating(), torch.no_grad():
        for start in range(0, len(ordered), BATCH):
            batch = ordered[start : start + BATCH]
            waveforms, lengths = pad_rows([load_audio(utterance.audio_filepath) for utterance in batch])
            emissions, lengths = model(waveforms, lengths)
            found.append(Heard(emissions, lengths, [utterance.text for utterance in batch]))
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--books", type=Path, required=True, help="folder with Project Gutenberg plain texts")
    parser.add_argument("--speech", type=Path, required=True, help="folder with the real corpora (for the test texts)")
    parser.add_argument("--model", default="fundamental", help="the base")
    parser.add_argument("--choose", action="store_true", help="choose the weights again, on the base's validation part")
    parser.add_argument("--output", type=Path, required=True, help="file of the prior, FOLDER/prior.safetensors")
    return parser.parse_args()


def compact_file(part: WordPart, rows: Mapping[str, Tensor]) -> bytes:
    """The file of a word part, with the rows of the compact form, [N] each, in the place of its n-gram's."""
    plain = load(part.to_bytes())
    tensors = {name: tensor for name, tensor in plain.items() if not name.startswith(NGRAM)}
    tensors |= {f"{NGRAM}{name}": tensor for name, tensor in rows.items()}
    return save(tensors, metadata={"tokenizer_digest": part.tokenizer_digest})


def main() -> None:
    arguments = parse_arguments()
    model = load_model(arguments.model)
    sequences = [model.tokenizer.encode(text) for text in prior_texts(arguments.books, arguments.speech)]
    ngram = build_ngram(
        sequences, vocabulary_size=model.tokenizer.size, order=ORDER, smoothing="kneser-ney", largest=LARGEST
    )
    rows = compact(ngram.to_tensors())
    ngram = Ngram.from_tensors(expand(rows))  # its logarithms rounded, as they will be read
    part = make_words(model.tokenizer, ngram=ngram, weight=WEIGHT, token_bonus=TOKEN_BONUS)
    part = replace(part, beam=BEAM)
    if arguments.choose:
        chosen = choose_weights(model, hear_validation(model, arguments.speech), part, scope=nullcontext)
        if chosen.part is None:
            raise SystemExit("no weights make fewer errors on the validation part than none")
        print(f"validation: {chosen.without.rate:.1%} without, {chosen.best.rate:.1%} with")
        part = chosen.part
    content = compact_file(part, rows)
    arguments.output.write_bytes(content)
    print(f"{len(ngram)} n-grams, {len(content) / 1e6:.2f} MB, weight {part.weight}, token bonus {part.token_bonus}")


if __name__ == "__main__":
    main()
