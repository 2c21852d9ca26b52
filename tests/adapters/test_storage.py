"""Adapters on disk: what is written comes back, and what is damaged, foreign or hostile is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.adapters.storage import DESCRIPTION, PARAMETERS, described_digest, read_description
from overtone.adapters.strategies import ResidualAdd
from overtone.errors import AdapterError
from overtone.models.asr_model import AsrModel, build_model
from overtone.tokenizers import CharTokenizer
from support.families import KIND_CASES, LABELS, add_trained, batch, family_model


def log_probs(model: AsrModel, choice: str) -> Tensor:
    with torch.no_grad(), model.adapters.use(choice):
        return model(*batch(8_000, 6_000))[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter called `medical`, saved."""
    model = family_model()
    add_trained(model, "medical", KIND_CASES["linear_pre"])
    return model.adapters.save("medical", tmp_path / "medical")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / DESCRIPTION
    description = yaml.safe_load(path.read_text("utf-8"))
    path.write_text(yaml.safe_dump({**description, **changes}), "utf-8")


# There and back


@pytest.mark.parametrize("name", KIND_CASES)
def test_every_kind_comes_back(name: str, tmp_path: Path) -> None:
    model = family_model()
    strategy = ResidualAdd(stochastic_depth=0.1, l2_lambda=0.25)
    add_trained(model, "a.1", KIND_CASES[name], layers=[1], strategy=strategy)
    model.adapters["a.1"].card = {"hours": 1.5, "wer": {"before": 0.31, "after": 0.12}, "note": "Hörfunk"}
    folder = model.adapters.save("a.1", tmp_path / "new" / "place")
    assert {path.name for path in folder.iterdir()} == {PARAMETERS, DESCRIPTION}
    other = family_model()
    loaded, copy = other.adapters.load(folder), other.adapters.load(folder, name="copy")
    first = model.adapters["a.1"]
    for adapter in (loaded, copy):
        assert adapter.kind == first.kind
        assert adapter.points == first.points
        assert adapter.strategy == strategy
        assert adapter.card == first.card
        assert adapter.digest() == first.digest()
        for key, tensor in first.tensors().items():
            assert torch.equal(tensor, adapter.tensors()[key])
    assert other.adapters.names == ["a.1", "copy"]
    assert torch.equal(log_probs(other, "copy"), log_probs(model, "a.1"))


def test_layers_of_any_form_come_back(tmp_path: Path) -> None:
    model = family_model(layers=4)
    for name, layers in {"a": "last:2", "b": (0, 3), "c": range(2), "d": 1, "e": "all"}.items():
        points = model.adapters.add(name, LinearAdapter(dim=2), layers=layers).points
        assert model.adapters.load(model.adapters.save(name, tmp_path / name), name=f"{name}2").points == points


def test_the_description_says_what_it_is(folder: Path) -> None:
    description = yaml.safe_load((folder / DESCRIPTION).read_text("utf-8"))
    model = family_model()
    assert description["base_fingerprint"] == model.fingerprint()
    assert description["tokenizer_digest"] == model.tokenizer.digest()
    assert description["name"] == "medical"
    assert description["kind"] == "linear"
    assert description["linear"]["dim"] == 4
    assert description["points"] == ["encoder.layers.0.after_block", "encoder.layers.1.after_block"]
    assert description["parameters"] == sum(tensor.numel() for tensor in load_file(folder / PARAMETERS).values())


def test_the_digest_is_of_all_that_an_adapter_does(tmp_path: Path) -> None:
    """Weights alone do not say what an adapter does: `lora` at another scale is another adapter."""
    model = family_model()
    values = None
    digests = {}
    for name, kind, strategy in (
        ("a", LoraAdapter(rank=2, alpha=4.0), ResidualAdd()),
        ("b", LoraAdapter(rank=2, alpha=4.0), ResidualAdd()),
        ("scaled", LoraAdapter(rank=2, alpha=40.0), ResidualAdd()),
        ("regular", LoraAdapter(rank=2, alpha=4.0), ResidualAdd(l2_lambda=0.1)),
    ):
        adapter = model.adapters.add(name, kind, strategy=strategy)
        values = values or adapter.tensors()
        adapter.load_tensors(values)
        digests[name] = adapter.digest()
        folder = model.adapters.save(name, tmp_path / name)
        assert described_digest(folder, read_description(folder)) == adapter.digest()
    assert digests["a"] == digests["b"]
    assert len(set(digests.values())) == 3


