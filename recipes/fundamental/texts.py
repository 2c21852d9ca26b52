"""Make the texts that synthetic voices speak: one `kind<TAB>sentence` a line, distinct, shuffled, nothing held out."""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from books import LONGEST_SENTENCE, book_sentences
from grammar import Grammar, load_grammar
from held_out import HeldOut, load_held_out

SHARES = {
    "book": 0.58,
    "everyday": 0.17,
    "words": 0.06,
    "command": 0.04,
    "telephone": 0.05,
    "number": 0.07,
    "code": 0.03,
}
"""Share of each kind; all but `book` and `words` are sections of the grammar."""

SPEAKABLE = re.compile(r"[a-z]+(?:'[a-z]+)*(?: [a-z]+(?:'[a-z]+)*)*")
DRAWS_PER_SENTENCE = 30
"""Attempts to find a new sentence before a kind counts as exhausted."""


def word_lists(paths: list[Path]) -> list[str]:
    """Lower-case words of three letters or more."""
    words = [word for path in paths for word in path.read_text(encoding="latin-1").split()]
    return sorted({word for word in words if re.fullmatch("[a-z]{3,}", word)})


def random_words(words: list[str], generator: random.Random) -> Iterator[str]:
    """One to five unrelated common words: coverage of the vocabulary without help from the context."""
    while words:
        yield " ".join(generator.choices(words, k=generator.randint(1, 5)))


def expansions(grammar: Grammar, section: str, generator: random.Random) -> Iterator[str]:
    while True:
        yield grammar.expand(f"{{{section}}}", generator)


def distinct(candidates: Iterator[str], count: int, held_out: HeldOut) -> list[str]:
    """Up to `count` new sentences that may be used for training."""
    found: dict[str, None] = {}
    for sentence in islice(candidates, count * DRAWS_PER_SENTENCE):
        speakable = SPEAKABLE.fullmatch(sentence) and len(sentence.split()) <= LONGEST_SENTENCE
        if speakable and held_out.violation(sentence) is None:
            found[sentence] = None
        if len(found) == count:
            break
    return list(found)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder with the real corpora (for the test texts)")
    parser.add_argument("--books", type=Path, required=True, help="folder with Project Gutenberg plain texts")
    parser.add_argument("--words", type=Path, nargs="*", default=[], help="word lists, one word a line")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=40_000, help="sentences wanted")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    generator = random.Random(arguments.seed)
    held_out = load_held_out(arguments.speech)
    grammar = load_grammar(Path(__file__).parent / "grammar")
    kinds: dict[str, str] = {}
    for kind, share in SHARES.items():
        if kind == "book":
            candidates = iter(book_sentences(arguments.books, arguments.seed))
        elif kind == "words":
            candidates = random_words(word_lists(arguments.words), generator)
        else:
            candidates = expansions(grammar, kind, generator)
        for sentence in distinct(candidates, round(share * arguments.count), held_out):
            kinds.setdefault(sentence, kind)
    sentences = sorted(kinds)
    generator.shuffle(sentences)
    arguments.output.write_text("".join(f"{kinds[text]}\t{text}\n" for text in sentences), encoding="utf-8")
    words = {word for sentence in sentences for word in sentence.split()}
    print(f"{len(sentences)} sentences, {len(words)} different words; {dict(Counter(kinds.values()))}")


if __name__ == "__main__":
    main()
