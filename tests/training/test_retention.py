"""The strength of an adapter: general speech loses no more than is allowed, and the files hold what was chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from overtone.adapters.card import reached_rates
from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.adapters.storage import read_description
from overtone.adapters.word_text import make_words
from overtone.checkpoints.adapter_places import folder_entry
from overtone.errors import ConfigError, DataError
from overtone.evaluation.report.details import told
from overtone.evaluation.scores import score_runs
from overtone.inference.retention import SCALES, EarlierStep, choose_strength
from overtone.inference.word_weights import Heard
from overtone.models.asr_model import AsrModel
from overtone.nets.taps import TapContext
from overtone.search.processes import read_result
from overtone.search.trials import TrialResult
from overtone.serving.openai.endpoints import training_of
from overtone.training.console import Reporter
from overtone.training.retention import retention_facts
from overtone.training.train import run_training
from overtone.training.weights import WeightsStore
from support.own_kind import ScaleAdapter
from support.small_models import add_trained, set_all, small_model
from support.train_samples import settings_for, write_corpus

QUIET = Reporter(quiet=True)
KINDS = [
    LinearAdapter(dim=4),
    LinearAdapter(dim=4, norm_position="post"),
    LoraAdapter(rank=2),
    TinyAttentionAdapter(heads=2),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.name}-{getattr(kind, 'norm_position', '')}")
@pytest.mark.parametrize("scale", [0.0, 0.25, 0.7])
def test_a_scaled_adapter_changes_the_stream_by_that_factor(kind: Kind, scale: float) -> None:
    model = small_model(layers=1).eval()
    model.adapters.add("mine", kind, layers="all")
    adapter = model.adapters["mine"]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    context = TapContext(valid=torch.ones(2, 5, dtype=torch.bool), positions=torch.randn(1, 9, 32, generator=generator))
    scaled = adapter.scaled_tensors(scale)
    assert scaled is not None
    for point in adapter.points:
        tensors, width = adapter.at(point).tensors(), adapter.at(point).point
        x = torch.randn(2, 5, width.in_width, generator=generator)
        own = {name: scaled[f"{point}.{name}"] for name in tensors}
        y = torch.randn(2, 5, width.out_width, generator=generator)
        with torch.no_grad():
            whole, part = (kind.delta(each, x, y, context, False) for each in (tensors, own))
        assert torch.allclose(part, scale * whole, atol=1e-6)
        assert bool(whole.any())


def test_a_kind_that_says_nothing_has_no_scale() -> None:
    model = small_model()
    add_trained(model, "mine", ScaleAdapter())
    assert model.adapters["mine"].scaled_tensors(0.5) is None


# The choice


def emissions_of(model: AsrModel, text: str, strength: float) -> Heard:
    """Emissions that say a text, the more clearly the stronger."""
    ids = [token for own in model.tokenizer.encode(text) for token in (own, model.tokenizer.size)]
    emissions = torch.zeros(1, len(ids), model.tokenizer.size + 1)
    emissions[0, torch.arange(len(ids)), torch.tensor(ids)] = strength
    return Heard(emissions.log_softmax(-1), torch.tensor([len(ids)]), ["ab cd"])


@pytest.mark.parametrize(
    ("breaks_at", "kappa", "expected"),
    [(2.0, 0.5, 1.0), (0.6, 0.5, 0.55), (0.3, 0.0, 0.25), (0.1, 0.0, 0.0), (0.1, 100.0, 1.0)],
)
def test_the_strongest_that_is_allowed_is_taken(breaks_at: float, kappa: float, expected: float) -> None:
    """General speech is recognised until the adapter's change passes a limit; the domain gains with every scale."""
    model = small_model()
    add_trained(model, "mine", LoraAdapter(rank=2))
    adapter = model.adapters["mine"]
    whole = {name: tensor.clone() for name, tensor in adapter.tensors().items()}
    last = next(name for name in whole if name.endswith("up.weight"))

    def scale_now() -> float:
        return float(adapter.tensors()[last].norm() / whole[last].norm())

    def general(choice: str | None) -> list[Heard]:
        broken = choice is not None and scale_now() > breaks_at
        return [emissions_of(model, "xx yy" if broken else "ab cd", 9.0)]

    def domain(choice: str | None) -> list[Heard]:
        right = round(10 * scale_now())
        return [emissions_of(model, "ab cd" if place < right else "xx yy", 9.0) for place in range(10)]

    found = choose_strength(model, adapter, None, general=general, domain=domain, kappa=kappa)
    assert found.chosen is not None
    assert found.chosen.scale == expected
    assert scale_now() == pytest.approx(expected, abs=1e-6)
    assert found.base.errors == 0
    assert SCALES[0] == 1.0


