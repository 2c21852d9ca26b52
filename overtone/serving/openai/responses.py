"""Recognition of a recording -> answers of OpenAI's transcription interface."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from overtone.decoding.hypothesis import Word
from overtone.inference.captions import captions, srt, vtt
from overtone.serving.http.openai_json import word_logarithm, word_logprobs
from overtone.serving.recognition.offline import Recognition
from overtone.serving.recognition.service import Mask

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")


def answer(
    recognition: Recognition,
    format: str,
    *,
    granularities: Collection[str],
    language: str,
    mask: Mask,
    logprobs: bool = False,
) -> Response:
    """Answer in one of FORMATS. granularities: `word` and `segment`, for verbose_json. language: of the model.

    logprobs: add those of the words.
    """
    best = recognition.hypotheses[0]
    words = mask_each(best.words, mask)
    text = mask(best.text).strip()
    if format == "text":
        return PlainTextResponse(f"{text}\n")
    if format == "srt":
        return PlainTextResponse(srt(captions(words)))
    if format == "vtt":
        return Response(vtt(captions(words)), media_type="text/vtt")
    content: dict[str, Any] = {"text": text}
    if format == "verbose_json":
        content = {
            "task": "transcribe",
            "language": language.partition("-")[0],
            "duration": round(recognition.seconds, 3),
            "text": text,
        }
        if "segment" in granularities:
            content["segments"] = segments(words)
        if "word" in granularities:
            content["words"] = [word_json(word) for word in words]
    if logprobs:
        content["logprobs"] = word_logprobs(best.words, mask)
    return JSONResponse({**content, "usage": usage(recognition)})


def mask_each(words: Sequence[Word], mask: Mask) -> list[Word]:
    """Words with masked texts."""
    return [replace(word, text=mask(word.text)) for word in words]


def word_json(word: Word) -> dict[str, Any]:
    """JSON of a word, with seconds from the beginning of the audio; `confidence` 0…1 is an addition of ours."""
    return {
        "word": word.text,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "confidence": round(word.confidence, 4),
    }


def segments(words: Sequence[Word]) -> list[dict[str, Any]]:
    """Stretches that captions would show, with the fields of Whisper's segments."""
    found = []
    for index, caption in enumerate(captions(words)):
        logarithms = [word_logarithm(word) for word in caption.words]
        data = caption.text.encode()
        found.append(
            {
                "id": index,
                "seek": 0,
                "start": round(caption.words[0].start, 3),
                "end": round(caption.words[-1].end, 3),
                "text": caption.text,
                "tokens": [],
                "temperature": 0.0,
                "avg_logprob": round(sum(logarithms) / len(logarithms), 4),
                "compression_ratio": round(len(data) / len(zlib.compress(data)), 3),
                "no_speech_prob": 0.0,
            }
        )
    return found


def usage(recognition: Recognition) -> dict[str, Any]:
    """JSON of the billed duration."""
    return {"type": "duration", "seconds": math.ceil(recognition.seconds)}


async def events(
    recognitions: AsyncGenerator[Recognition], mask: Mask, *, logprobs: bool = False
) -> AsyncGenerator[bytes]:
    """Server-sent events: `transcript.text.delta` as the recording is worked through, then `transcript.text.done`.

    logprobs: the last one has those of the words.
    """
    last = None
    async with aclosing(text_deltas(recognitions)) as deltas:
        async for delta, recognition in deltas:
            last = recognition
            if delta:
                yield event({"type": "transcript.text.delta", "delta": mask(delta)})
    assert last is not None
    text = mask(last.hypotheses[0].text).strip()
    more = {"logprobs": word_logprobs(last.hypotheses[0].words, mask)} if logprobs else {}
    yield event({"type": "transcript.text.done", "text": text, **more, "usage": usage(last)})


async def text_deltas(recognitions: AsyncGenerator[Recognition]) -> AsyncGenerator[tuple[str, Recognition]]:
    """Additions of each recognition to the texts before; together they are the text of the last one.

    The newest word is kept back until the next one follows: a seam may lie within it. A beam search may change its
    mind; then the end of the last text replaces what was changed.
    """
    sent, before = "", None
    async with aclosing(recognitions):
        async for recognition in recognitions:
            if before is not None:
                text = before.hypotheses[0].text
                sure = text.rpartition(" ")[0]
                if sure.startswith(sent):
                    yield sure[len(sent) :], before
                    sent = sure
            before = recognition
    assert before is not None
    text = before.hypotheses[0].text
    yield text.removeprefix(sent), before


def event(content: dict[str, Any]) -> bytes:
    """Server-sent event with JSON."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()
