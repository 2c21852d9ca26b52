"""ARPA files of token n-grams, read and written.

A token is written as its piece, or as NeMo writes it, as the one character whose code point is the id plus 100.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from overtone.decoding.ngram import LARGEST_ORDER, Ngram
from overtone.decoding.ngram_counts import Grams, make_ngram
from overtone.errors import DataError

TOKEN_OFFSET = 100
"""The code point of NeMo's first token."""
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
MARKS = (BEGIN, END, UNKNOWN)
LARGEST_FILE = 20_000_000
"""N-grams of the largest file that is read."""
NEVER = -99.0
"""ARPA's base-10 logarithm of no chance at all."""
LOG10 = math.log(10.0)
COUNT = re.compile(r"ngram\s+(\d+)\s*=\s*(\d+)")
SECTION = re.compile(r"\\(\d+)-grams:")

Form = Literal["offset", "pieces"]
Words = tuple[str, ...]
Entries = dict[Words, tuple[float, float]]
"""By the words of an n-gram: the base-10 logarithms of its probability, and of its weight as a context."""


def read_arpa(lines: Iterable[str], pieces: Sequence[str], *, form: Form | None = None, name: str = "") -> Ngram:
    """The n-gram of an ARPA file, by its lines.

    pieces: the model's vocabulary. form: of the file's tokens; None: as they look. name: of the file, for messages.
    Raises DataError for a damaged file, and for tokens that are not the model's.
    """
    place = name or "The ARPA file"
    orders = parse(lines, place)
    ids = name_tokens([words[0] for words in orders[0]], pieces, form, place)
    complete(orders, place)
    return make_ngram(make_grams(orders, ids, len(pieces)), len(pieces))


def parse(lines: Iterable[str], place: str) -> list[Entries]:
    """The entries of each order. Raises DataError, naming the line, where the file is no ARPA or is cut short."""
    counts: dict[int, int] = {}
    orders: list[Entries] = []
    begun = ended = False
    for number, raw in enumerate(lines, start=1):
        line = raw.rstrip("\r\n")
        where = f"{place}:{number}"
        if not line.strip(" \t"):
            continue
        if not begun:
            begun = line.strip() == "\\data\\"
            if not begun:
                raise DataError(f"{where}: an ARPA file begins with \\data\\; this is none.")
        elif line.strip() == "\\end\\":
            ended = True
            break
        elif counted := COUNT.fullmatch(line.strip()):
            counts[int(counted[1])] = int(counted[2])
            if sum(counts.values()) > LARGEST_FILE:
                raise DataError(f"{where}: more than {LARGEST_FILE} n-grams; prune the file first.")
        elif section := SECTION.fullmatch(line.strip()):
            if int(section[1]) != len(orders) + 1 or int(section[1]) not in counts or len(orders) == LARGEST_ORDER:
                raise DataError(f"{where}: {line.strip()} is out of order; orders 1 to {LARGEST_ORDER} are allowed.")
            orders.append({})
        elif not orders:
            raise DataError(f"{where}: '{line[:40]}' stands where the numbers of n-grams are expected.")
        else:
            words, values = parse_entry(line, len(orders), where)
            orders[-1][words] = values
    found = {place + 1: len(own) for place, own in enumerate(orders)}
    if not ended or not orders or found != counts:
        raise DataError(f"{place} is cut short or damaged: it announces {counts} n-grams by order, and holds {found}.")
    while len(orders) > 1 and not orders[-1]:
        orders.pop()
    return orders


def parse_entry(line: str, order: int, where: str) -> tuple[Words, tuple[float, float]]:
    """The words and logarithms of one line of so many words. Raises DataError."""
    fields = line.split("\t")
    if len(fields) == 1:  # some tools write spaces alone
        parts = line.split(" ")
        fields = [parts[0], " ".join(parts[1 : order + 1]), *parts[order + 1 :]]
    try:
        value, words = float(fields[0]), tuple(fields[1].split(" "))
        weight = float(fields[2]) if len(fields) > 2 and fields[2].strip() else 0.0
    except (ValueError, IndexError):
        value, words, weight = math.nan, (), 0.0
    if len(words) != order or len(fields) > 3 or math.isnan(value) or not math.isfinite(weight) or value > 1e-3:
        raise DataError(f"{where}: '{line[:60]}' is no {order}-gram with the logarithm of its probability before it.")
    misplaced = BEGIN in words[1:] or END in words[:-1]
    if misplaced:
        raise DataError(f"{where}: {BEGIN} can only come first, {END} only last.")
    return words, (max(value, NEVER), max(weight, NEVER))


