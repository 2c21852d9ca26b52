"""Word parts of adapters: kept in folders, chosen with their adapters, refused where they are damaged or foreign."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.storage import (
    DESCRIPTION,
    PARAMETERS,
    WORDS,
    described_digest,
    read_description,
    read_folder,
    stored_digest,
)
from overtone.adapters.words import WordPart, words_digest
from overtone.checkpoints.adapters import find_adapter
from overtone.checkpoints.huggingface.peft import save_peft
from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.adapters import load_adapters, save_adapters
from overtone.decoding.ngram_counts import build_ngram
from overtone.decoding.phrase_boost import Boost
from overtone.errors import AdapterError, CheckpointError
from overtone.models.asr_model import AsrModel
from support.small_models import add_trained, small_model


def words(model: AsrModel, *, weight: float = 0.5, text: str = "the beta blocker") -> WordPart:
    ngram = build_ngram([model.tokenizer.encode(text)], vocabulary_size=model.tokenizer.size, order=4)
    boosts = (Boost(phrases=("beta blocker", "ätherisch"), boost=8.0), Boost(phrases=("bader",), boost=-20.5))
    return WordPart(
        tokenizer_digest=model.tokenizer.digest(), ngram=ngram, weight=weight, token_bonus=0.25, boosts=boosts
    )


def same(one: WordPart | None, other: WordPart | None) -> bool:
    return one is not None and other is not None and one.to_bytes() == other.to_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter with both parts, saved."""
    model = small_model()
    add_trained(model, "medical")
    model.adapters["medical"].words = words(model)
    return model.adapters.save("medical", tmp_path / "medical")


# There and back


def test_both_parts_come_back(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {DESCRIPTION, PARAMETERS, WORDS}
    model = small_model()
    loaded = model.adapters.load(folder)
    assert loaded.words is not None
    assert same(loaded.words, words(model))
    assert (loaded.words.weight, loaded.words.token_bonus) == (0.5, 0.25)
    assert loaded.words.boosts == words(model).boosts
    assert loaded.digest() == described_digest(folder, read_description(folder))
    described = yaml.safe_load((folder / DESCRIPTION).read_text("utf-8"))["word_part"]
    assert described["order"] == 4
    assert described["phrases"] == 3


def test_words_alone_are_an_adapter_that_leaves_every_forward_as_it_was(tmp_path: Path) -> None:
    model = small_model()
    model.adapters.add_words("notes", words(model))
    other = small_model()
    other.adapters.load(model.adapters.save("notes", tmp_path / "notes"))
    add_trained(other, "noise")
    assert same(other.adapters["notes"].words, words(model))
    waveforms, lengths = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)), torch.tensor([8000, 6000])
    with torch.no_grad():
        base = other(waveforms, lengths)[0]
        for choice, expected in (("notes", None), (["notes", None], None), ("notes+noise", "noise")):
            with other.adapters.use(choice):
                found = other(waveforms, lengths)[0]
            with other.adapters.use(expected):
                assert torch.equal(found, other(waveforms, lengths)[0])
        assert torch.equal(base, other(waveforms, lengths)[0])


def test_a_frozen_adapter_has_its_words(folder: Path) -> None:
    model = small_model()
    adapter = model.adapters.make_frozen("m", read_folder(folder, model.adapters.identity()))
    assert same(adapter.words, words(model))


def test_an_adapter_that_loses_its_words_loses_their_file(folder: Path) -> None:
    model = small_model()
    adapter = model.adapters.load(folder)
    before = adapter.digest()
    adapter.words = None
    assert adapter.digest() != before
    model.adapters.save("medical", folder, overwrite=True)
    assert not (folder / WORDS).exists()
    assert small_model().adapters.load(folder).words is None


def test_the_digest_knows_words_and_weights(folder: Path) -> None:
    model = small_model()
    adapter = model.adapters.load(folder)
    assert adapter.words is not None
    first = adapter.digest()
    adapter.words = adapter.words.weighted(0.7, 0.25)
    assert adapter.digest() != first
    adapter.words = adapter.words.weighted(0.5, 0.25)
    assert adapter.digest() == first


