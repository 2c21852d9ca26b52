"""An adapter from text alone: what a domain says, as an n-gram over the model's tokens and a list of phrases.

No recordings are needed, and nothing is trained: decoding adds the words to the model's scores while the adapter is on.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from overtone.cli.arguments import number
from overtone.cli.screen import note
from overtone.errors import UsageError
from overtone.startup import fast_imports

if TYPE_CHECKING:
    from overtone.adapters.prior import Prior
    from overtone.adapters.words import WordPart
    from overtone.models.asr_model import AsrModel

POLICIES = ("refuse", "drop", "keep")
ORDERS = range(1, 11)
ONLY = "only"
LARGEST_SHARE = 0.95
EXAMPLES = """examples:
  overtone words medical --text notes.txt --phrases drugs.txt --model base.nemo
  overtone words medical --text notes.txt --adapter runs/medical --output medical-with-words
  overtone words medical --ngram train.arpa --export medical.arpa
  overtone words english --prior only

A text has a sentence a line; a list of phrases one a line, each with a boost of its own behind a tab or without.
The embedded base has a general prior, an n-gram of general English: text is mixed with it, in the share that the text
itself shows to be best. `overtone train` chooses weights with recordings; without any, the defaults seldom do harm."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the adapter")
    parser.add_argument(
        "--text", action="append", default=[], metavar="FILE", help="text of the domain; may be repeated"
    )
    parser.add_argument("--phrases", metavar="FILE", help="words and phrases to expect")
    parser.add_argument("--ngram", metavar="FILE", help="an n-gram of the model's tokens: ARPA, or NeMo's .nemo")
    parser.add_argument(
        "--arpa-tokens",
        choices=("offset", "pieces"),
        help="how an ARPA file writes tokens: NeMo's characters, or pieces (default: as they look)",
    )
    parser.add_argument("--model", default="fundamental", help="the base (default: fundamental)")
    parser.add_argument("--adapter", metavar="FOLDER", help="an adapter whose acoustic part the new one gets too")
    parser.add_argument("--output", "-o", metavar="FOLDER", help="folder of the adapter (default: NAME)")
    parser.add_argument("--overwrite", action="store_true", help="write over an adapter that is there")
    parser.add_argument(
        "--prior",
        type=prior_share,
        metavar="SHARE",
        help="share of the base's general prior, 0 (none) to 0.95; `only`: the prior alone (default: from the text)",
    )
    parser.add_argument("--order", type=int, default=6, metavar="N", help="tokens of the longest n-gram (default: 6)")
    parser.add_argument(
        "--weight",
        type=number(at_least=0),
        help="of the n-gram beside the model (default: 0.4, and that of the general prior where it is mixed in)",
    )
    parser.add_argument(
        "--token-bonus",
        type=number(),
        help="what each token gains, a natural logarithm (default: 1, and that of the general prior)",
    )
    parser.add_argument(
        "--boost", type=number(), default=10.0, help="of phrases without one of their own, -100 to 100 (default: 10)"
    )
    parser.add_argument(
        "--unwritable",
        choices=POLICIES,
        default="refuse",
        help="what to do with text that the model cannot write: refuse it, drop the sentence or phrase, or keep the "
        "rest of it (default: refuse)",
    )
    parser.add_argument("--export", metavar="FILE", help="write the n-gram as an ARPA file with NeMo's characters too")


def run(arguments: argparse.Namespace) -> int:
    """Write the adapter, and print its folder. Raises UsageError for options that do not go together."""
    if not (arguments.text or arguments.phrases or arguments.ngram or arguments.prior == ONLY):
        raise UsageError("Nothing to expect: give --text, --phrases or --ngram.")
    if arguments.prior == ONLY and (arguments.text or arguments.ngram):
        raise UsageError("--prior only is the general prior alone; give its share to mix it with --text or --ngram.")
    if arguments.text and arguments.ngram:
        raise UsageError("--text and --ngram are two n-grams, and an adapter has one; give one of them.")
    if arguments.export and not (arguments.text or arguments.ngram or arguments.prior == ONLY):
        raise UsageError("--export writes an n-gram, and phrases alone are none; leave it out.")
    if arguments.order not in ORDERS:
        raise UsageError(f"--order {arguments.order} is not allowed; 1 to {ORDERS[-1]} are.")
    with fast_imports():
        from overtone.adapters.adapter import check_name
        from overtone.checkpoints.ngrams import save_arpa
        from overtone.cli.models import load

    check_name(arguments.name)
    model = load(arguments.model, "cpu")
    words = make_part(arguments, model)
    folder = Path(arguments.output or arguments.name).expanduser()
    save(arguments, model, words, folder)
    if arguments.export and words.ngram is not None:
        save_arpa(words.ngram, Path(arguments.export).expanduser(), model.tokenizer)
    print(f"Adapter: {folder}")
    print(
        f"Next: {shlex.join(['overtone', 'transcribe', 'AUDIO', '--model', arguments.model, '--adapter', str(folder)])}"
    )
    return 0


