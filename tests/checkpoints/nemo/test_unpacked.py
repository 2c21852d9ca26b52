"""Folders that a `.nemo` was unpacked into, checkpoints that are none, and what NeMo reads of a configuration."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.archive import Limits, Unpacked, open_archive
from overtone.checkpoints.nemo.yaml import read_yaml
from overtone.errors import CheckpointError
from support.small_models import add_trained, small_model


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    model = small_model()
    add_trained(model, "medical")
    return save_model(model, tmp_path / "model.nemo")


@pytest.fixture
def unpacked(packed: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "unpacked"
    with tarfile.open(packed) as tar:
        tar.extractall(folder, filter="data")
    return folder


def test_an_unpacked_nemo_is_the_packed_one(packed: Path, unpacked: Path) -> None:
    first, second = load_model(packed), load_model(unpacked)
    assert first.fingerprint() == second.fingerprint()
    assert second.adapters.names == ["medical"]
    assert second.name == "unpacked"
    assert second.checkpoint_files == first.checkpoint_files
    again = save_model(second, unpacked.parent / "again.nemo")
    with open_archive(packed) as one, open_archive(again) as other:
        assert sorted(one.names) == sorted(other.names)
        assert one.read("model_config.yaml") == other.read("model_config.yaml")


def test_links_in_an_unpacked_nemo_are_refused(unpacked: Path) -> None:
    (unpacked / "secret.model").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match=r"secret\.model is a link or a special file"):
        load_model(unpacked)


def test_an_unpacked_nemo_has_limits(unpacked: Path) -> None:
    with pytest.raises(CheckpointError, match="holds more than 1 files"):
        Unpacked(unpacked, Limits(members=1))
    with pytest.raises(CheckpointError, match="holds more than 100 bytes"):
        Unpacked(unpacked, Limits(total_bytes=100))
    with pytest.raises(CheckpointError, match="has more than the 5 bytes"):
        Unpacked(unpacked).read("model_config.yaml", at_most=5)


def test_a_folder_without_its_weights_is_told_so(unpacked: Path) -> None:
    (unpacked / "model_weights.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor model_weights.ckpt is beside its"):
        load_model(unpacked)


@pytest.mark.parametrize("name", ["last.ckpt", "model.nemo", "averaged.pt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_lightning_are_named(tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / name
    torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"checkpoint of PyTorch's or Lightning's.*load_from_checkpoint.*save_to"):
        load_model(path)


def test_nemo_finds_the_section_that_its_transcribe_reads(tmp_path: Path) -> None:
    model = load_model("fundamental")
    model.config = {**model.config, "validation_ds": None}
    path = save_model(model, tmp_path / "f.nemo")
    with open_archive(path) as archive:
        config = read_yaml(archive.read("model_config.yaml"), "model_config.yaml")
    assert config["validation_ds"] == {"manifest_filepath": None}
