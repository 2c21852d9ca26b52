"""Decoding with words beside a forward: greedy with fusion and beams, 16 rows with one n-gram or another one for each.

python -m benchmarks.words --threads 1

Times are those of the processor, so that other work on the machine counts little. The base has random weights, and
would say noise: emissions are made instead, a peak for each token of a text with a rival beside it, and noise around.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Shape, chosen_shapes, make_parser, parse, print_machine, write_json
from benchmarks.models import make_base, make_batch
from overtone.decoding.ctc_path import best_path
from overtone.decoding.ctc_search import CtcSearch
from overtone.decoding.decoder import BeamSettings
from overtone.decoding.fusion import Words
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


def main() -> None:
    arguments = parse(make_parser(__doc__))
    print_machine()
    figures = {shape.name: measure_ctc(shape) for shape in chosen_shapes(arguments)}
    for name, own in figures.items():
        print(f"\n{name}: 16 rows; seconds of the processor, and shares of the forward")
        for what, seconds in own.items():
            print(f"  {what:24} {seconds:8.3f} {seconds / own['forward']:8.1%}")
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
