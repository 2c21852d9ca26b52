"""The model of a training: loaded or made, with the new adapter, and given back as it came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from overtone.adapters.adapter import Adapter
from overtone.adapters.prior import find_prior
from overtone.adapters.storage import StoredAdapter, stored_digest
from overtone.adapters.tokenizer_files import find_tokenizer, find_tokenizers
from overtone.adapters.vocabulary import split_tensors
from overtone.adapters.word_text import BOOST, Phrases, check_phrases, make_words, read_sentences, write_tokens
from overtone.adapters.words import WORDS_ALONE, WordPart
from overtone.checkpoints.adapters import enable_adapters, read_stored
from overtone.checkpoints.load import load_model
from overtone.checkpoints.nemo.config import describe
from overtone.checkpoints.nemo.fresh import build_fresh, draw_heads
from overtone.checkpoints.nemo.vocabulary import with_fresh_heads
from overtone.decoding.phrase_boost import read_phrases
from overtone.errors import CheckpointError, ConfigError
from overtone.models.asr_model import AsrModel
from overtone.models.vocabulary import WITH_TOKENS, tokenizer_of
from overtone.tokenizers import CharTokenizer, Tokenizer
from overtone.training.console import Reporter
from overtone.training.data import SpeechSet
from overtone.training.plan import AdapterPlan, BasePlan, TrainingPlan

VOCABULARY_OPTION = "model.vocabulary_check="
LARGEST_TOKENS = 4_000_000
"""Tokens of transcripts and text that a word part is counted from; of more, an even share."""

# Models


def load_base(plan: BasePlan, *, seed: int) -> AsrModel:
    """Load the checkpoint, with another vocabulary where the plan names one, or build a model with fresh weights."""
    tokenizer = read_tokenizer(plan.tokenizer) if plan.tokenizer is not None else None
    if plan.config is not None:
        assert tokenizer is not None, "the configuration is checked"
        return build_fresh(plan.config, tokenizer, seed=seed)
    model = load_model(plan.checkpoint or "")
    return model if tokenizer is None else change_vocabulary(model, tokenizer, seed=seed)


def read_tokenizer(path: Path) -> Tokenizer:
    """Read the tokenizer of a file or folder, as `find_tokenizers`. Raises ConfigError."""
    return find_tokenizers(path, key="model.tokenizer")


def change_vocabulary(model: AsrModel, tokenizer: Tokenizer, *, seed: int) -> AsrModel:
    """Return the model's encoder under fresh heads for another vocabulary; adapters do not come along.

    Raises ConfigError for a model that cannot have another vocabulary.
    """
    torch.manual_seed(seed)
    try:
        changed = with_fresh_heads(model, tokenizer)
        draw_heads(changed, changed.config or describe(changed.settings, tokenizer), model.name)
        return changed
    except CheckpointError as error:
        raise ConfigError(f"model.tokenizer: {error}") from error


def check_trained_base(model: AsrModel, plan: TrainingPlan) -> None:
    """Raises ConfigError for a base that has adapters, which would be another's then, and where a head that begins anew
    with another vocabulary would stay frozen.
    """
    if model.adapters.names:
        names = " ".join(model.adapters.names)
        raise ConfigError(
            f"model.train: the adapters {names} were made for the base as it is, and the training changes it. Train it "
            f"without them; `overtone adapters remove base.nemo {names} --output plain.nemo` writes such a model."
        )
    missing = [part for part in WITH_TOKENS if part in model.parts and part not in plan.trained_parts]
    if plan.trained_parts and plan.changes_vocabulary and missing:
        raise ConfigError(
            f"model.train: model.tokenizer makes {', '.join(missing)} anew; that has to be among the parts."
        )


def check_base_stays(plan: TrainingPlan, written: Sequence[Path]) -> None:
    """Raises ConfigError where a file that the training writes is the base's own. written: paths of weights."""
    source = plan.base.checkpoint if isinstance(plan.base, BasePlan) else None
    if source is None:
        return
    base = Path(source).expanduser().resolve()
    for path in written:
        own = path.resolve()
        if own == base or base.is_relative_to(own):
            raise ConfigError(
                f"{path} is the base that is trained, and would be overwritten. Choose another exp_manager.exp_dir or "
                "exp_manager.name, or copy the base."
            )