def test_words_are_weakened_where_they_do_the_damage() -> None:
    """Emissions of general speech that are sure enough bear a share of the words, and not all of them."""
    model = small_model()
    add_trained(model, "mine", LoraAdapter(rank=2))
    ids = model.tokenizer.encode("xx yy")
    part = make_words(model.tokenizer, sequences=[ids] * 20, weight=8.0, token_bonus=4.0)

    def general(choice: str | None) -> list[Heard]:
        return [emissions_of(model, "ab cd", 9.0)]

    found = choose_strength(model, model.adapters["mine"], part, general=general, domain=None, kappa=0.0)
    assert found.whole.general.errors > 0
    assert found.chosen is not None
    assert found.chosen.scale == 1.0
    assert found.chosen.share < 1.0
    if found.chosen.part is not None:
        assert found.chosen.part.weight == pytest.approx(8.0 * found.chosen.share)


def test_words_may_make_good_what_the_acoustic_part_breaks() -> None:
    """A weaker acoustic part is still too strong by itself, and allowed with words that help general speech."""
    model = small_model()
    add_trained(model, "mine", LoraAdapter(rank=2))
    adapter = model.adapters["mine"]
    part = make_words(model.tokenizer, sequences=[model.tokenizer.encode("ab cd")] * 20, weight=8.0, token_bonus=0.0)
    last = next(name for name in adapter.tensors() if name.endswith("up.weight"))
    whole = adapter.tensors()[last].norm().clone()
    right, wrong = emissions_of(model, "ab cd", 9.0), emissions_of(model, "xx yy", 9.2)

    def general(choice: str | None) -> list[Heard]:
        if choice is None:
            return [right]
        if float(adapter.tensors()[last].norm() / whole) > 0.9:
            return [Heard(wrong.emissions, right.lengths, right.texts)]
        return [Heard(torch.logaddexp(right.emissions, wrong.emissions), right.lengths, right.texts)]

    found = choose_strength(model, adapter, part, general=general, domain=None, kappa=0.0)
    assert found.chosen is not None
    assert found.chosen.scale == 0.85
    assert found.chosen.part is not None


# Earlier steps


@pytest.mark.parametrize(
    ("gentle", "expected", "tried"),
    [
        ({30: 1.0, 20: 1.0, 10: 1.0}, (30, 1.0), (30, 20)),
        ({20: 1.0, 10: 1.0}, (20, 1.0), (30, 20, 10)),
        ({30: 0.7, 20: 0.7}, (30, 0.7), (30, 20, 10)),
        ({}, (None, 0.0), (30, 20, 10)),
    ],
)
def test_an_earlier_step_is_taken_where_it_is_gentle(
    gentle: dict[int, float], expected: tuple[int | None, float], tried: tuple[int, ...]
) -> None:
    """At no scale above nothing general speech bears the last step; of the earlier ones it bears some, to a scale."""
    model = small_model()
    add_trained(model, "mine", LoraAdapter(rank=2))
    adapter = model.adapters["mine"]
    up = next(name for name in adapter.tensors() if name.endswith("up.weight"))
    down = next(name for name in adapter.tensors() if name.endswith("down.weight"))
    adapter.load_tensors(set_all(adapter.tensors(), 40.0))
    heard: list[tuple[int, float]] = []

    def acting() -> tuple[int, float]:
        """The step and the scale whose parameters the adapter has."""
        own = adapter.tensors()
        step = float(own[down].mean())
        return round(step), round(float(own[up].mean()) / step, 4)

    def general(choice: str | None) -> list[Heard]:
        step, scale = acting()
        if choice is not None:
            heard.append((step, scale))
        bears = choice is None or scale == 0.0 or gentle.get(step, 0.0) >= scale
        return [emissions_of(model, "ab cd" if bears else "xx yy", 9.0)]

    def domain(choice: str | None) -> list[Heard]:
        step, scale = acting()
        right = round(step * scale / 4)
        return [emissions_of(model, "ab cd" if place < right else "xx yy", 9.0) for place in range(10)]

    earlier = [EarlierStep(step=step, tensors=set_all(adapter.tensors(), float(step))) for step in (10, 20, 30)]
    found = choose_strength(model, adapter, None, general=general, domain=domain, kappa=0.0, earlier=earlier)
    assert found.chosen is not None
    assert (found.chosen.step, found.chosen.scale) == expected
    assert found.tried_steps == tried
    assert acting() == (expected[0] or 40, pytest.approx(expected[1]))
    assert len(heard) <= len(SCALES) + 1 + 2 * len(earlier), "each earlier step is heard twice at most"
    assert retention_facts(found).get("step") == expected[0]


