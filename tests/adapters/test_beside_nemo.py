"""Five steps of training beside NeMo's: losses, gradients and what the parameters become."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.adapters.strategies import ResidualAdd
from overtone.checkpoints.load import load_model
from overtone.checkpoints.nemo.adapters import host_of, parameter_names, split_adapters
from overtone.checkpoints.nemo.keys import nemo_key
from overtone.decoding.transducer import TransducerHead
from overtone.models.asr_model import AsrModel
from support.fixtures import CTC_MODELS, fixture_file, fixture_folders, recordings

TRANSDUCERS = (
    "conformer_rnnt_char",
    "fastconformer_hybrid_rnnt_ctc_bpe",
    "fastconformer_cache_aware_hybrid_bpe",
    "fastconformer_tdt_bpe",
    "conformer_tdt_stateless_bpe",
    "contextnet_rnnt_bpe",
)
FURTHER_CTC_MODELS = (
    "conformer_cache_aware_regular_ctc_bpe",
    "conformer_ctc_bpe_multilang",
    "fastconformer_cache_aware_ctc_bpe",
    "fastconformer_long_ctc_bpe",
    "fastconformer_long_ctc_bpe_global",
)
VARIANTS = ("linear_zero", "linear_nonzero", "linear_l2", "relmha", "relmha_nonzero")
CASES = [
    (model, variant)
    for model in (*CTC_MODELS, *FURTHER_CTC_MODELS, *TRANSDUCERS)
    for variant in VARIANTS
    if any((folder / model / "train" / f"{variant}.npz").exists() for folder in fixture_folders())
]
RELATIVE = 1e-4
UNSEEN = ("key.bias", "linear_k.bias", "depthwise_conv.bias")
"""What shifts everything before a softmax or a batch norm alike: no gradient but rounding, which Adam blows up."""
HALF_SEEN = (*UNSEEN, "linear_pos.weight", "running_mean")
"""The slowest waves among the encodings of distances hardly differ from such a shift; a mean follows its shift."""


class Reference:
    """One file of `train/`: arrays, and the batch that all its steps see."""

    def __init__(self, model: str, variant: str) -> None:
        self.arrays = np.load(fixture_file(f"{model}/train/{variant}.npz"))
        self.facts = json.loads(fixture_file(f"{model}/train/{variant}.json").read_text("utf-8"))
        self.signal, self.lengths = recordings()

    def tensors(self, stage: str) -> dict[str, Tensor]:
        """`init`, `grad1` or `final`, by NeMo's keys."""
        start = f"{stage}|"
        return {key[len(start) :]: torch.from_numpy(self.arrays[key]) for key in self.arrays if key.startswith(start)}

    def loss(self, model: AsrModel) -> Tensor:
        log_probs, frames = model(self.signal, self.lengths)
        targets, sizes = torch.from_numpy(self.arrays["targets"]), torch.from_numpy(self.arrays["target_len"])
        return model.head.loss(log_probs, frames, targets, sizes)


def quiet_model(name: str) -> AsrModel:
    """Without dropout and dither, as the references were made."""
    model = load_model(fixture_file(f"{name}/model.nemo"))
    model.preprocessor.dither = 0.0
    if "hybrid" in model.heads:
        model.head_name = "hybrid"
    if isinstance(head := model.heads.get("rnnt"), TransducerHead):
        head.omega = 0.0
        if head.joint.durations:
            head.fastemit = 0.0  # the loss that these references were made with knows neither
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def add_reference_adapter(model: AsrModel, tensors: dict[str, Tensor], strategy: ResidualAdd | None = None) -> str:
    """The adapter of a reference, under its own name."""
    name, hosts = next(iter(split_adapters(tensors)[1].items()))
    first = next(iter(hosts.values()))
    kind: Kind = LinearAdapter(dim=len(first["module.1.weight"])) if "module.1.weight" in first else attention(first)
    adapter = model.adapters.add(name, kind, strategy=strategy)
    adapter.load_tensors({ours: tensors[theirs] for ours, theirs in nemo_names(model, name).items()})
    return name


def attention(tensors: Any) -> TinyAttentionAdapter:
    return TinyAttentionAdapter(
        heads=len(tensors["pos_bias_u"]), projection=len(tensors["linear_q.weight"]), position="rel_pos"
    )


def nemo_names(model: AsrModel, name: str) -> dict[str, str]:
    """Our names of an adapter's tensors -> NeMo's."""
    adapter = model.adapters[name]
    return {
        f"{point}.{ours}": f"{host_of(adapter.at(point).point)}.adapter_layer.{name}.{theirs}"
        for point in adapter.points
        for ours, theirs in parameter_names(adapter.kind, adapter.at(point).point).items()
    }


def optimiser_of(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)


def assert_near(ours: Tensor, theirs: Tensor, name: str, *, relative: float = RELATIVE) -> None:
    error = float((ours.detach() - theirs).abs().max())
    assert error <= relative * float(theirs.abs().max()) + 1e-7, f"{name}: {error} of {float(theirs.abs().max())}"


