"""An adapter from text alone: what a domain says, as an n-gram over the model's tokens and a list of phrases.

No recordings are needed, and nothing is trained: decoding adds the words to the model's scores while the adapter is on.
"""

from __future__ import annotations

import argparse
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from overtone.cli.arguments import number
from overtone.cli.screen import note
from overtone.errors import DataError, UsageError
from overtone.startup import fast_imports

if TYPE_CHECKING:
    from overtone.adapters.prior import Prior
    from overtone.adapters.words import WordPart
    from overtone.models.asr_model import AsrModel
    from overtone.tokenizers import Tokenizer

POLICIES = ("refuse", "drop", "keep")
ORDERS = range(1, 11)
ONLY = "only"
LARGEST_SHARE = 0.95
MOST_RECORDINGS = 300
"""Recordings that weights are chosen by; of more, an even share."""
EXAMPLES = """examples:
  overtone words medical --text notes.txt --phrases drugs.txt --model base.nemo
  overtone words medical --text notes.txt --adapter runs/medical --output medical-with-words
  overtone words medical --ngram train.arpa --export medical.arpa
  overtone words english --prior only
  overtone words medical --text notes.txt --speak en-gb

A text has a sentence a line; a list of phrases one a line, each with a boost of its own behind a tab or without.
The embedded base has a general prior, an n-gram of general English: text is mixed with it, in the share that the text
itself shows to be best. `overtone train` chooses weights with recordings; without any, the defaults seldom do harm."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of the adapter; it is always needed")
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
    parser.add_argument(
        "--prediction",
        action="store_true",
        help="transducers: train an adapter of the prediction network on the text too",
    )
    parser.add_argument(
        "--speak",
        nargs="?",
        const="en",
        metavar="VOICE",
        help="have a voice of espeak-ng (en unless given; NAME goes before it) speak the text, and train an acoustic "
        "part on that too: minutes, and little beside the words",
    )
    parser.add_argument(
        "--valid",
        metavar="MANIFEST",
        help="recordings of the domain with transcripts: weights, and what of the adapter is kept, are chosen by them",
    )
    parser.add_argument("--output", "-o", metavar="FOLDER", help="folder of the adapter (default: NAME)")
    parser.add_argument("--overwrite", action="store_true", help="write over an adapter that is there")
    add_weights(parser)
    parser.add_argument(
        "--unwritable",
        choices=POLICIES,
        default="refuse",
        help="what to do with text that the model cannot write: refuse it, drop the sentence or phrase, or keep the "
        "rest of it (default: refuse)",
    )
    parser.add_argument("--export", metavar="FILE", help="write the n-gram as an ARPA file with NeMo's characters too")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the options on the n-gram and how much it counts."""
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


def run(arguments: argparse.Namespace) -> int:
    """Write the adapter, and print its folder. Raises UsageError for options that do not go together."""
    if arguments.name is None:
        taken = "" if arguments.speak is None else f" --speak took '{arguments.speak}' for a voice: write NAME first."
        raise UsageError(f"NAME is missing, the adapter's.{taken or ' Give it: overtone words NAME --text FILE.'}")
    if not (arguments.text or arguments.phrases or arguments.ngram or arguments.prior == ONLY):
        raise UsageError("Nothing to expect: give --text, --phrases or --ngram.")
    if arguments.prior == ONLY and (arguments.text or arguments.ngram):
        raise UsageError("--prior only is the general prior alone; give its share to mix it with --text or --ngram.")
    if arguments.text and arguments.ngram:
        raise UsageError("--text and --ngram are two n-grams, and an adapter has one; give one of them.")
    if arguments.export and not (arguments.text or arguments.ngram or arguments.prior == ONLY):
        raise UsageError("--export writes an n-gram, and phrases alone are none; leave it out.")
    if arguments.prediction and (not arguments.text or arguments.adapter):
        raise UsageError(
            "--prediction trains an acoustic part on --text; it needs that, and does not go with --adapter."
        )
    check_speaking(arguments)
    if arguments.order not in ORDERS:
        raise UsageError(f"--order {arguments.order} is not allowed; 1 to {ORDERS[-1]} are.")
    with fast_imports():
        from overtone.adapters.adapter import check_name
        from overtone.checkpoints.ngrams import save_arpa
        from overtone.cli.models import load

    check_name(arguments.name)
    model = load(arguments.model, "cpu")
    acoustic = find_acoustic(arguments, model)
    tokenizer = model.head_of(acoustic).tokenizer  # an adapter may have its own
    words = make_part(arguments, model, tokenizer)
    if arguments.prediction:
        acoustic = train_on_text(arguments, model)
    if arguments.speak is not None:
        acoustic = train_on_speech(arguments, model)
    part: WordPart | None = words
    if arguments.valid:
        part, acoustic = choose(arguments, model, words, acoustic)
    folder = Path(arguments.output or arguments.name).expanduser()
    save(arguments, model, part, acoustic, folder)
    if arguments.export and words.ngram is not None:
        save_arpa(words.ngram, Path(arguments.export).expanduser(), tokenizer)
    print(f"Adapter: {folder}")
    print(
        f"Next: {shlex.join(['overtone', 'transcribe', 'AUDIO', '--model', arguments.model, '--adapter', str(folder)])}"
    )
    return 0


