"""The reader of PyTorch files: right on what PyTorch and NeMo write, inert on everything else."""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from overtone.checkpoints.nemo.pickles import plain, read_state_dict, read_torch_file
from overtone.checkpoints.nemo.torch_zip import RefusedError
from overtone.errors import CheckpointError
from support.fixtures import fixture_file


def saved(value: Any, **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    buffer.seek(0)
    return buffer


def with_pickle(program: bytes, storages: dict[str, bytes] | None = None, compression: int = 0) -> io.BytesIO:
    """A PyTorch file with this table of contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
    buffer.seek(0)
    return buffer


def refused(file: io.BytesIO, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(file, "a.nemo: weights")
    assert str(caught.value).startswith("a.nemo: weights")
    for word in words:
        assert word in str(caught.value)


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_are_read(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    read = read_state_dict(saved({"a": tensor, "t": tensor.t(), "row": tensor[1], "none": tensor[:0]}), "x")
    assert {key: value.dtype for key, value in read.items()} == dict.fromkeys(("a", "t", "row", "none"), dtype)
    assert torch.equal(read["a"], tensor)
    assert torch.equal(read["t"], tensor.t())
    assert torch.equal(read["row"], tensor[1])
    assert read["none"].shape == (0, 4)
    assert read["a"].data_ptr() == read["t"].data_ptr()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dicts_of_modules_are_read_in_every_protocol(protocol: int) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    read = read_state_dict(saved(module.state_dict(), pickle_protocol=protocol), "x")
    assert list(read) == list(module.state_dict())
    assert all(torch.equal(read[key], value) for key, value in module.state_dict().items())
    assert read["1.num_batches_tracked"].shape == ()
    parameters = read_state_dict(saved(dict(module.named_parameters()), pickle_protocol=protocol), "x")
    assert torch.equal(parameters["0.weight"], module[0].weight)


@pytest.mark.parametrize("name", ["conformer_ctc_char/adapters.pt", "_name_collision/adapters.pt"])
def test_what_nemo_wrote_is_read_as_plain_values(name: str) -> None:
    with fixture_file(name).open("rb") as file:
        content = read_torch_file(file, name)
    section = plain(content.pop("__cfg__"))
    assert section["an4"]["dim"] == 8
    assert section["an4"]["enabled"] is True
    assert section["an4"]["dropout"] == 0.0
    assert section["global_cfg"]["adapter_meta_cfg"]["modules"]["dec"] == "decoder"
    assert section["an4"]["_target_"].endswith("LinearAdapter")
    assert all(
        isinstance(tensor, Tensor) for states in content.values() for state in states for tensor in state.values()
    )


def test_omegaconf_becomes_plain_and_its_text_is_never_resolved() -> None:
    os.environ["OVERTONE_TEST_SECRET"] = "secret"
    section = {"a": 1, "b": [1.5, "x", None, True], "c": {"d": "${oc.env:OVERTONE_TEST_SECRET}", "e": "???"}}
    read = read_torch_file(saved({"__cfg__": OmegaConf.create(section)}), "x")
    assert plain(read["__cfg__"]) == section


class Evil:
    """Unpickling it the usual way would run a command."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (subprocess.Popen, "subprocess.Popen"),
        (getattr, "builtins.getattr"),
        (torch.load, "torch.serialization.load"),
        (Path, "pathlib.Path"),
        (open, "io.open"),
    ],
)
@pytest.mark.parametrize("place", [lambda evil: evil, lambda evil: {"a": 1, "b": [evil]}], ids=["alone", "inside"])
def test_no_callable_of_a_file_is_called(tmp_path: Path, function: Any, name: str, place: Any) -> None:
    mark = tmp_path / "executed"
    argument = f"touch {mark}" if function is os.system else f"open({str(mark)!r}, 'w')"
    program = pickle.dumps(place(Evil(function, argument)), protocol=4)
    refused(with_pickle(program), name if function is not Path else "pathlib", "nothing was executed")
    assert not mark.exists()


def test_the_file_would_have_done_it_otherwise(tmp_path: Path) -> None:
    """The proof that the attack above is one."""
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Evil(os.system, f"touch {mark}")))
    assert mark.exists()


def test_no_module_named_by_a_file_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Thing: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    named = read_torch_file(with_pickle(b"\x80\x02ctrap\nThing\n."), "x")
    assert named.path == "trap.Thing"
    with pytest.raises(RefusedError, match=r"trap\.Thing"):
        plain({"a": named})
    refused(with_pickle(b"\x80\x02ctrap\nThing\n)R."), "trap.Thing", "nothing was executed")
    refused(with_pickle(b"\x80\x02ctrap\nThing\n)\x81."), "trap.Thing", "nothing was executed")
    refused(with_pickle(b"\x80\x02ctrap\nThing\n}b."), "trap.Thing")
    assert not (tmp_path / "imported").exists()


def test_torch_itself_cannot_be_changed_by_a_file() -> None:
    """BUILD on a function would set its attributes."""
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x05\x00\x00\x00magicK\x01s\x86b."
    refused(with_pickle(program), "torch._utils._rebuild_tensor_v2")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "magic")