def test_a_whole_adapter_that_is_allowed_stays_without_a_look_at_earlier_steps() -> None:
    model = small_model()
    add_trained(model, "mine", LoraAdapter(rank=2))
    adapter = model.adapters["mine"]

    def hear(choice: str | None) -> list[Heard]:
        return [emissions_of(model, "ab cd", 9.0)]

    earlier = [EarlierStep(step=1, tensors=set_all(adapter.tensors(), 1.0))]
    found = choose_strength(model, adapter, None, general=hear, domain=hear, kappa=0.0, earlier=earlier)
    assert found.chosen is found.whole
    assert found.tried_steps == ()
    assert not {"step", "tried_steps"} & set(retention_facts(found))


def test_a_kind_without_a_scale_may_have_an_earlier_step() -> None:
    model = small_model()
    add_trained(model, "mine", ScaleAdapter())
    adapter = model.adapters["mine"]
    name = next(iter(adapter.tensors()))
    adapter.load_tensors(set_all(adapter.tensors(), 2.0))

    def general(choice: str | None) -> list[Heard]:
        breaks = choice is not None and float(adapter.tensors()[name].mean()) > 1.5
        return [emissions_of(model, "xx yy" if breaks else "ab cd", 9.0)]

    def domain(choice: str | None) -> list[Heard]:
        return [emissions_of(model, "ab cd", 9.0)]

    earlier = [EarlierStep(step=1, tensors=set_all(adapter.tensors(), 1.0))]
    found = choose_strength(model, adapter, None, general=general, domain=domain, kappa=0.0, earlier=earlier)
    assert found.chosen is not None
    assert (found.chosen.step, found.chosen.scale) == (1, 1.0)
    assert float(adapter.tensors()[name].mean()) == 1.0


# Trainings


def test_a_training_goes_back_to_an_earlier_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """General speech bears the first validated step and nothing later; files and card hold that step."""
    general = write_corpus(tmp_path, count=2, name="general")
    model = small_model()

    def first_step() -> dict[str, torch.Tensor]:
        return small_model().adapters.load(tmp_path / "run/checkpoints/mine-early/step=2", name="first").tensors()

    def hear(choice: str | None) -> list[Heard]:
        """Speech that the base and the first step's parameters recognise, and nothing else."""
        first, own = first_step(), {} if choice is None else model.adapters[choice].tensors()
        right = all(torch.equal(tensor, first[name]) for name, tensor in own.items())
        return [emissions_of(model, "ab cd" if right else "xx yy", 9.0)]

    def rank(self: WeightsStore, metrics: object) -> tuple[float, float]:
        """Each validated step is better than the best so far."""
        return (0.0 if self.best is not None and metrics is self.best.metrics else -1.0), 0.0

    monkeypatch.setattr(WeightsStore, "rank", rank)
    monkeypatch.setattr("overtone.training.retention.hear", lambda model, recordings, choice: hear(choice))
    monkeypatch.setattr("overtone.training.retention.hear_validation", lambda run, batches, choice: hear(choice))
    monkeypatch.setattr("overtone.training.retention.choose_early", lambda weights, before: weights.early)
    monkeypatch.setattr("overtone.inference.retention.SCALES", (1.0, 0.5))
    retention = f"model.adapter.retention={{manifest: {general}, kappa: 0.0}}"
    settings = settings_for(tmp_path, retention, "model.optim.lr=0.05", "trainer.val_check_interval=2")
    result = run_training(settings, model=model, reporter=QUIET)
    facts = result.card["retention"]
    assert (facts["step"], facts["scale"], facts["tried_steps"]) == (2, 1.0, [4, 2])
    assert result.best_step == 6
    assert TrialResult.of(result).best_step == read_result(result.folder).best_step == 2
    stored = small_model().adapters.load(result.best, name="mine")
    assert stored.card["retention"]["step"] == 2
    assert all(torch.equal(tensor, first_step()[name]) for name, tensor in stored.tensors().items())
    whole = small_model().adapters.load(result.best.with_name("mine-whole"), name="mine")
    assert whole.card["steps"] == 6

    assert result.wer_after not in (0.0, None), "the best step errs on the real validation set"
    assert facts["domain_wer"] == {"base": 0.0, "whole": 1.0, "chosen": 0.0}
    reached = reached_rates(stored.card)
    assert reached == (0.0, 0.0)
    entry = folder_entry(result.best, read_description(result.best))
    assert (entry.wer_before, entry.wer_after) == reached
    assert training_of(stored.card).items() >= {"wer_before": 0.0, "wer_after": 0.0}.items()
    for trial in (TrialResult.of(result), read_result(result.folder)):
        assert (trial.wer_before, trial.wer) == reached
    rows = dict(told({"card": stored.card, "kind": "linear", "parameters": 1, "share": 0.5}))
    assert rows["Steps"] == "2"
    assert rows["Validation"].startswith("0.0")