def name_tokens(words: Sequence[str], pieces: Sequence[str], form: Form | None, place: str) -> dict[str, int]:
    """The id of each word of a file, without the marks. Raises DataError where the words are not the model's tokens."""
    size = len(pieces)
    said = [word for word in words if word not in MARKS]
    by_piece = {spell(piece): number for number, piece in enumerate(pieces)}
    by_offset = {word: ord(word) - TOKEN_OFFSET for word in said if len(word) == 1}
    others = {
        "pieces": [word for word in said if word not in by_piece],
        "offset": [word for word in said if not 0 <= by_offset.get(word, -1) < size],
    }
    fitting: list[str] = [name for name, own in others.items() if not own and form in (None, name)]
    if not fitting:
        strange = sorted(others[form or "pieces"])[:5]
        raise DataError(
            f"{place} is of other tokens than the model's: {', '.join(map(repr, strange))} … The model has {size}, "
            f"such as {', '.join(map(repr, pieces[1:5]))}. Build the n-gram over the model's own tokens, as NeMo's "
            "train_kenlm.py does, or give the text itself."
        )
    if len(fitting) > 1:
        raise DataError(
            f"{place}: its tokens may be pieces, or characters from code point {TOKEN_OFFSET} on. Say which: "
            f"{' or '.join(fitting)}."
        )
    return {word: by_piece[word] if fitting == ["pieces"] else by_offset[word] for word in said}


def spell(piece: str) -> str:
    """A piece in an ARPA file: without spaces, and never one of its marks, which the model's tokens may be called."""
    plain = piece.replace(" ", "▁")
    return f"{plain}▁" if plain in MARKS else plain


def complete(orders: list[Entries], place: str) -> None:
    """Add the n-grams on which others rest and which pruning has left out, with what they are worth without it.

    Raises DataError for an n-gram whose beginning is in no way among those of the order below.
    """
    for own in orders:
        for words in [words for words in own if len(words) > 1 and UNKNOWN in words]:
            del own[words]
    missing: list[list[Words]] = [[] for _ in orders]
    for order in range(len(orders) - 1, 0, -1):
        below = orders[order - 1]
        for words in (*orders[order], *missing[order]):
            for part in (words[:-1], words[1:]):
                if part not in below:
                    if order == 1:
                        raise DataError(f"{place}: '{' '.join(words)}' has a token that is not among the 1-grams.")
                    below[part] = (math.nan, 0.0)
                    missing[order - 1].append(part)
    for order, added in enumerate(missing):
        for words in added:
            below = orders[order - 1]
            orders[order][words] = (below[words[:-1]][1] + below[words[1:]][0], 0.0)


def make_grams(orders: Sequence[Entries], ids: dict[str, int], vocabulary_size: int) -> list[Grams]:
    """The entries as arrays, sorted by context and token; a token that the file lacks has a share of the unknown."""
    numbers = {**ids, BEGIN: vocabulary_size, END: vocabulary_size + 1}
    first = {words: values for words, values in orders[0].items() if words != (UNKNOWN,)}
    first.setdefault((BEGIN,), (NEVER, 0.0))
    first.setdefault((END,), (NEVER, 0.0))
    absent = sorted(set(range(vocabulary_size)) - set(ids.values()))
    unknown = orders[0].get((UNKNOWN,), (NEVER, 0.0))[0] - math.log10(max(len(absent), 1))
    numbers |= {f"\0{token}": token for token in absent}  # no word of a file holds this character
    first |= {(f"\0{token}",): (unknown, 0.0) for token in absent}
    found: list[Grams] = []
    places: dict[Words, int] = {(): 0}
    for own in (first, *orders[1:]):
        words = list(own)
        contexts = np.array([places[each[:-1]] for each in words], dtype=np.int64)
        suffixes = np.array([places[each[1:]] for each in words], dtype=np.int64)
        tokens = np.array([numbers[each[-1]] for each in words], dtype=np.int64)
        values = np.array([own[each] for each in words], dtype=np.float64).reshape(-1, 2)
        order = np.lexsort((tokens, contexts))
        found.append(
            Grams(
                contexts=contexts[order],
                tokens=tokens[order],
                suffixes=suffixes[order],
                counts=np.ones(len(words), dtype=np.int64),
                first=np.array([words[place][0] == BEGIN for place in order], dtype=np.bool_),
                probs=10.0 ** values[order, 0],
                backoff=10.0 ** values[order, 1],
            )
        )
        places = {words[place]: rank for rank, place in enumerate(order.tolist())}
    return found