@contextmanager
def give_back(model: AsrModel) -> Iterator[None]:
    """Give the model back after the block as it came: for inference, on its device and in its compute dtype.

    Inside, a hybrid model has the loss of both heads, unless its CTC head has been chosen.
    After an error also without a new adapter, with the parameters trainable as before, and the files' choice as before.
    """
    backend, device, adapters, head_name = model.backend, model.device, model.adapters, model.head_name
    if head_name == "rnnt" and "hybrid" in model.heads:
        model.head_name = "hybrid"
    frozen, dropout, learns = (
        model.base_is_frozen,
        model.base_dropout,
        [(x, x.requires_grad) for x in model.parameters()],
    )
    choice, nemo, forms = adapters.file_choice, adapters.nemo, {adapter.name: adapter.nemo for adapter in adapters}
    try:
        yield
    except Exception:
        for name in adapters.names:
            if name in forms:
                adapters[name].nemo = forms[name]
            else:
                adapters.remove(name)
        adapters.file_choice, adapters.nemo = choice, nemo
        model.base_is_frozen, model.base_dropout = frozen, dropout
        for parameter, learnt in learns:
            parameter.requires_grad_(learnt)
        raise
    finally:
        model.eval().to(device)
        model.backend, model.head_name = backend, head_name  # `train_base` computes with the encoder itself


# Adapters


def find_vocabulary(model: AsrModel, plan: TrainingPlan) -> Tokenizer | None:
    """The tokenizer that a new adapter will own: the settings', else that of `start_from`; None: it has the base's.

    Raises ConfigError where it cannot be read, or stands beside a retention, AdapterError where there is no such
    adapter to start from.
    """
    found = read_vocabulary(model, plan.adapter)
    if found is not None and plan.retention is not None:
        raise ConfigError(
            "model.adapter.retention: an adapter with a vocabulary of its own is not the base at any strength; leave "
            "it out. model.general_manifest measures such an adapter on general speech."
        )
    return found


def read_vocabulary(model: AsrModel, plan: AdapterPlan | None) -> Tokenizer | None:
    """The same without a look at the rest of the plan. Raises ConfigError and AdapterError."""
    own = None if plan is None else plan.vocabulary
    if own is not None and own.labels is not None:
        try:
            return CharTokenizer(own.labels)
        except CheckpointError as error:
            raise ConfigError(f"model.adapter.vocabulary.labels: {error}") from error
    if own is not None and own.tokenizer is not None:
        return find_tokenizer(Path(own.tokenizer), key="model.adapter.vocabulary.tokenizer")
    if plan is None or plan.start_from is None:
        return None
    start = read_stored(model, plan.start_from)
    return None if start.vocabulary is None else start.vocabulary.tokenizer


def add_adapter(
    model: AsrModel, plan: AdapterPlan, *, seed: int, base_dropout: bool, tokenizer: Tokenizer | None = None
) -> Adapter:
    """Add the new adapter, disable all others, freeze everything else. tokenizer: of its own vocabulary.

    Raises AdapterError, and ConfigError after the adapter has been added.
    """
    torch.manual_seed(seed)
    start = None if plan.start_from is None else read_stored(model, plan.start_from)
    if start is not None and start.kind == WORDS_ALONE:
        raise ConfigError(
            f"model.adapter.start_from: '{start.name}' has words alone, and nothing that could be trained."
        )
    form = start if start is not None and plan.copies_form else plan
    layers = form.layers if isinstance(form.layers, str | int) else list(form.layers)
    adapter = model.adapters.add(
        plan.name,
        form.kind,
        modules=form.modules,
        layers=layers,
        strategy=form.strategy,
        tokenizer=tokenizer,
        reuse=plan.vocabulary is None or plan.vocabulary.reuse,
    )
    check_widths(adapter, plan.widths)
    if start is not None:
        begin_with(adapter, start)
    enable_adapters(model, [plan.name])
    model.adapters.nemo = dict(plan.nemo)
    model.train_only(plan.name, base_dropout=base_dropout)
    return adapter