def make_part(arguments: argparse.Namespace, model: AsrModel) -> WordPart:
    """The word part that the options ask for; notes say what it holds, and what could not be written."""
    from overtone.adapters.word_text import TOKEN_BONUS, WEIGHT, check_phrases, make_words, read_sentences, write_tokens
    from overtone.checkpoints.ngrams import read_ngram
    from overtone.decoding.phrase_boost import read_phrases

    option, tokenizer = "--unwritable ", model.tokenizer
    sequences: list[list[int]] = []
    prior = choose_prior(arguments, model)
    ngram = None if prior is None or arguments.prior != ONLY else prior.ngram
    if arguments.text:
        lines = [line for name in arguments.text for line in read_sentences(Path(name).expanduser())]
        text = write_tokens(tokenizer, ((line, None) for line in lines), policy=arguments.unwritable, option=option)
        sequences = text.sequences
        if text.unwritable:
            note(
                f"{text.describe()}\n{'They are left out.' if arguments.unwritable == 'drop' else 'The rest is kept.'}"
            )
        note(f"Text: {len(sequences)} of {text.sentences} sentences, {text.tokens} tokens")
    elif arguments.ngram:
        ngram = read_ngram(Path(arguments.ngram).expanduser(), tokenizer, form=arguments.arpa_tokens)
    phrases: list[tuple[str, float]] = []
    if arguments.phrases:
        given = list(read_phrases(Path(arguments.phrases).expanduser(), arguments.boost).items())
        kept, unwritten = check_phrases(tokenizer, given, policy=arguments.unwritable, option=option)
        phrases = list(kept)
        if unwritten.unwritable:
            note(unwritten.describe("phrases"))
        note(f"Phrases: {len(phrases)} of {len(given)}")
    weight, bonus = WEIGHT, TOKEN_BONUS
    if prior is not None and arguments.adapter is None:
        weight, bonus = prior.weight, prior.token_bonus
    words = make_words(
        tokenizer,
        sequences=sequences,
        ngram=ngram,
        phrases=phrases,
        order=arguments.order,
        weight=weight if arguments.weight is None else arguments.weight,
        token_bonus=bonus if arguments.token_bonus is None else arguments.token_bonus,
        prior=None if arguments.prior == ONLY else prior,
        prior_share=arguments.prior,
    )
    if words.ngram is not None:
        shared = f", general prior {words.prior_share:.0%}" if words.prior is not None else ""
        note(f"N-gram: order {words.ngram.order}, {len(words.ngram)} n-grams, weight {words.weight:g}{shared}")
    return words


def choose_prior(arguments: argparse.Namespace, model: AsrModel) -> Prior | None:
    """The general prior that acts: for text unless the options say otherwise, for an n-gram where they give a share.

    Raises UsageError where the options want one and the model has none.
    """
    from overtone.adapters.prior import find_prior

    prior = find_prior(model.tokenizer.digest())
    if prior is None and arguments.prior:
        raise UsageError(f"--prior: {model.name} has no general prior; the embedded base, fundamental, has one.")
    wanted = bool(arguments.text) if arguments.prior is None else bool(arguments.prior)
    return prior if wanted else None


def prior_share(text: str) -> float | str:
    """An argument type: a share, or `only`."""
    if text == ONLY:
        return text
    share = number(at_least=0)(text)
    if share > LARGEST_SHARE:
        raise argparse.ArgumentTypeError(f"{text} is too large; 0 to {LARGEST_SHARE:g} are shares, or {ONLY}")
    return share


def save(arguments: argparse.Namespace, model: AsrModel, words: WordPart, folder: Path) -> None:
    """Write the adapter's folder, with the acoustic part of another where the options name one.

    Raises UsageError where they name more than one adapter, or the base.
    """
    if arguments.adapter is None:
        model.adapters.add_words(arguments.name, words)
    else:
        from overtone.checkpoints.adapters import find_adapter

        found = find_adapter(model, arguments.adapter)
        if found is None or "+" in found:
            raise UsageError(f"--adapter {arguments.adapter}: one adapter is needed, not the base and not a chain.")
        if found != arguments.name:
            model.adapters.rename(found, arguments.name)
        model.adapters[arguments.name].words = words
    model.adapters.save(arguments.name, folder, overwrite=arguments.overwrite)