def assert_near_as_a_whole(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Adam moves a parameter by the learning rate however small its gradient: single ones part, the whole does not."""
    for key in theirs:
        if key.endswith(("linear_pos.weight", "running_mean")):
            torch.testing.assert_close(ours[key].detach(), theirs[key], rtol=0, atol=1e-2)
    seen = [key for key in theirs if not key.endswith(HALF_SEEN)]
    error = torch.cat([(ours[key].detach() - theirs[key]).flatten() for key in seen]).norm()
    assert float(error) <= RELATIVE * float(torch.cat([theirs[key].flatten() for key in seen]).norm())


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    return float(torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]).norm())


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_five_steps_of_an_adapter_equal_nemo(name: str, variant: str) -> None:
    reference = Reference(name, variant)
    model = quiet_model(name)
    assert model.head.reduction == reference.facts.get("reduction", model.head.reduction).replace("None", "mean_batch")
    adapter = add_reference_adapter(model, reference.tensors("init"))
    model.train_only(adapter, base_dropout=True)
    parameters = model.adapters.parameters_of(adapter)
    trained = sum(tensor.numel() for tensor in reference.tensors("init").values())
    assert sum(parameter.numel() for parameter in parameters) == reference.facts.get("n_trainable", trained)
    names = nemo_names(model, adapter)
    assert set(names.values()) == set(reference.facts["trainable"])
    owned = {
        f"{point}.{key}": parameter
        for point in model.adapters[adapter].points
        for key, parameter in model.adapters[adapter].at(point).named_parameters()
    }
    optimiser = optimiser_of(parameters)
    for step in range(6):
        optimiser.zero_grad()
        with model.adapters.use(adapter):
            loss = reference.loss(model)
        assert loss.item() == pytest.approx(reference.arrays["losses"][step], rel=RELATIVE)
        if step == 5:
            break
        loss.backward()
        assert gradient_norm(parameters) == pytest.approx(reference.arrays["grad_norms"][step], rel=RELATIVE)
        if step == 0:
            for ours, theirs in names.items():
                gradient = owned[ours].grad
                assert gradient is not None
                if theirs.endswith(UNSEEN):
                    assert float(gradient.abs().max()) < 3e-6
                    continue
                assert_near(gradient, torch.from_numpy(reference.arrays[f"grad1|{theirs}"]), theirs)
        optimiser.step()
    final = {names[ours]: tensor for ours, tensor in model.adapters[adapter].tensors().items()}
    assert_near_as_a_whole(final, reference.tensors("final"))


def test_the_penalty_is_what_its_documentation_says() -> None:
    """NeMo as shipped adds nothing; the reference adds what it documents."""
    start = Reference("conformer_ctc_bpe", "linear_nonzero")
    reference = Reference("conformer_ctc_bpe", "linear_l2_intended")
    model = quiet_model("conformer_ctc_bpe")
    adapter = add_reference_adapter(model, start.tensors("init"), ResidualAdd(l2_lambda=0.01))
    model.train_only(adapter)
    optimiser = optimiser_of(model.adapters.parameters_of(adapter))
    for step in range(6):
        optimiser.zero_grad()
        with model.adapters.use(adapter) as selection:
            loss = start.loss(model)
        total = loss + selection.auxiliary_loss()
        assert loss.item() == pytest.approx(reference.arrays["ctc"][step], rel=RELATIVE)
        assert total.item() == pytest.approx(reference.arrays["total"][step], rel=RELATIVE)
        if step < 5:
            total.backward()
            optimiser.step()
    names = nemo_names(model, adapter)
    final = {names[ours]: tensor for ours, tensor in model.adapters[adapter].tensors().items()}
    assert_near_as_a_whole(final, reference.tensors("final"))


def test_five_steps_of_all_weights_equal_nemo() -> None:
    reference = Reference("conformer_ctc_bpe", "full")
    model = quiet_model("conformer_ctc_bpe").train_base()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in parameters) == reference.facts["n_trainable"]
    optimiser = optimiser_of(parameters)
    own = {nemo_key(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    for step in range(6):
        optimiser.zero_grad()
        loss = reference.loss(model)
        assert loss.item() == pytest.approx(reference.arrays["losses"][step], rel=RELATIVE)
        if step == 5:
            break
        loss.backward()
        assert gradient_norm(parameters) == pytest.approx(reference.arrays["grad_norms"][step], rel=RELATIVE)
        for key, gradient in reference.tensors("grad1").items() if step == 0 else ():
            assert own[key].grad is not None
            if not key.endswith(UNSEEN):
                assert_near(own[key].grad, gradient, key)
        optimiser.step()
    assert_near_as_a_whole(own, reference.tensors("final"))
    assert_near_as_a_whole(own, reference.tensors("buf"))
