"""Transducers in NeMo's configuration: durations, the loss and greedy decoding, both ways.

Three places name a TDT model's durations (`model_defaults`, `loss`, `decoding`); they must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from overtone.checkpoints.nemo.yaml import resolved
from overtone.config.keys import Key, integer, number, one_of, read_key, refuse, shown
from overtone.decoding.transducer import MAX_SYMBOLS
from overtone.errors import CheckpointError

LOSSES = {
    "default": "warprnnt_numba_kwargs",
    "warprnnt": "warprnnt_kwargs",
    "warprnnt_numba": "warprnnt_numba_kwargs",
    "pytorch": "pytorch_kwargs",
    "graph_rnnt": "graph_rnnt_kwargs",
    "graph_w_transducer": "",
    "tdt": "tdt_kwargs",
    "tdt_pytorch": "tdt_pytorch_kwargs",
}
"""Names of losses that compute the same, and the sections with their options; an empty one is not supported."""
OPTIONS = (
    Key("fastemit_lambda", "fastemit", number(0.0, 1.0), 0.0),
    Key("sigma", "sigma", number(0.0, 10.0), 0.0),
    Key("omega", "omega", number(0.0, 1.0), 0.0),
)
CTC_WEIGHT = Key("ctc_loss_weight", "ctc_weight", number(0.0, 1.0), 0.5)
PROMPTS = 128
"""Prompts of a model that is told the language, where its configuration does not say."""
REDUCTIONS = one_of("mean_batch", "mean_volume", "mean", "sum")
REDUCTION = Key("rnnt_reduction", "reduction", REDUCTIONS, "mean_batch")
CTC_REDUCTION = Key("ctc_reduction", "ctc_reduction", REDUCTIONS, "mean_batch")


def read_transducer(config: Mapping[str, Any], settings: dict[str, dict[str, Any]], source: str) -> None:
    """Add the durations to the joint's settings, and the options of loss and decoding as a part of their own.

    Raises CheckpointError for durations that do not fit the joint, and for losses of another kind.
    """
    decoding, loss = (dict(resolved(config, key, source)) if config.get(key) else {} for key in ("decoding", "loss"))
    joint = resolved(config, "joint", source)
    options = loss_options(loss, f"{source}: loss")
    durations = read_durations(config, decoding, options, source)
    extra = joint.get("num_extra_outputs") or 0
    if extra != len(durations):
        refuse(f"{source}: joint", "num_extra_outputs", extra, f"{len(durations)}, the number of durations")
    settings["joint"]["durations"] = durations
    auxiliary = config.get("aux_ctc") or {}
    ctc = (CTC_WEIGHT, CTC_REDUCTION) if auxiliary else ()
    settings["transducer"] = {
        **{key.ours: read_key(auxiliary, key, f"{source}: aux_ctc") for key in ctc},
        REDUCTION.ours: read_key(config, REDUCTION, source),
        "max_symbols": read_max_symbols(decoding, f"{source}: decoding.greedy"),
        **{key.ours: read_key(options, key, f"{source}: loss") for key in OPTIONS},
    }


def read_prompts(config: Mapping[str, Any], settings: dict[str, dict[str, Any]], source: str) -> None:
    """Add the net that is told the language, and otherwise read the model as a transducer.

    Raises CheckpointError for languages without a prompt of their own, and as `read_transducer`.
    """
    read_transducer(config, settings, source)
    defaults = resolved(config, "model_defaults", source) if config.get("model_defaults") else {}
    where = f"{source}: model_defaults"
    if not isinstance(defaults, Mapping) or not defaults.get("initialize_prompt_feature"):
        return  # NeMo builds a plain transducer then
    prompts = integer(1, at_most=65_536)(defaults.get("num_prompts") or PROMPTS)
    languages = defaults.get("prompt_dictionary")
    if (
        not isinstance(languages, Mapping)
        or not languages
        or not all(isinstance(name, str) for name in languages)
        or not all(type(prompt) is int and 0 <= prompt < prompts for prompt in languages.values())
    ):
        refuse(where, "prompt_dictionary", languages, f"a mapping of languages to prompts, 0 to {prompts - 1}")
    width = settings["joint"]["encoder_width"]
    if defaults.get("enc_hidden") not in (None, width):
        refuse(where, "enc_hidden", defaults["enc_hidden"], f"{width}, the width of the encoder's output")
    settings["prompt_kernel"] = {"width": width, "prompts": prompts, "languages": dict(languages)}


def loss_options(loss: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of the loss that a section names. Raises CheckpointError for losses of another kind."""
    name = str(loss.get("loss_name", "default"))
    section = LOSSES.get(name)
    if not section:
        allowed = ", ".join(known for known, options in LOSSES.items() if options)
        refuse(where, "loss_name", name, allowed)
    options = loss.get(section) or {}
    if not isinstance(options, Mapping):
        refuse(where, section, options, "a mapping of options")
    return dict(options)