def begin_with(adapter: Adapter, start: StoredAdapter) -> None:
    """Let a new adapter begin with the parameters and words of another of its form, and note that in its card.

    Raises ConfigError where the settings ask for another form.
    """
    own, given = vars(start.kind), vars(adapter.kind)
    differing = {
        key: (value, given.get(key))
        for key, value in own.items()
        if key not in ("dropout", "position") and given.get(key) != value
    }
    if adapter.kind.name != start.kind.name:
        differing = {"kind": (start.kind.name, adapter.kind.name)}
    begun, (at_points, _) = adapter.tensors(), split_tensors(start.tensors)
    digest = None if adapter.vocabulary is None else adapter.vocabulary.digest()
    same_tokens = digest == (None if start.vocabulary is None else start.vocabulary.tokenizer.digest())
    tensors = start.tensors if same_tokens else {**split_tensors(begun)[1], **at_points}
    shapes = {name: tensor.shape for name, tensor in begun.items()}
    if not differing and shapes != {name: tensor.shape for name, tensor in tensors.items()}:
        differing["places"] = (f"{start.modules}, layers {start.layers}", f"{adapter.modules_text}, {adapter.layers}")
    if differing:
        told = "; ".join(f"{key} is {before} there, {now} in the settings" for key, (before, now) in differing.items())
        raise ConfigError(
            f"model.adapter.start_from: adapter '{start.name}' has another form: {told}. Leave the form out of the "
            "settings, and it is taken from there."
        )
    adapter.load_tensors(tensors)
    adapter.words = start.words if same_tokens else None
    adapter.card = {"start_from": {"name": start.name, "digest": stored_digest(start), "card": start.card}}


def check_widths(adapter: Adapter, widths: Mapping[str, int]) -> None:
    """Raises ConfigError for a width that is not the model's. widths: by the setting's key."""
    own = {adapter.at(point).point.out_width for point in adapter.points}
    for key, width in widths.items():
        if width not in own:
            known = ", ".join(map(str, sorted(own)))
            raise ConfigError(f"{key}: {width} is not the width of the model's layers, {known}; leave it out.")


# Words


def make_word_part(plan: TrainingPlan, model: AsrModel, training: SpeechSet, reporter: Reporter) -> WordPart | None:
    """The word part with the weights that are taken where nothing chooses them; None where the plan has none.

    Raises DataError for text and phrases that cannot be read, or written by the model unless the plan allows for that.
    """
    chosen = plan.words
    if chosen is None or (not training.plan.durations):
        return None
    names = [] if chosen.text is None else [chosen.text] if isinstance(chosen.text, str) else list(chosen.text)
    sequences: list[list[int]] = [list(tokens) for tokens in training.dataset.tokens]
    if names:
        lines = [line for name in names for line in read_sentences(Path(name).expanduser())]
        text = write_tokens(
            tokenizer_of(model),
            ((line, None) for line in lines),
            policy=plan.vocabulary_check,
            option=VOCABULARY_OPTION,
        )
        if text.unwritable:
            reporter.say(f"model.adapter.words.text: {text.describe()}\n{VOCABULARY_OPTION}{plan.vocabulary_check}")
        sequences += text.sequences
    phrases: Phrases = ()
    if chosen.phrases is not None:
        given = list(read_phrases(Path(chosen.phrases).expanduser(), BOOST).items())
        phrases, unwritten = check_phrases(
            tokenizer_of(model), given, policy=plan.vocabulary_check, option=VOCABULARY_OPTION
        )
        if unwritten.unwritable:
            reporter.say(f"model.adapter.words.phrases: {unwritten.describe('phrases')}")
    step = -(-sum(map(len, sequences)) // LARGEST_TOKENS)
    prior = find_prior(tokenizer_of(model).digest()) if chosen.prior else None
    counted = sequences[:: max(1, step)]
    return make_words(tokenizer_of(model), sequences=counted, phrases=phrases, order=chosen.order, prior=prior)