def tensor_program(shape: tuple[int, ...], stride: tuple[int, ...], offset: int, count: int) -> bytes:
    """{"a": a tensor over storage 0 with `count` numbers}, written by hand."""

    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(value, Storage) else None

    class View:
        def __reduce__(self) -> tuple[Any, ...]:
            hooks: Any = collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, stride, False, hooks)

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"a": View()})
    return buffer.getvalue()


NUMBERS = struct.pack("<6f", *range(6))


def test_a_view_written_by_hand_is_read() -> None:
    read = read_state_dict(with_pickle(tensor_program((2, 2), (3, 1), 1, 6), {"0": NUMBERS}), "x")
    assert read["a"].tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    ("shape", "stride", "offset", "count"),
    [
        ((7,), (1,), 0, 6),  # past the end
        ((2, 3), (3, 1), 1, 6),  # past the end with an offset
        ((10**9, 10**9), (0, 0), 0, 6),  # one number repeated
        ((2,), (-1,), 1, 6),  # backwards
        ((2,), (1, 1), 0, 6),
        ((6,), (1,), -1, 6),
        ((6,), (1,), 0, 10**12),  # announces more than there is
        ((1,) * 100, (1,) * 100, 0, 6),
    ],
)
def test_tensors_stay_inside_their_storage(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int, count: int
) -> None:
    refused(with_pickle(tensor_program(shape, stride, offset, count), {"0": NUMBERS}))


def test_damaged_and_foreign_files_are_refused() -> None:
    whole = saved({"a": torch.ones(100)}).getvalue()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        refused(io.BytesIO(whole[:cut]), "truncated or damaged")
    changed = whole.replace(struct.pack("<f", 1.0) * 50, struct.pack("<f", 2.0) * 50)
    assert changed != whole
    refused(with_pickle(b"\x80\x02}q\x00X\xff\xff"), "truncated")
    refused(with_pickle(b"\x80\x02h\x05."), "damaged")
    refused(with_pickle(b"\x80\x02t."), "damaged")
    refused(with_pickle(b"\x80\x02\x8a"), "truncated")
    refused(with_pickle(b"\x80\x02i."), "instruction b'i'")
    refused(with_pickle(tensor_program((2,), (1,), 0, 6)), "damaged")
    refused(with_pickle(b"\x80\x02}.", compression=zipfile.ZIP_DEFLATED), "compressed")


def test_random_damage_is_an_error_in_words_or_harmless() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    whole = saved({"weights": module.state_dict(), "__cfg__": OmegaConf.create({"a": [1, {"b": "c"}]})})
    with zipfile.ZipFile(whole) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    program = entries.pop("data.pkl")
    storages = {name.removeprefix("data/"): content for name, content in entries.items() if name.startswith("data/")}
    generator = random.Random(0)
    outcomes = collections.Counter()
    for _ in range(1500):
        damaged = bytearray(program)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            plain(read_torch_file(with_pickle(bytes(damaged), storages), "x"))
        except (CheckpointError, RefusedError) as error:
            outcomes[type(error).__name__] += 1
    assert outcomes["CheckpointError"] > 300


def test_the_old_format_is_named() -> None:
    refused(saved({"a": torch.ones(2)}, _use_new_zipfile_serialization=False), "before version 1.6")


@pytest.mark.parametrize("content", [[1], {"a": 1}, {1: torch.ones(1)}, {"state_dict": {"a": torch.ones(1)}}])
def test_weights_are_tensors_by_name(content: Any) -> None:
    with pytest.raises(CheckpointError, match="tensors by name"):
        read_state_dict(saved(content), "x")


def test_bombs_are_refused() -> None:
    doubled: list[Any] = []
    for _ in range(60):
        doubled = [doubled, doubled]
    with pytest.raises(RefusedError, match="larger or deeper"):
        plain(read_torch_file(saved(doubled), "x"))
    memory = b"\x80\x02}r\xff\xff\xff\xff."  # a memo of four billion places, were it a list
    assert read_torch_file(with_pickle(memory), "x") == {}


def test_keys_are_plain_values() -> None:
    """To hash a tuple is to hash what is in it: sixty doublings take longer than the world has."""
    doubled = b"K\x01" + b"q\x00h\x00\x86" * 60
    deep = b")" + b"\x85" * 1_000_000
    for key in (doubled, deep, b"cbuiltins\nprint\n"):
        refused(with_pickle(b"\x80\x02}" + key + b"K\x01s."), "no plain value")
    for key in (b"N", b"\x88", b"K\x05", b"G" + bytes(8), b"X\x01\x00\x00\x00a"):
        assert len(read_torch_file(with_pickle(b"\x80\x02}" + key + b"K\x01s."), "x")) == 1


def test_the_same_numbers_under_many_names_are_no_weights() -> None:
    one = torch.ones(1000)
    with pytest.raises(CheckpointError, match="same numbers under many names"):
        read_state_dict(saved({str(number): one for number in range(100)}), "x")
    tied = {"a": one, "b": one, "c": torch.ones(1000)}
    assert read_state_dict(saved(tied), "x").keys() == tied.keys()