def read_durations(
    config: Mapping[str, Any], decoding: Mapping[str, Any], options: Mapping[str, Any], source: str
) -> tuple[int, ...]:
    """The durations of a TDT model, none of others. Raises CheckpointError where several places contradict."""
    defaults = config.get("model_defaults") or {}
    places = {
        "model_defaults.tdt_durations": defaults.get("tdt_durations") if isinstance(defaults, Mapping) else None,
        "loss.tdt_kwargs.durations": options.get("durations"),
        "decoding.durations": decoding.get("durations"),
    }
    found = {place: value for place, value in places.items() if value}
    for place, value in found.items():
        whole = isinstance(value, list) and all(type(each) is int and 0 <= each <= 1000 for each in value)
        if not whole or len(set(value)) != len(value) or not any(value):
            refuse(source, place, value, "different whole numbers of frames, one of them above 0")
        first = next(iter(found))
        if value != found[first]:
            raise CheckpointError(
                f"{source}: {place} is {shown(value)}, {first} is {shown(found[first])}; they must be equal."
            )
    return tuple(next(iter(found.values()), ()))


def read_max_symbols(decoding: Mapping[str, Any], where: str) -> int:
    """The most tokens in one frame; NeMo's null is 10. Raises CheckpointError for what is no number of tokens."""
    greedy = decoding.get("greedy") or {}
    for name in ("max_symbols", "max_symbols_per_step"):
        if greedy.get(name):
            found: int = read_key(greedy, Key(name, name, integer(at_most=10_000)), where)
            return found
    return MAX_SYMBOLS


def write_transducer(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The sections `loss`, `decoding` and `model_defaults`, and the reduction, for a model that never had any."""
    options, joint = settings.get("transducer", {}), settings["joint"]
    durations = list(joint.get("durations", ()))
    values = {key.theirs: options.get(key.ours, key.default) for key in OPTIONS}
    greedy = {"max_symbols": options.get("max_symbols", MAX_SYMBOLS)}
    # NeMo's models take the widths from here.
    defaults = {
        "enc_hidden": joint["encoder_width"],
        "pred_hidden": joint["prediction_width"],
        "joint_hidden": joint["width"],
    }
    if kernel := settings.get("prompt_kernel"):
        defaults |= {
            "initialize_prompt_feature": True,
            "num_prompts": kernel["prompts"],
            "prompt_dictionary": dict(kernel["languages"]),
        }
    if durations:
        defaults |= {"tdt_durations": durations, "num_tdt_durations": len(durations)}
        loss = {"loss_name": "tdt", "tdt_kwargs": {"durations": durations, "clamp": -1.0, **values}}
        decoding = {"strategy": "greedy_batch", "model_type": "tdt", "durations": durations, "greedy": greedy}
    else:
        numba = {"fastemit_lambda": values["fastemit_lambda"], "clamp": -1.0}
        loss = {"loss_name": "default", "warprnnt_numba_kwargs": numba}
        decoding = {"strategy": "greedy_batch", "greedy": greedy}
    reduction = {REDUCTION.theirs: options.get(REDUCTION.ours, REDUCTION.default)}
    return {**reduction, "model_defaults": defaults, "loss": loss, "decoding": decoding}
