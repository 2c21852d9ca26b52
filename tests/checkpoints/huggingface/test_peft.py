"""LoRA in PEFT's folders acts as it does there, and what our LoRA cannot express is refused by its key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.checkpoints.adapters import find_adapter
from overtone.checkpoints.huggingface.peft import load_peft, save_peft
from overtone.checkpoints.load import load_model
from overtone.errors import AdapterError, CheckpointError
from overtone.models.asr_model import AsrModel
from support.families import family_model
from support.fixtures import HERE

FOLDER = HERE / "fixtures" / "huggingface"
FRAMES = (10, 7)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q = "base_model.model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    with np.load(FOLDER / "expected.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture
def model() -> AsrModel:
    return load_model(FOLDER / "ctc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER / "lora", tmp_path / "lora"))


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))


def delta_at(model: AsrModel, point: str, name: str = "lora") -> Tensor:
    """The matrix [out, in] that an adapter adds to the Linear before a tap."""
    kind, tensors = model.adapters[name].kind, model.adapters[name].at(point).tensors()
    assert isinstance(kind, LoraAdapter)
    return (tensors["up.weight"] @ tensors["down.weight"] * (kind.alpha / kind.rank)).detach()


def product(folder: Path, module: str = Q) -> Tensor:
    tensors = load_file(folder / WEIGHTS)
    return tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]


def test_log_probabilities_are_those_of_peft(model: AsrModel, expected: dict[str, Tensor]) -> None:
    adapter = load_peft(model, FOLDER / "lora")
    assert adapter.kind == LoraAdapter(rank=3, alpha=5.0, targets=("q", "v", "feed_forward"))
    assert adapter.layers == "all"
    with torch.no_grad(), model.adapters.use("lora"):
        own, _ = model.recognise(expected["features"].transpose(1, 2), expected["frames"])
    for row, frames in enumerate(FRAMES):
        torch.testing.assert_close(own[row, :frames], expected["lora"][row, :frames], atol=1e-4, rtol=0.0)
    assert (own - expected["ctc"]).abs().max() > 0.5


def test_every_delta_is_that_of_peft(model: AsrModel) -> None:
    load_peft(model, FOLDER / "lora")
    modules = {"self_attn.q": "self_attn.q_proj", "feed_forward2.contract": "feed_forward2.linear2"}
    for tap, module in modules.items():
        theirs = product(FOLDER / "lora", f"base_model.model.encoder.layers.1.{module}") * 5 / 3
        torch.testing.assert_close(delta_at(model, f"encoder.layers.1.{tap}"), theirs, atol=1e-5, rtol=0.0)


def test_rank_stabilised_scaling_is_converted(model: AsrModel, folder: Path) -> None:
    change(folder, use_rslora=True)
    load_peft(model, folder)
    theirs = product(folder) * 5 / 3**0.5
    torch.testing.assert_close(delta_at(model, "encoder.layers.0.self_attn.q"), theirs, atol=1e-5, rtol=0.0)


def test_ranks_and_alphas_of_single_modules_are_honoured(model: AsrModel, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    module = "encoder.layers.0.self_attn.v_proj"
    first, second = torch.randn(5, 16), torch.randn(16, 5)
    tensors |= {f"base_model.model.{module}.lora_A.weight": first, f"base_model.model.{module}.lora_B.weight": second}
    save_file(tensors, folder / WEIGHTS)
    change(folder, rank_pattern={r"encoder.*0.*(v_proj|nothing)": 5}, alpha_pattern={"v_proj": 20.0})
    load_peft(model, folder)
    torch.testing.assert_close(delta_at(model, "encoder.layers.0.self_attn.v"), second @ first * 4, atol=1e-4, rtol=0.0)
    theirs = product(folder) * 5 / 3
    torch.testing.assert_close(delta_at(model, "encoder.layers.0.self_attn.q"), theirs, atol=1e-5, rtol=0.0)


def test_some_layers_and_some_modules(model: AsrModel, folder: Path) -> None:
    tensors = {key: value for key, value in load_file(folder / WEIGHTS).items() if "layers.1" in key}
    tensors = {key: value for key, value in tensors.items() if "linear1" in key}
    save_file(tensors, folder / WEIGHTS)
    adapter = load_peft(model, folder, name="some")
    assert adapter.layers == [1]
    assert isinstance(adapter.kind, LoraAdapter)
    assert adapter.kind.targets == ("feed_forward",)
    assert delta_at(model, "encoder.layers.1.feed_forward1.expand", "some").abs().max() > 0.01
    assert not delta_at(model, "encoder.layers.1.feed_forward1.contract", "some").any()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("peft_type", "IA3", "peft_type is IA3.*Supported: LORA"),
        ("use_dora", True, "use_dora is true"),
        ("bias", "lora_only", "bias is lora_only.*Supported: none"),
        ("lora_bias", True, "lora_bias is true"),
        ("modules_to_save", ["ctc_head"], "modules_to_save is .'ctc_head'."),
        ("init_lora_weights", "pissa", "init_lora_weights is pissa"),
        ("fan_in_fan_out", True, "fan_in_fan_out is true"),
        ("r", 0, "r is 0"),
        ("lora_alpha", "much", "lora_alpha is much"),
        ("rank_pattern", [3], "rank_pattern is .3."),
        ("alpha_pattern", {"(a+)+$": 3}, "a mapping of modules' names"),
        ("something_new", "yes", "something_new is yes; this key is unknown"),
    ],
)
def test_what_our_lora_cannot_express_is_refused_by_its_key(
    model: AsrModel, folder: Path, key: str, value: Any, words: str
) -> None:
    change(folder, **{key: value})
    with pytest.raises(CheckpointError, match=words):
        load_peft(model, folder)
    assert not model.adapters.names


def test_keys_that_say_nothing_may_be_new(model: AsrModel, folder: Path) -> None:
    change(folder, something_new=None, another=False, third={})
    assert load_peft(model, folder).name == "lora"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("encoder.layers.0.self_attn.relative_k_proj", "no LoRA of this model stands there"),
        ("encoder.layers.7.self_attn.q_proj", "no LoRA of this model stands there"),
        ("ctc_head", "has no place in our LoRA"),
    ],
)
def test_other_places_are_refused_by_name(model: AsrModel, folder: Path, module: str, words: str) -> None:
    pair = {f"base_model.model.{module}.lora_{matrix}.weight": torch.ones(16, 16) for matrix in "AB"}
    save_file({**load_file(folder / WEIGHTS), **pair}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"{module}.*{words}"):
        load_peft(model, folder)


def test_a_matrix_alone_and_other_shapes_are_refused(model: AsrModel, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, f"{Q}.lora_A.weight": torch.ones(3, 20)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"q_proj has A \[3, 20\]"):
        load_peft(model, folder)
    del tensors[f"{Q}.lora_A.weight"]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"no pair of matrices A and B for encoder.layers.0.self_attn.q_proj"):
        load_peft(model, folder)
    save_file({}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="for anything"):
        load_peft(model, folder)


def test_ranks_that_would_fill_the_memory_are_refused(model: AsrModel, folder: Path) -> None:
    tensors = {
        key: tensor[:1] if "lora_A" in key else tensor[:, :1] for key, tensor in load_file(folder / WEIGHTS).items()
    }
    tensors[f"{Q}.lora_A.weight"], tensors[f"{Q}.lora_B.weight"] = torch.zeros(60_000, 1), torch.zeros(1, 60_000)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"rank_pattern is .1, 60000."):
        load_peft(model, folder)


def test_a_folder_of_peft_is_no_model(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="an adapter of PEFT's and no model"):
        load_model(folder)


def test_a_folder_is_found_by_the_words_that_a_user_types(model: AsrModel, folder: Path) -> None:
    assert find_adapter(model, str(folder)) == "lora"
    assert find_adapter(model, str(folder)) == "lora", "the same folder is not loaded twice"
    model.adapters.remove("lora")
    model.adapters.add("lora", LoraAdapter(rank=2))
    assert find_adapter(model, str(folder)) == "lora-2"


def test_the_loader_of_our_own_folders_tells_where_to_go(model: AsrModel, folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"PEFT's.*load_peft"):
        model.adapters.load(folder)


def test_a_written_folder_comes_back(tmp_path: Path, model: AsrModel) -> None:
    adapter = model.adapters.add("mine", LoraAdapter(rank=2, alpha=3.0, targets=("q", "feed_forward")), layers=[1])
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    save_peft(adapter, tmp_path / "mine")
    again = load_peft(load_model(FOLDER / "ctc"), tmp_path / "mine")
    assert again.kind == adapter.kind
    assert again.digest() == adapter.digest()
    with pytest.raises(CheckpointError, match="exists already"):
        save_peft(adapter, tmp_path / "mine")
    with pytest.raises(CheckpointError, match="is of kind linear"):
        save_peft(model.adapters.add("other", LinearAdapter(dim=2)), tmp_path / "other")


def test_any_model_of_the_family_takes_such_a_folder(tmp_path: Path) -> None:
    model = family_model("conformer")
    save_peft(model.adapters.add("mine", LoraAdapter(rank=2)), tmp_path / "mine")
    assert load_peft(family_model("conformer"), tmp_path / "mine").digest() == model.adapters["mine"].digest()


def test_peft_reads_what_is_written(tmp_path: Path, model: AsrModel, expected: dict[str, Tensor]) -> None:
    reason = "transformers and peft are not installed; they are no dependencies"
    transformers = pytest.importorskip("transformers", reason=reason)
    peft = pytest.importorskip("peft", reason=reason)
    adapter = model.adapters.add("mine", LoraAdapter(rank=2, alpha=3.0, targets=("k", "out", "feed_forward")))
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_peft(adapter, tmp_path / "mine")
    theirs = peft.PeftModel.from_pretrained(
        transformers.ParakeetForCTC.from_pretrained(FOLDER / "ctc"), str(tmp_path / "mine")
    ).eval()
    mask = torch.arange(expected["features"].size(1)) < expected["frames"].unsqueeze(1)
    with torch.no_grad(), model.adapters.use("mine"):
        own, _ = model.recognise(expected["features"].transpose(1, 2), expected["frames"])
        other = theirs(input_features=expected["features"], attention_mask=mask).logits.log_softmax(-1)
    for row, frames in enumerate(FRAMES):
        torch.testing.assert_close(own[row, :frames], other[row, :frames], atol=1e-4, rtol=0.0)
