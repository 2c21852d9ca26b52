"""Build the telephone prompts that Overtone ships in `overtone/prompts` from two Debian packages.

    pip install G722==1.2.8 numpy soundfile
    apt-get download asterisk-core-sounds-en-g722 asterisk-core-sounds-en
    python recipes/prompts/build.py asterisk-core-sounds-en-g722_*.deb asterisk-core-sounds-en_*.deb

Either argument may also be a folder that holds the unpacked package. `test_names.txt` names the prompts
that are never trained on; the test split is drawn from them. The same packages give the same manifests
and, with the same libopus on the same kind of processor, the same bytes of audio.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from G722 import G722

HERE = Path(__file__).resolve().parent
TARGET = HERE.parents[1] / "overtone" / "prompts"

Samples = npt.NDArray[np.int16]
"""Mono, 16 kHz."""

SAMPLE_RATE = 16_000
G722_BIT_RATE = 64_000
OPUS_COMPRESSION = 0.93
"""libsndfile's scale from 0 (256 kbit/s) to 1 (6 kbit/s); this is about 25 kbit/s."""

SEED = 2003
SPLIT_SECONDS = {"train": 445.0, "test": 200.0}
SHORT_SHARE = 0.2
"""Part of a split's seconds that goes to prompts of one or two words: letters, digits, names of folders."""
MAX_SECONDS = 17.0

FRAME = SAMPLE_RATE // 100
SILENCE_DB = -45.0
"""A 10 ms frame this far below the loudest one is silence."""
MARGIN_SECONDS = 0.2
"""Silence kept before the first and after the last sound."""
PACE = (0.6, 2.4)
"""Bounds of the length of a recording over the length that its words let expect."""
SHARED_RUN = 6
"""Two sentences with as many words in a row in common are not put on both sides of the split."""

ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPOKEN = {"*": " star ", "#": " pound "}
SPELLED = frozenset({"A.M.", "P.M.", "IAX", "IVR", "MGCP", "PBX", "USB"})
"""Read letter by letter. Other capitals are words (SIP, DAHDI)."""
RESPELLED = {
    "de-activated": "deactivated",
    "exclaimation-point": "exclamation point",
    "fourtieth": "fortieth",
    "re-record": "rerecord",
    "represenatives": "representatives",
    "thru": "through",
    "umute": "unmute",
    "un-indentified": "unidentified",
    "witheld": "withheld",
}
"""Slips of the transcript file, and one word that it writes in two ways."""
UNCERTAIN = frozenset({"spy-iax"})
"""Three letters in the transcript; the recording may read the last two as one syllable."""


class BuildError(Exception):
    """What was given is not the two packages, or they do not hold what the recipe needs."""