def test_the_first_folders_are_read(folder: Path) -> None:
    """They call the digest of their parameters `digest`."""
    adapter = family_model().adapters.load(folder)
    text = (folder / DESCRIPTION).read_text("utf-8")
    (folder / DESCRIPTION).write_text(text.replace("parameters_digest: ", "digest: "), "utf-8")
    assert family_model().adapters.load(folder).digest() == adapter.digest()
    flip(folder / PARAMETERS)
    with pytest.raises(AdapterError, match="damaged"):
        family_model().adapters.load(folder)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapters.pt").write_bytes(b"")
    with pytest.raises(AdapterError, match=r"is a file; the folder of an adapter is needed.*load_adapters"):
        family_model().adapters.load(tmp_path / "adapters.pt")


def test_a_pointer_of_git_is_named(folder: Path) -> None:
    (folder / PARAMETERS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(AdapterError, match=r"is a Git LFS pointer; fetch the file with `git lfs pull`"):
        family_model().adapters.load(folder)


def test_a_folder_below_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = family_model()
    add_trained(model, "medical", KIND_CASES["linear_pre"])
    assert model.adapters.save("medical", "~/medical") == tmp_path / "medical"
    assert model.adapters.load("~/medical", name="again").digest() == model.adapters["medical"].digest()


def test_an_adapter_on_disk_is_not_written_over(folder: Path) -> None:
    model = family_model()
    add_trained(model, "medical", KIND_CASES["linear_pre"], seed=7)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(AdapterError, match="holds an adapter already"):
        model.adapters.save("medical", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    model.adapters.save("medical", folder, overwrite=True)
    assert family_model().adapters.load(folder).digest() == model.adapters["medical"].digest()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    model = family_model()
    model.adapters.add("a", LinearAdapter())
    (tmp_path / "file").write_text("here already")
    with pytest.raises(AdapterError, match="Cannot write"):
        model.adapters.save("a", tmp_path / "file")
    with pytest.raises(AdapterError, match="unknown"):
        model.adapters.save("b", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    model.adapters["a"].card = {"object": object()}
    with pytest.raises(AdapterError, match="card"):
        model.adapters.save("a", tmp_path / "c")


def test_a_full_disk_leaves_the_old_adapter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model()
    add_trained(model, "medical", KIND_CASES["linear_pre"], seed=7)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(AdapterError, match="No space left"):
        model.adapters.save("medical", folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# Refused


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x55
    path.write_bytes(bytes(content))


def append(folder: Path, text: str) -> None:
    with (folder / DESCRIPTION).open("a") as file:
        file.write(f"{text}\n")


def retype(path: Path, dtype: str) -> None:
    """Parameters of a type that safetensors knows and PyTorch does not."""
    header = json.dumps({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))


BOMB = "\n".join(["b0: &b0 [x, x]", *(f"b{n}: &b{n} [*b{n - 1}, *b{n - 1}]" for n in range(1, 40))])

DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no description": (lambda folder: (folder / DESCRIPTION).unlink(), "holds no adapter"),
    "no parameters": (lambda folder: (folder / PARAMETERS).unlink(), "cannot be read"),
    "empty description": (lambda folder: (folder / DESCRIPTION).write_text(""), "no adapter description"),
    "other text": (lambda folder: (folder / DESCRIPTION).write_text("a: [1"), "cannot be read"),
    "no text": (lambda folder: (folder / DESCRIPTION).write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "a folder": (lambda folder: [(folder / DESCRIPTION).unlink(), (folder / DESCRIPTION).mkdir()], "cannot be read"),
    "a Python object": (
        lambda folder: (folder / DESCRIPTION).write_text("!!python/object/apply:os.system ['touch hacked']"),
        "cannot be read",
    ),
    "a deep nest": (lambda folder: (folder / DESCRIPTION).write_text("[" * 20_000), "cannot be read"),
    "an impossible date": (lambda folder: (folder / DESCRIPTION).write_text("format: 2024-99-99"), "format 1"),
    "a word tagged as a truth value": (lambda folder: append(folder, "x: !!bool maybe"), "not what its tag says"),
    "nothing tagged as a number": (lambda folder: append(folder, "x: !!int ''"), "not what its tag says"),
    "a word tagged as a date": (lambda folder: append(folder, "x: !!timestamp soon"), "not what its tag says"),
    "a date": (lambda folder: append(folder, "x: !!timestamp 2024-01-01"), "type date"),
    "a set": (lambda folder: append(folder, "x: !!set {1, 2}"), "type set"),
    "a key twice": (lambda folder: append(folder, "card: {}"), "occurs twice"),
    "aliases that unfold": (lambda folder: append(folder, BOMB), "aliases unfold"),
    "an alias of itself": (lambda folder: append(folder, "x: &a [*a]"), "recursive"),
    "an endless number": (lambda folder: append(folder, f"x: 0x{'f' * 4000}"), "too large"),
    "a long text": (lambda folder: (folder / DESCRIPTION).write_text("#" * (1 << 21)), "larger than"),
    "another format": (lambda folder: edit(folder, format=2), "format 1"),
    "short parameters": (
        lambda folder: (folder / PARAMETERS).write_bytes((folder / PARAMETERS).read_bytes()[:-40]),
        "cannot be read",
    ),
    "a flipped bit": (lambda folder: flip(folder / PARAMETERS), "damaged"),
    "foreign parameters": (
        lambda folder: (folder / PARAMETERS).write_bytes(b"PK\x03\x04" + bytes(64)),
        "cannot be read",
    ),
    "a missing field": (lambda folder: edit(folder, layers=None), "'layers' is missing or malformed"),
    "an unknown type of numbers": (lambda folder: retype(folder / PARAMETERS, "F8_E8M0"), "numbers of type 'F8_E8M0'"),
    "an unknown kind": (lambda folder: edit(folder, kind="lorra"), "Did you mean 'lora'"),
    "an unknown setting": (lambda folder: edit(folder, linear={"dim": 4, "size": 3}), "size"),
    "a setting of another type": (lambda folder: edit(folder, linear={"dim": "four"}), "dim='four'"),
    "a size without bounds": (lambda folder: edit(folder, linear={"dim": 10**12}), "dim=1000000000000"),
    "settings that are no mapping": (lambda folder: edit(folder, linear=[4]), "settings are expected"),
    "another size": (lambda folder: edit(folder, linear={"dim": 5}), "shape"),
    "other layers": (lambda folder: edit(folder, layers=[0]), "Left over: encoder.layers.1"),
    "layers that do not exist": (lambda folder: edit(folder, layers=[0, 9]), "do not exist"),
    "more first layers than there could be": (
        lambda folder: edit(folder, layers="first:9999999999999"),
        "do not exist",
    ),
    "more last layers than there could be": (lambda folder: edit(folder, layers="last:9999999999999"), "do not exist"),
    "a bad name": (lambda folder: edit(folder, name="../escape"), "cannot be an adapter's name"),
    "a bad strategy": (lambda folder: edit(folder, strategy={"l2_lambda": -1}), "l2_lambda"),
    "another strategy": (lambda folder: edit(folder, strategy={"residual": 1}), "residual"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_refused(damage: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    act, message = DAMAGE[damage]
    act(folder)
    model = family_model()
    with pytest.raises(AdapterError, match=message):
        model.adapters.load(folder)
    assert model.adapters.names == []
    assert not (tmp_path / "hacked").exists()


def test_a_number_without_end_is_no_setting() -> None:
    with pytest.raises(AdapterError, match="must be a number"):
        LoraAdapter(alpha=10**400)


# Cards


def test_what_json_cannot_say_is_not_written(folder: Path) -> None:
    model = family_model()
    card = model.adapters.load(folder).card
    card["wer"], card["runs"], card["best"] = float("nan"), (float("inf"), 1.5), {"step": 3, "done": True}
    for name in ("first", "second"):
        model.adapters.save("medical", folder.parent / name)
        card["first"] = card["best"]  # the same object twice is no alias in the file
        text = (folder.parent / name / DESCRIPTION).read_text()
        assert "nan" not in text
        assert "&" not in text
    again = family_model().adapters.load(folder.parent / "second")
    best = {"step": 3, "done": True}
    assert again.card == {**again.card, "wer": None, "runs": [None, 1.5], "best": best, "first": best}
    for value in (date(2024, 1, 2), {1, 2}, b"bytes", object()):
        card["wer"] = value
        with pytest.raises(AdapterError, match=r"more than plain values .* is of type"):
            model.adapters.save("medical", folder.parent / "third")
    card["wer"] = "x" * (1 << 20)
    with pytest.raises(AdapterError, match="larger than 1048576 bytes"):
        model.adapters.save("medical", folder.parent / "third")
    assert not (folder.parent / "third").exists()


def test_a_card_is_read_as_json_could_say_it(folder: Path) -> None:
    """Numbers that are not finite and dates stand in folders that were written before."""
    text = (folder / DESCRIPTION).read_text()
    head = text[: text.index("card:")]
    (folder / DESCRIPTION).write_text(f"{head}card:\n  wer: .nan\n  day: 2024-01-02\n  all: [.inf, &a [1], *a]\n")
    card = family_model().adapters.load(folder).card
    assert card == {"wer": None, "day": "2024-01-02", "all": [None, [1], [1]]}
    json.dumps(card, allow_nan=False)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="holds no adapter"):
        family_model().adapters.load(tmp_path / "nowhere")


def test_whole_numbers_are_no_parameters(folder: Path) -> None:
    tensors = load_file(folder / PARAMETERS)
    save_file({name: tensor.int() for name, tensor in tensors.items()}, folder / PARAMETERS)
    with pytest.raises(AdapterError, match="does not hold the parameters"):
        family_model().adapters.load(folder)


def test_a_name_that_is_taken_is_refused_and_the_old_adapter_stays(folder: Path) -> None:
    model = family_model()
    add_trained(model, "medical", KIND_CASES["lora"])
    before = model.adapters["medical"].digest()
    with pytest.raises(AdapterError, match="exists already"):
        model.adapters.load(folder)
    assert model.adapters["medical"].digest() == before
    assert model.adapters.load(folder, name="other").name == "other"


def test_another_base_is_refused_with_both_fingerprints(folder: Path) -> None:
    other = family_model(seed=1)
    with pytest.raises(AdapterError) as caught:
        other.adapters.load(folder)
    assert family_model().fingerprint() in str(caught.value)
    assert other.fingerprint() in str(caught.value)
    assert other.adapters.names == []


def test_another_tokenizer_is_refused(folder: Path) -> None:
    model = family_model()
    other = build_model(settings=model.settings, tokenizer=CharTokenizer(LABELS[::-1]))
    other.load_state_dict(model.state_dict())
    assert other.fingerprint() == model.fingerprint()
    with pytest.raises(AdapterError, match="another tokenizer") as caught:
        other.adapters.load(folder)
    assert model.tokenizer.digest() in str(caught.value)
    assert other.tokenizer.digest() in str(caught.value)


def test_an_adapter_of_another_architecture_is_refused_by_the_fingerprint(tmp_path: Path) -> None:
    model = family_model()
    model.adapters.add("a", TinyAttentionAdapter())
    folder = model.adapters.save("a", tmp_path / "a")
    with pytest.raises(AdapterError, match="made for another base"):
        family_model("fastconformer").adapters.load(folder)