def test_copies_have_the_words(folder: Path) -> None:
    model = small_model()
    first = model.adapters.load(folder)
    model.adapters.add_words("notes", words(model))
    for name in ("medical", "notes"):
        assert model.adapters.copy(name, f"{name}-2").digest() == model.adapters[name].digest()
    assert stored_digest(read_folder(folder, model.adapters.identity())) == first.digest()


def test_model_folders_hold_words(tmp_path: Path) -> None:
    model = small_model()
    add_trained(model, "medical")
    model.adapters["medical"].words = words(model)
    model.adapters.add_words("notes", words(model, text="notes"))
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.adapters.names == ["medical", "notes"]
    assert same(loaded.adapters["notes"].words, words(model, text="notes"))
    assert same(loaded.adapters["medical"].words, words(model))


# Chosen with their adapters


def test_rows_have_the_words_of_their_adapters() -> None:
    model = small_model()
    first, second = words(model), words(model, text="another")
    add_trained(model, "plain")
    model.adapters.add_words("a", first)
    model.adapters.add_words("b", second)
    with model.adapters.use([None, "b+plain+a", "plain", "a"]) as selection:
        assert selection.words(4) == [(), (second, first), (), (first,)]
        with pytest.raises(AdapterError, match="4 adapter choices for a batch of 3"):
            selection.words(3)
    with model.adapters.use("a+plain") as selection:
        assert selection.words(2) == [(first,), (first,)]
    with model.adapters.use(None) as selection:
        assert selection.words(2) == [(), ()]
    assert model.adapters.words_of("plain+b") == (second,)
    assert model.adapters.words_of(None) == ()
    with pytest.raises(AdapterError, match="Adapter 'c' is unknown"):
        model.adapters.words_of("c")


def test_the_words_of_a_chain_act_together() -> None:
    model = small_model()
    first, second = words(model), words(model, text="another", weight=0.25)
    model.adapters.add_words("a", first)
    model.adapters.add_words("b", second)
    with model.adapters.use(["a+b", "a", None]):
        joined, alone, none = model.adapters.words_of_rows(3, model.tokenizer)
    assert joined.ngrams == ((first.ngram, 0.5), (second.ngram, 0.25))
    assert joined.token_bonus == 0.5
    assert [tree.ignored for tree in joined.boosts] == [("ätherisch",), ("ätherisch",)]
    assert alone.boosts[0] is joined.boosts[0]
    assert not none


# Refusals


METADATA = {"tokenizer_digest": small_model().tokenizer.digest()}


def change(name: str, how: Callable[[torch.Tensor], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors = load_file(path)
        how(tensors[name])
        save_file(tensors, path, metadata=METADATA)

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "cannot be read"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-10]), "is not the word part"),
    "a pointer of Git LFS": (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "lfs pull",
    ),
    "another weight": (change("settings", lambda tensor: tensor.mul_(2)), "is not the word part"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage: str, folder: Path) -> None:
    harm, message = DAMAGES[damage]
    harm(folder / WORDS)
    with pytest.raises(AdapterError, match=message):
        small_model().adapters.load(folder)


CONTENTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no safetensors": (lambda path: path.write_bytes(b"nothing"), "is damaged"),
    "a weight out of range": (change("settings", lambda tensor: tensor.fill_(77.0)), "must lie between"),
    "a weight that is no number": (change("settings", lambda tensor: tensor.fill_(torch.nan)), "must lie between"),
    "phrases that are no text": (change("phrases", lambda tensor: tensor.fill_(255)), "is damaged"),
    "an n-gram with a circle": (
        change("ngram.backoff_states", lambda tensor: tensor[1:].fill_(1)),
        "n-gram is damaged",
    ),
    "a tensor too few": (
        lambda path: save_file({name: t for name, t in load_file(path).items() if name != "settings"}, path, METADATA),
        "'settings' is missing",
    ),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_a_hostile_file_under_its_own_digest_is_refused(content: str, folder: Path) -> None:
    harm, message = CONTENTS[content]
    harm(folder / WORDS)
    path = folder / DESCRIPTION
    description = yaml.safe_load(path.read_text("utf-8"))
    description["word_part"]["digest"] = words_digest((folder / WORDS).read_bytes())
    path.write_text(yaml.safe_dump(description), "utf-8")
    with pytest.raises(AdapterError, match=message):
        small_model().adapters.load(folder)