def make_part(arguments: argparse.Namespace, model: AsrModel, tokenizer: Tokenizer) -> WordPart:
    """The word part that the options ask for; notes say what it holds, and what could not be written.

    tokenizer: of its tokens.
    """
    from overtone.adapters.word_text import TOKEN_BONUS, WEIGHT, check_phrases, make_words
    from overtone.checkpoints.ngrams import read_ngram
    from overtone.decoding.phrase_boost import read_phrases

    option = "--unwritable "
    sequences: list[list[int]] = []
    prior = choose_prior(arguments, model, tokenizer)
    ngram = None if prior is None or arguments.prior != ONLY else prior.ngram
    if arguments.text:
        sequences = read_text(arguments, tokenizer)
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


def read_text(arguments: argparse.Namespace, tokenizer: Tokenizer, *, quiet: bool = False) -> list[list[int]]:
    """The sentences of the text in tokens; notes say what could not be written, unless quiet."""
    from overtone.adapters.word_text import read_sentences, write_tokens

    lines = [(line, None) for name in arguments.text for line in read_sentences(Path(name).expanduser())]
    text = write_tokens(tokenizer, lines, policy=arguments.unwritable, option="--unwritable ")
    if text.unwritable and not quiet:
        note(f"{text.describe()}\n{'They are left out.' if arguments.unwritable == 'drop' else 'The rest is kept.'}")
    if not quiet:
        note(f"Text: {len(text.sequences)} of {text.sentences} sentences, {text.tokens} tokens")
    return text.sequences


def choose_prior(arguments: argparse.Namespace, model: AsrModel, tokenizer: Tokenizer) -> Prior | None:
    """The general prior that acts: for text unless the options say otherwise, for an n-gram where they give a share.

    Raises UsageError where the options want one and the model has none.
    """
    from overtone.adapters.prior import find_prior

    prior = find_prior(tokenizer.digest())
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


def find_acoustic(arguments: argparse.Namespace, model: AsrModel) -> str | None:
    """The adapter whose acoustic part is kept, under its new name. Raises UsageError for more than one, or the base."""
    if arguments.adapter is None:
        return None
    from overtone.checkpoints.adapters import find_adapter

    found = find_adapter(model, arguments.adapter)
    if found is None or "+" in found:
        raise UsageError(f"--adapter {arguments.adapter}: one adapter is needed, not the base and not a chain.")
    if found != arguments.name:
        model.adapters.rename(found, arguments.name)
    return str(arguments.name)


def train_on_text(arguments: argparse.Namespace, model: AsrModel) -> str | None:
    """Train the prediction network's adapter; its name, None where held-out sentences gain nothing from it."""
    from overtone.training.prediction_text import train_prediction

    sequences = read_text(arguments, model.tokenizer, quiet=True)
    found = train_prediction(model, arguments.name, sequences)
    kept = f"{found.after:.1f} at step {found.step}" if found.step else "no better; it is left out"
    note(
        f"Prediction network: perplexity of a token of {found.held_out} held-out sentences {found.before:.1f} → {kept}"
    )
    return arguments.name if found.step else None