def test_the_score_of_a_run_is_of_the_adapter_that_was_chosen(tmp_path: Path) -> None:
    general = write_corpus(tmp_path, count=2, name="general")
    more = (f"model.adapter.retention={{manifest: {general}}}", f"model.general_manifest={general}")
    result = run_training(settings_for(tmp_path, *more), model=small_model(), reporter=QUIET)
    model = small_model()
    adapter = model.adapters.load(result.best, name="mine")
    retention = {**adapter.card["retention"], "domain_wer": {"base": 0.5, "whole": 0.125, "chosen": 0.25}}
    adapter.card = {**adapter.card, "retention": retention, "wer_after": 0.0625}
    model.adapters.save("mine", result.best, overwrite=True)
    (score,) = score_runs(tmp_path)
    assert (score.wer_before, score.wer_after) == (0.5, 0.25)


def test_a_training_keeps_general_speech(tmp_path: Path) -> None:
    """With no points to lose the adapter of noise is no change at all; the whole one lies beside."""
    general = write_corpus(tmp_path, count=4, name="general")
    model = small_model()
    retention = f"model.adapter.retention={{manifest: {general}, kappa: 0.0}}"
    settings = settings_for(tmp_path, retention, "model.optim.lr=0.05", f"model.general_manifest={general}")
    result = run_training(settings, model=model, reporter=QUIET)
    facts = result.card["retention"]
    (entry,) = result.card["general"]
    assert facts["general_wer"]["chosen"] <= facts["general_wer"]["base"]
    assert entry["wer_after"] == pytest.approx(facts["general_wer"]["chosen"], abs=1e-6)
    loaded = small_model()
    stored = loaded.adapters.load(result.best)
    assert stored.digest() == model.adapters["mine"].digest()
    whole = result.best.with_name("mine-whole")
    assert facts["step"] == result.best_step
    if facts["scale"] < 1.0:
        kept = loaded.adapters.load(whole, name="kept").tensors()
        scaled = stored.tensors()
        for name, tensor in kept.items():
            factor = facts["scale"] if name.endswith("up.weight") else 1.0
            assert torch.allclose(scaled[name], tensor * factor, atol=1e-7)
    else:
        assert not whole.exists()


def test_a_resumed_training_goes_on_from_the_whole_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best step of the first part stays the best: what was made weaker once is not made weaker twice."""
    monkeypatch.setattr("overtone.inference.retention.SCALES", (0.5,))
    general = write_corpus(tmp_path, count=4, name="general")
    retention = f"model.adapter.retention={{manifest: {general}, kappa: 0.0}}"
    same = (retention, "model.optim.lr=0.05", "exp_manager.resume_if_exists=true",
            "exp_manager.resume_ignore_no_checkpoint=true")  # fmt: skip
    first = run_training(settings_for(tmp_path, *same), model=small_model(), reporter=QUIET)
    again = run_training(settings_for(tmp_path, *same), model=small_model(), reporter=QUIET)
    one, two = (small_model().adapters.load(result.best) for result in (first, again))
    assert one.digest() == two.digest()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("{kappa: 0.5}", "manifest"),
        ("{manifest: a.json, kappa: -1}", "too small"),
        ("{manifests: a.json}", "Did you mean 'manifest'"),
        ("0.5", "is not"),
    ],
)
def test_mistakes_of_the_setting(setting: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_for(tmp_path, f"model.adapter.retention={setting}")


def test_general_speech_that_cannot_be_read(tmp_path: Path) -> None:
    retention = f"model.adapter.retention={{manifest: {tmp_path / 'nothing.json'}}}"
    with pytest.raises(DataError, match="nothing"):
        run_training(settings_for(tmp_path, retention), model=small_model(), reporter=QUIET)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="retention"):
        settings_for(tmp_path, "model.adapter.retention={manifest: a.json}", "model.train=everything")


def test_the_setting_is_in_the_record(tmp_path: Path) -> None:
    general = write_corpus(tmp_path, count=2, name="general")
    settings = settings_for(tmp_path, f"model.adapter.retention={{manifest: {general}, kappa: 100}}")
    result = run_training(settings, model=small_model(), reporter=QUIET)
    record = yaml.safe_load((result.folder / "hparams.yaml").read_text("utf-8"))
    assert record["model"]["adapter"]["retention"] == {"manifest": str(general), "kappa": 100.0}
    assert result.card["retention"]["scale"] == 1.0