def test_a_malformed_description_is_refused(folder: Path) -> None:
    path = folder / DESCRIPTION
    for wrong in ("words", {"digest": 7}, {}, [1]):
        description = yaml.safe_load(path.read_text("utf-8")) | {"word_part": wrong}
        path.write_text(yaml.safe_dump(description), "utf-8")
        with pytest.raises(AdapterError, match="'word_part' is malformed"):
            read_description(folder)


def test_nothing_at_all_is_no_word_part() -> None:
    with pytest.raises(AdapterError, match="needs an n-gram or a phrase"):
        WordPart(tokenizer_digest="sha256:0")


def test_files_of_nemo_hold_the_words_beside_what_nemo_reads(tmp_path: Path) -> None:
    model = small_model(name="small")
    for name in ("medical", "plain"):
        add_trained(model, name)
    model.adapters["medical"].words = words(model)
    save_adapters(model, tmp_path / "adapters.pt")
    for loaded in (load_model(save_model(model, tmp_path / "model.nemo")), small_model(name="small")):
        if not loaded.adapters:
            load_adapters(loaded, tmp_path / "adapters.pt")
        assert same(loaded.adapters["medical"].words, words(model))
        assert loaded.adapters["plain"].words is None
        assert "overtone_words" not in "".join(loaded.checkpoint_files)
    other = small_model(name="small")
    choice = find_adapter(other, str(tmp_path / "adapters.pt"))
    assert choice == "medical+plain"
    assert find_adapter(other, str(tmp_path / "adapters.pt")) == choice
    assert same(other.adapters["medical"].words, words(model))
    loaded.adapters["medical"].words = None
    assert load_model(save_model(loaded, tmp_path / "less.nemo")).adapters["medical"].words is None
    model.adapters.add_words("notes", words(model))
    with pytest.raises(CheckpointError, match="NeMo does not have"):
        save_model(model, tmp_path / "more.nemo")


def test_damaged_words_in_files_of_nemo_are_refused(tmp_path: Path) -> None:
    model = small_model(name="small")
    add_trained(model, "medical")
    part = words(model)
    save_adapters(model, tmp_path / "plain.pt")
    content = torch.load(tmp_path / "plain.pt", weights_only=False)
    for harm in ("text", {"medical": torch.zeros(3)}, {"medical": torch.zeros(30, dtype=torch.uint8)}):
        torch.save({**content, "__overtone_words__": harm}, tmp_path / "bad.pt")
        with pytest.raises(CheckpointError, match="word part"):
            load_adapters(small_model(name="small"), tmp_path / "bad.pt")
    model.adapters["medical"].words = part
    path = save_model(model, tmp_path / "model.nemo")
    with tarfile.open(path, "a") as archive:
        entry = tarfile.TarInfo("./overtone_words.other.safetensors")
        entry.size = len(part.to_bytes())
        archive.addfile(entry, io.BytesIO(part.to_bytes()))
    with pytest.raises(CheckpointError, match="a word part of adapter 'other', which it does not hold"):
        load_model(path)


def test_words_of_another_tokenizer_are_refused() -> None:
    model = small_model()
    content = words(model).to_bytes()
    with pytest.raises(AdapterError, match=r"made with another tokenizer: it needs sha256:.*, this model has sha256:0"):
        WordPart.from_bytes(content, tokenizer_digest="sha256:0", place="words.safetensors")


def test_folders_of_peft_do_not_lose_words_silently(tmp_path: Path) -> None:
    model = small_model()
    add_trained(model, "low", LoraAdapter(rank=2))
    model.adapters["low"].words = words(model)
    with pytest.raises(CheckpointError, match="which PEFT's folders cannot hold"):
        save_peft(model.adapters["low"], tmp_path / "peft")
