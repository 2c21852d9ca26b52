"""Tensors of checkpoints: they are read once, to where the model keeps them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from overtone.checkpoints import tensors as module
from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo import torch_zip
from overtone.checkpoints.tensors import MAPPED_BYTES, empty_bytes, read_tensors
from overtone.errors import CheckpointError
from support.fixtures import HERE

FORMATS: dict[str, Callable[[Path], Path]] = {
    "nemo": lambda path: save_model(load_model("fundamental"), path / "model.nemo"),
    "native": lambda path: save_model(load_model("fundamental"), path / "native"),
    "huggingface": lambda path: HERE / "fixtures/huggingface/tdt",
}


@pytest.mark.parametrize("form", FORMATS)
def test_what_was_read_is_what_the_model_computes_with(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = FORMATS[form](tmp_path)
    read: list[tuple[int, int]] = []

    def recorded(size: int) -> torch.Tensor:
        content = empty_bytes(size)
        read.append((content.data_ptr(), size))
        return content

    for place in (module, torch_zip):
        monkeypatch.setattr(place, "empty_bytes", recorded)
    model = load_model(path)
    own = [tensor for name, tensor in model.base_state_dict().items() if name.startswith("encoder.")]
    at_home = sum(tensor.nbytes for tensor in own if (tensor.data_ptr(), tensor.nbytes) in read)
    assert at_home > 0.9 * sum(tensor.nbytes for tensor in own)


def test_tensors_that_share_memory_in_the_file_do_not_in_the_model(tmp_path: Path) -> None:
    model = load_model("fundamental")
    first, second = (layer.norm_out.weight for layer in list(model.encoder.layers)[:2])  # type: ignore[attr-defined]
    with torch.no_grad():
        second.copy_(first)
    second.data = first.data
    again = load_model(save_model(model, tmp_path / "tied.nemo"))
    first, second = (layer.norm_out.weight for layer in list(again.encoder.layers)[:2])  # type: ignore[attr-defined]
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8, torch.uint8, torch.bool])
def test_safetensors_of_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    written = {
        "large": torch.arange(MAPPED_BYTES // dtype.itemsize + 1).to(dtype),
        "scalar": torch.tensor(3).to(dtype),
        "none": torch.zeros(0, 2, dtype=dtype),
        "matrix": torch.arange(6).view(2, 3).to(dtype),
    }
    save_file(written, tmp_path / "x.safetensors", metadata={"format": "pt"})
    read = read_tensors(tmp_path / "x.safetensors")
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert (read[name].dtype, read[name].shape) == (dtype, tensor.shape)
        assert torch.equal(read[name], tensor)


def test_safetensors_that_are_cut_or_of_another_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(8)}, path)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b"", whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is truncated, damaged or no safetensors file"):
            read_tensors(path)
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="tensors of type F8_E4M3 are not supported; supported: F64, F32"):
        read_tensors(path)


def test_a_transducer_is_loaded_without_the_compiler_of_torch() -> None:
    script = (
        "import sys\nimport overtone\novertone.load_model(sys.argv[1])\n"
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(HERE / "fixtures/huggingface/tdt")], check=True)