# Writing


def write_arpa(ngram: Ngram, pieces: Sequence[str], *, form: Form = "offset") -> Iterator[str]:
    """The lines of an ARPA file. Raises DataError for pieces that cannot be told apart in one."""
    arcs = ngram.arcs
    spelt = [chr(token + TOKEN_OFFSET) for token in range(len(pieces))]
    if form == "pieces":
        spelt = [spell(piece) for piece in pieces]
        if len(set(spelt)) < len(spelt) or any(not piece or piece.split() != [piece] for piece in spelt):
            raise DataError(
                "The pieces of this vocabulary cannot be told apart in an ARPA file; use the form 'offset'."
            )
    contexts = find_contexts(ngram)
    states = {words: state for state, words in contexts.items()}
    lines: list[list[str]] = [[] for _ in range(ngram.order)]
    ends, back = arcs.end_log_probs.tolist(), arcs.backoff_states.tolist()
    weights, starts = arcs.backoff_log_probs.tolist(), arcs.starts.tolist()
    tokens, values = arcs.tokens.tolist(), arcs.log_probs.tolist()

    def entry(value: float, words: tuple[int, ...], last: str) -> str:
        text = " ".join([*(BEGIN if word < 0 else spelt[word] for word in words), last])
        return f"{max(value / LOG10, NEVER):.7g}\t{text}"

    lines[0] += [f"{NEVER:g}\t{UNKNOWN}\t0", f"{NEVER:g}\t{BEGIN}\t{weights[ngram.start] / LOG10:.7g}"]
    for state, words in contexts.items():
        own = lines[len(words)]
        if not state or abs(ends[state] - weights[state] - ends[back[state]]) > 1e-6:
            own.append(entry(ends[state], words, END))
        for arc in range(starts[state], starts[state + 1]):
            after = states.get((*words, tokens[arc]))
            weight = "" if after is None else f"\t{weights[after] / LOG10:.7g}"
            own.append(entry(values[arc], words, spelt[tokens[arc]]) + weight)
    yield "\\data\\\n"
    yield from (f"ngram {order}={len(own)}\n" for order, own in enumerate(lines, start=1))
    for order, own in enumerate(lines, start=1):
        yield f"\n\\{order}-grams:\n"
        yield from (f"{line}\n" for line in own)
    yield "\n\\end\\\n"


def find_contexts(ngram: Ngram) -> dict[int, tuple[int, ...]]:
    """The tokens of every context by its state, shorter ones first; -1 is the beginning of a sentence."""
    arcs = ngram.arcs
    back = arcs.backoff_states.tolist()
    lengths = []
    for state in range(len(back)):
        steps, at = 0, state
        while back[at] != at:
            steps, at = steps + 1, back[at]
        lengths.append(steps)
    found: dict[int, tuple[int, ...]] = {0: (), **({ngram.start: (-1,)} if ngram.start else {})}
    starts, tokens, following = arcs.starts.tolist(), arcs.tokens.tolist(), arcs.next.tolist()
    for state in sorted(range(len(back)), key=lengths.__getitem__):
        for arc in range(starts[state], starts[state + 1]) if state in found else ():
            if lengths[following[arc]] == lengths[state] + 1:
                found.setdefault(following[arc], (*found[state], tokens[arc]))
    return found