class UnusableError(Exception):
    """This prompt is not for the corpus; the message is the reason, counted at the end."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    name: str
    text: str
    samples: Samples

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    @property
    def words(self) -> list[str]:
        return self.text.split()


# -- words ---------------------------------------------------------------------------------------


def read_transcripts(folder: Path) -> dict[str, str]:
    """`core-sounds-en.txt`, plain or gzipped: one `name: words` a line, comments after a semicolon."""
    path = find_one(folder, "core-sounds-en.txt*")
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = (line for line in raw.decode("utf-8").splitlines() if line and not line.startswith(";"))
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): words.strip() for name, _, words in pairs}


def write_out(raw: str) -> str:
    """The words as spoken, in `[a-z' ]`. Raises `UnusableError` where the writing leaves the speech open."""
    text = re.sub(r"\s\[.\]$", "", raw)  # "dash [-]" names the character that is read as "dash"
    if re.search(r"[\[\](){}<>]", text):
        raise UnusableError("a remark or a sound, not only words")
    if re.search(r"\d[\d.]|[a-z]\.[a-z]|\.\d", text):
        raise UnusableError("a long number or an address: its spoken form is not certain")
    text = "".join(SPOKEN.get(character, character) for character in text)
    words = (spoken_word(word) for word in re.split(r"[\s,;:!?\"]+|\.\.\.", text))
    text = " ".join(" ".join(words).split())
    if not re.fullmatch(r"[a-z']+( [a-z']+)*", text):
        raise UnusableError("a sign that has no certain spoken form")
    return text


def spoken_word(word: str) -> str:
    word = word if word in SPELLED else word.rstrip(".")
    if word in SPELLED:
        return " ".join(word.replace(".", "").lower())
    word = RESPELLED.get(word.lower(), word.lower())
    word = re.sub(r"\d", lambda digit: f" {ONES[int(digit.group())]} ", word)
    return word.replace("-", " ")


# -- audio ---------------------------------------------------------------------------------------


def decode(path: Path) -> Samples:
    return np.asarray(G722(SAMPLE_RATE, G722_BIT_RATE).decode(path.read_bytes()), dtype=np.int16)


def trim(samples: Samples) -> Samples:
    """Cut silence at both ends down to `MARGIN_SECONDS`; never inside, and no change of level."""
    frames = samples[: len(samples) // FRAME * FRAME].astype(np.float64).reshape(-1, FRAME)
    power = (frames**2).mean(axis=1)
    loud = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (SILENCE_DB / 10))
    if not loud.size:
        raise UnusableError("silence")
    margin = round(MARGIN_SECONDS * SAMPLE_RATE)
    start = max(0, int(loud[0]) * FRAME - margin)
    return samples[start : (int(loud[-1]) + 1) * FRAME + margin]


def check_pace(prompt: Prompt) -> None:
    expected_seconds = 0.45 + 0.06 * len(prompt.text)
    fastest, slowest = PACE
    if not fastest <= prompt.seconds / expected_seconds <= slowest:
        raise UnusableError("the length of the audio does not fit the words")


def write_opus(path: Path, samples: Samples) -> None:
    soundfile.write(path, samples, SAMPLE_RATE, "OPUS", format="OGG", compression_level=OPUS_COMPRESSION)
    path.write_bytes(b"".join(steady_pages(path.read_bytes())))


def steady_pages(ogg: bytes) -> Iterator[bytes]:
    """The pages of an Ogg file with serial number 1, not libsndfile's random one: builds are equal.

    Page layout: RFC 3533, section 6.
    """
    while ogg:
        segments = ogg[26]
        length = 27 + segments + sum(ogg[27 : 27 + segments])
        page = bytearray(ogg[:length])
        page[14:18] = (1).to_bytes(4, "little")
        page[22:26] = bytes(4)
        page[22:26] = ogg_checksum(bytes(page)).to_bytes(4, "little")
        yield bytes(page)
        ogg = ogg[length:]


BIT_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_checksum(page: bytes) -> int:
    """Ogg's CRC-32 is zlib's polynomial with the bits in the other order and nothing inverted."""
    reflected = zlib.crc32(page.translate(BIT_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{reflected:032b}"[::-1], 2)


# -- the corpus ----------------------------------------------------------------------------------


def read_prompts(root: Path, transcripts: dict[str, str], names: Iterable[str], left_out: Counter[str]) -> list[Prompt]:
    """The usable prompts of `names`, in that order, one recording of each sentence."""
    by_text: dict[str, Prompt] = {}
    for name in names:
        try:
            prompt = read_prompt(root / f"{name}.g722", name, transcripts[name])
            if prompt.text in by_text:
                raise UnusableError("another recording of the same words")
        except UnusableError as reason:
            left_out[str(reason)] += 1
        else:
            by_text[prompt.text] = prompt
    return list(by_text.values())


def read_prompt(path: Path, name: str, raw: str) -> Prompt:
    text = write_out(raw)
    if name in UNCERTAIN:
        raise UnusableError("the recording is not certain to say these words")
    if not path.is_file():
        raise UnusableError("words without a recording")
    prompt = Prompt(name=name, text=text, samples=trim(decode(path)))
    if prompt.seconds > MAX_SECONDS:
        raise UnusableError(f"longer than {MAX_SECONDS:g} s")
    check_pace(prompt)
    return prompt


def overlap(one: Prompt, other: Prompt) -> bool:
    """Whether the texts are equal, share a long run, or one of three words or more is part of the other."""
    shorter, longer = sorted((one, other), key=lambda prompt: len(prompt.words))
    contained = len(shorter.words) >= 3 and f" {shorter.text} " in f" {longer.text} "
    return one.text == other.text or contained or bool(runs(one) & runs(other))


def runs(prompt: Prompt) -> set[tuple[str, ...]]:
    words = prompt.words
    return {tuple(words[start : start + SHARED_RUN]) for start in range(len(words) - SHARED_RUN + 1)}


def split(prompts: list[Prompt], test_names: frozenset[str], left_out: Counter[str]) -> dict[str, list[Prompt]]:
    """The test split is drawn from `test_names`, training from what shares no sentence with any of them."""
    reserved = [prompt for prompt in prompts if prompt.name in test_names]
    others = [prompt for prompt in prompts if prompt.name not in test_names]
    free = [prompt for prompt in others if not any(overlap(prompt, test) for test in reserved)]
    splits = {"train": draw(free, SPLIT_SECONDS["train"]), "test": draw(reserved, SPLIT_SECONDS["test"])}
    left_out["shares a sentence with the test split"] = len(others) - len(free)
    left_out["not drawn"] = len(free) + len(reserved) - sum(map(len, splits.values()))
    return splits


def draw(prompts: list[Prompt], seconds: float) -> list[Prompt]:
    """A seeded draw of about `seconds`, `SHORT_SHARE` of them of one or two words, sorted by name.

    The order is a hash of the name, so that a prompt more or less does not change the rest of the draw.
    """
    left = {True: SHORT_SHARE * seconds, False: (1 - SHORT_SHARE) * seconds}
    drawn = []
    for prompt in sorted(prompts, key=lambda prompt: sha256(f"{SEED} {prompt.name}".encode()).digest()):
        short = len(prompt.words) <= 2
        if prompt.seconds <= left[short]:
            left[short] -= prompt.seconds
            drawn.append(prompt)
    return sorted(drawn, key=lambda prompt: prompt.name)


def write_corpus(target: Path, splits: dict[str, list[Prompt]]) -> None:
    audio = target / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    for old in audio.glob("*.ogg"):
        old.unlink()
    for split_name, prompts in splits.items():
        lines = []
        for prompt in prompts:
            file_name = f"audio/{prompt.name.replace('/', '_')}.ogg"
            write_opus(target / file_name, prompt.samples)
            entry = {"audio_filepath": file_name, "duration": round(prompt.seconds, 3), "text": prompt.text}
            lines.append(json.dumps(entry) + "\n")
        (target / f"{split_name}.jsonl").write_text("".join(lines), encoding="utf-8")


# -- the command ---------------------------------------------------------------------------------


def open_package(package: Path, scratch: Path) -> Path:
    """The folder that holds the package: unpacked into `scratch`, or as given."""
    if package.is_dir():
        return package
    if package.suffix != ".deb" or not package.is_file():
        raise BuildError(f"{package} is neither a .deb file nor a folder")
    folder = scratch / package.stem
    try:
        subprocess.run(["dpkg-deb", "--extract", package, folder], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise BuildError("dpkg-deb is not installed; unpack the packages by other means and name the folders") from None
    except subprocess.CalledProcessError as failure:
        raise BuildError(f"cannot unpack {package}: {failure.stderr.strip()}") from None
    return folder


def find_one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise BuildError(f"expected one {pattern} in {folder}, found {len(found)}")
    return found[0]


def build(audio_package: Path, words_package: Path, target: Path) -> None:
    left_out: Counter[str] = Counter()
    test_names = frozenset((HERE / "test_names.txt").read_text(encoding="utf-8").split())
    with tempfile.TemporaryDirectory() as scratch:
        root = find_one(open_package(audio_package, Path(scratch)), "agent-pass.g722").parent
        transcripts = read_transcripts(open_package(words_package, Path(scratch)))
        if unknown := sorted(test_names - transcripts.keys()):
            raise BuildError(f"test_names.txt names prompts that have no transcript: {', '.join(unknown)}")
        names = sorted(transcripts, key=lambda name: (name not in test_names, name))
        prompts = read_prompts(root, transcripts, names, left_out)
    splits = split(prompts, test_names, left_out)
    write_corpus(target, splits)
    report(target, splits, left_out)


def report(target: Path, splits: dict[str, list[Prompt]], left_out: Counter[str]) -> None:
    for split_name, prompts in splits.items():
        minutes = sum(prompt.seconds for prompt in prompts) / 60
        words = sum(len(prompt.words) for prompt in prompts)
        print(f"{split_name}: {len(prompts)} prompts, {words} words, {minutes:.2f} min")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"size: {size / 1e6:.2f} MB")
    print("left out:")
    for reason, count in left_out.most_common():
        print(f"{count:5} {reason}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("audio", type=Path, help="asterisk-core-sounds-en-g722: .deb file or unpacked folder")
    parser.add_argument("words", type=Path, help="asterisk-core-sounds-en: .deb file or unpacked folder")
    parser.add_argument("--target", type=Path, default=TARGET, help="folder to write (default: overtone/prompts)")
    arguments = parser.parse_args()
    try:
        build(arguments.audio, arguments.words, arguments.target)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
