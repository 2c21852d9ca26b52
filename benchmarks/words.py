"""Decoding with words beside a forward: greedy with fusion and beams, 16 rows with one n-gram or another one for each.

python -m benchmarks.words --threads 1
python -m benchmarks.words --threads 1 --resident 1000    # so many word parts in memory, batches of 16 of them

Times are those of the processor, so that other work on the machine counts little. The base has random weights, and
would say noise: emissions are made instead, a peak for each token of a text with a rival beside it, and noise around.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import Shape, chosen_shapes, make_parser, parse, print_machine, write_json
from benchmarks.models import make_base, make_batch
from overtone.decoding.ctc_path import best_path
from overtone.decoding.ctc_search import CtcSearch
from overtone.decoding.decoder import BeamSettings
from overtone.decoding.fusion import Fusion, Words
from overtone.decoding.mixture import Mixture
from overtone.decoding.ngram_counts import build_ngram

ROUNDS = 3
WIDTHS = (1, 4, 8, 16)
TOKENS_A_SECOND = 4.0


def processor_seconds(work: Callable[[], object]) -> float:
    """The least processor time of the rounds, after one that does not count."""
    work()
    found = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)


def make_texts(count: int, length: int, classes: int) -> list[list[int]]:
    """Texts of tokens that follow one another as those of a language do: few after each, and some more often."""
    generator = torch.Generator().manual_seed(0)
    following = torch.randint(0, classes, (classes, 12), generator=generator)
    weights = 1.0 / torch.arange(1, 13)
    texts = []
    for _ in range(count):
        text = [int(torch.randint(0, classes, (1,), generator=generator))]
        for choice in weights.multinomial(length - 1, replacement=True, generator=generator).tolist():
            text.append(int(following[text[-1], choice]))
        texts.append(text)
    return texts


def make_emissions(texts: Sequence[Sequence[int]], frames: int, classes: int) -> Tensor:
    """Log-probabilities [B, T, V+1]: each token in one frame or two, with a rival."""
    generator = torch.Generator().manual_seed(1)
    logits = 1.5 * torch.randn(len(texts), frames, classes + 1, generator=generator)
    logits[..., classes] += 11.0
    for row, text in enumerate(texts):
        for place, token in enumerate(text):
            frame = (place * frames) // len(text)
            width = 1 + int(torch.rand(1, generator=generator) < 0.4)
            rival = int(torch.randint(0, classes, (1,), generator=generator))
            logits[row, frame : frame + width, token] += 12.0
            logits[row, frame : frame + width, rival] += float(11.0 + 2.0 * torch.rand(1, generator=generator))
    return logits.log_softmax(-1)


def search(emissions: Tensor, rows: Sequence[Words], width: int) -> object:
    found = CtcSearch(rows, emissions.size(2) - 1, BeamSettings(width=width), emissions.device)
    found.push(emissions, torch.full((len(emissions),), emissions.size(1)))
    return found.best(1)


def measure_ctc(shape: Shape) -> dict[str, float]:
    """Processor seconds of a forward, of greedy decoding, and of every width, by name."""
    model = make_base(shape)
    waveforms, lengths, *_ = make_batch(shape)
    waveforms, lengths = waveforms[:1].repeat(16, 1), lengths[:1].repeat(16)
    with torch.no_grad():
        emitted, frames = model(waveforms, lengths)
        figures = {"forward": processor_seconds(lambda: model(waveforms, lengths))}
    count, classes = int(frames.max()), emitted.size(2) - 1
    seconds = count * model.seconds_per_frame
    texts = make_texts(16, round(TOKENS_A_SECOND * seconds), classes)
    emissions = make_emissions(texts, count, classes)
    written = make_texts(160 if shape.layers < 4 else 2000, 40, classes)
    ngrams = [build_ngram(written[place::16], vocabulary_size=classes, order=6) for place in range(16)]
    figures["greedy"] = processor_seconds(lambda: best_path(emissions, frames))
    for name, own in (("one n-gram", ngrams[:1] * 16), ("16 n-grams", ngrams)):
        rows = [Words(ngrams=((ngram, 0.5),), token_bonus=0.5) for ngram in own]
        for width in WIDTHS:
            figures[f"{name}, width {width}"] = processor_seconds(partial(search, emissions, rows, width))
    return figures


def measure_resident(count: int) -> dict[str, float]:
    """Memory of so many word parts, and processor seconds of batches of 16 of them, drawn anew each time."""
    classes, generator = 128, random.Random(0)
    before = resident_megabytes()
    general = build_ngram(make_texts(20_000, 40, classes), vocabulary_size=classes, order=6)
    figures = {"general n-gram, MB": resident_megabytes() - before}
    before = resident_megabytes()
    texts = make_texts(40 * count, 25, classes)
    ngrams = [build_ngram(texts[place::count], vocabulary_size=classes, order=6) for place in range(count)]
    del texts
    figures["n-grams each"] = sum(map(len, ngrams)) / count
    figures["word parts, MB"] = resident_megabytes() - before
    emissions = make_emissions(make_texts(16, 32, classes), 100, classes)

    def batch(mixed: bool, width: int | None) -> object:
        drawn = generator.sample(ngrams, 16)
        if mixed:
            mixtures = [Mixture(domain=ngram, general=general, share=0.4) for ngram in drawn]
            rows = [Words(mixtures=((mixture, 0.7),), token_bonus=2.0) for mixture in mixtures]
        else:
            rows = [Words(ngrams=((ngram, 0.7),), token_bonus=2.0) for ngram in drawn]
        return Fusion(rows, classes, emissions.device) if width is None else search(emissions, rows, width)

    for name, mixed in (("", False), (", mixed with the general one", True)):
        figures[f"words of a batch{name}"] = processor_seconds(partial(batch, mixed, None))
        for width in (1, 8):
            figures[f"width {width}{name}"] = processor_seconds(partial(batch, mixed, width))
    figures["with those batches, MB"] = resident_megabytes() - before
    large = [build_ngram(texts, vocabulary_size=classes, order=6) for texts in halves(16, classes)]
    rows = [Words(ngrams=((ngram, 0.7),)) for ngram in large]
    figures["n-grams each of 16 large ones"] = sum(map(len, large)) / 16
    begun = time.process_time()
    Fusion(rows, classes, emissions.device)
    figures["first words of a batch of these"] = time.process_time() - begun
    figures["words of a batch of these"] = processor_seconds(lambda: Fusion(rows, classes, emissions.device))
    return figures


def halves(count: int, classes: int) -> Iterator[list[list[int]]]:
    """So many texts, each half of the same sentences."""
    texts = make_texts(8000, 40, classes)
    for place in range(count):
        yield random.Random(place).sample(texts, len(texts) // 2)


def resident_megabytes() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--resident", type=int, metavar="N", help="measure N word parts in memory instead")
    arguments = parse(parser)
    print_machine()
    if arguments.resident:
        resident = measure_resident(arguments.resident)
        for what, value in resident.items():
            print(f"  {what:50} {value:10.4g}")
        write_json(arguments.json, resident)
        return
    figures = {shape.name: measure_ctc(shape) for shape in chosen_shapes(arguments)}
    for name, own in figures.items():
        print(f"\n{name}: 16 rows; seconds of the processor, and shares of the forward")
        for what, seconds in own.items():
            print(f"  {what:24} {seconds:8.3f} {seconds / own['forward']:8.1%}")
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