def check_speaking(arguments: argparse.Namespace) -> None:
    """Raises UsageError for --speak that goes with nothing to speak, or with another acoustic part."""
    if arguments.speak is None:
        return
    if not arguments.text or arguments.adapter or arguments.prediction:
        raise UsageError(
            "--speak trains an acoustic part on --text; it needs that, and does not go with --adapter or --prediction."
        )
    if not arguments.speak or arguments.speak.startswith("-"):
        raise UsageError(f"--speak '{arguments.speak}' is no voice; `espeak-ng --voices` lists them.")
    from overtone.training.spoken_text import find_program

    find_program()


def train_on_speech(arguments: argparse.Namespace, model: AsrModel) -> str:
    """Train an acoustic part on the text as a voice speaks it; its name."""
    from overtone.training.spoken_text import train_spoken

    tokenizer = model.tokenizer
    texts = [tokenizer.decode(ids).strip() for ids in read_text(arguments, tokenizer, quiet=True)]
    found = train_spoken(model, arguments.name, texts, voice=arguments.speak)
    note(
        f"Spoken: {found.spoken} of {len(texts)} sentences, {found.seconds / 60:.1f} min; an acoustic part is trained "
        f"on {found.trained} of them"
    )
    return str(arguments.name)


def choose(
    arguments: argparse.Namespace, model: AsrModel, words: WordPart, acoustic: str | None
) -> tuple[WordPart | None, str | None]:
    """The parts of the adapter that make the fewest errors on recordings.

    Raises DataError where nothing makes fewer, UsageError for an adapter with a vocabulary of its own.
    """
    from overtone.data.dataset import read_utterance
    from overtone.data.manifest import read_manifest
    from overtone.data.vocabulary import reference_text
    from overtone.inference.word_weights import choose_parts

    if acoustic is not None and model.head_of(acoustic) is not model.head:
        raise UsageError("--valid chooses for the model's own tokens, and this adapter has a vocabulary of its own.")
    lines = read_manifest(Path(arguments.valid).expanduser())
    lines = sorted(lines[:: -(-len(lines) // MOST_RECORDINGS)], key=lambda line: line.duration)
    recordings = [
        (
            partial(read_utterance, line, model.sample_rate),
            reference_text(model.tokenizer, line.text or "", line.language),
        )
        for line in lines
    ]
    found = choose_parts(model, recordings, words, acoustic, optional=arguments.adapter is None)
    kept = acoustic if found.acoustic else None
    if found.part is None and (kept is None or arguments.adapter is not None):
        raise DataError(
            f"Nothing of it makes fewer errors on {len(lines)} recordings of {arguments.valid} than there are without, "
            f"{found.errors.rate:.2%}; no adapter is written."
        )
    chosen = "no words" if found.part is None else f"weight {found.part.weight:g}, bonus {found.part.token_bonus:g}"
    trained = ""
    if acoustic and arguments.adapter is None:
        part = "prediction network" if arguments.speak is None else "spoken part"
        trained = f", {part} {'kept' if kept else 'left out'}"
    note(f"Chosen on {len(lines)} recordings: {chosen}{trained}. WER {found.base.rate:.2%} → {found.errors.rate:.2%}")
    return found.part, kept


def save(
    arguments: argparse.Namespace, model: AsrModel, words: WordPart | None, acoustic: str | None, folder: Path
) -> None:
    """Write the adapter's folder: its words, beside an acoustic part where it has one."""
    if acoustic is not None:
        model.adapters[acoustic].words = words
    else:
        if arguments.name in model.adapters:
            model.adapters.remove(arguments.name)
        assert words is not None, "nothing at all is refused before"
        model.adapters.add_words(arguments.name, words)
    model.adapters.save(arguments.name, folder, overwrite=arguments.overwrite)
