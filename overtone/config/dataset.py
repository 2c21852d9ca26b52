"""Settings of a data set: its files, its batches, and every key of NeMo's that it may have.

Keys of NeMo's loaders fall into three kinds: those that act, those without effect here (buffers, threads, seeds of
their own: batches are a pure function of files, settings and seed), and those that are refused where they ask for
something.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from overtone.config.augmentor import AugmentorSettings
from overtone.config.fields import bounded, one_of, only

AUGMENT = "use augmentor"
PACK = "prepare the recordings so beforehand"
SPEECH = "it is for models of text or of speech output; leave it out"


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """A set of utterances and its batches."""

    # Files

    manifest_filepath: str | tuple[Any, ...] | None = None
    """One manifest (JSON lines), several joined by commas, a pattern, a list, or a list of `[manifest, weight]`."""
    is_tarred: bool = False
    """The recordings are in archives, which tarred_audio_filepaths names."""
    tarred_audio_filepaths: str | tuple[Any, ...] | None = None
    """Archives of recordings, as NeMo packs them, in the form of manifest_filepath: `audio__OP_0..511_CL_.tar`."""
    skip_missing_manifest_entries: bool = False
    """Allow recordings in archives that no line names; they are left out and counted."""
    cuts_path: str | None = None
    """Cuts of lhotse, `cuts.jsonl.gz`."""
    shar_path: Any = None
    """A folder of Lhotse Shar, a list of them, a list of `[folder, weight]`, or a mapping of fields to files."""
    inputs: Any = field(default=None, metadata={"key": "input_cfg"})
    """Several sets and groups of sets with their weights, as a list or the path of a YAML file that holds it."""
    reweight_temperature: Any = None
    """Power of the weights of input_cfg, one number or one for each level: 1 leaves them, 0 makes them equal."""
    is_concat: bool = False
    """Mix the manifests of a list, as the keys beginning with concat say."""
    concat_sampling_technique: Literal["temperature", "random", "round-robin"] = "temperature"
    """By size, by concat_sampling_probabilities, or one after the other."""
    concat_sampling_temperature: float = bounded(5, above=0)
    """1 mixes by size, more nearer to equal shares."""
    concat_sampling_scale: float = bounded(1, above=0)
    """Utterances of an epoch, as a multiple of those that there are."""
    concat_sampling_probabilities: tuple[float, ...] | None = None
    """The share of each manifest."""
    text_field: str = "text"
    """Key of the transcript in the lines."""
    lang_field: str = "lang"
    """Key of its language."""
    channel_selector: str | None = only(None, "average", instead="channels are averaged; leave it out")
    sample_rate: int | None = None
    """Checked against the model's; files of any rate are resampled to it."""

    # Choice

    min_duration: float | None = bounded(None, at_least=-1)
    """Seconds; shorter utterances are left out and counted. Unset: the model's own setting."""
    max_duration: float | None = bounded(None, above=0)
    """Seconds; longer utterances are left out and counted. Unset: the model's own setting."""
    max_utts: int | None = bounded(None, at_least=0)
    """Use only the first utterances; null or 0: all."""
    unusable: Literal["refuse", "drop"] = "refuse"
    """Ours: what to do with recordings that cannot be used, and with training transcripts that are empty or longer
    than their frames allow."""
    check_audio: Literal["none", "headers", "full"] = "headers"
    """Ours: what is looked at before the work begins: nothing, that every recording can be opened and is as long as
    its manifest says, or every sample."""

    # Batches

    batch_size: int | None = bounded(16, at_least=1)
    """Utterances a batch."""
    batch_duration: float | None = bounded(None, above=0)
    """Seconds of audio a batch: batches are then drawn from lhotse's duration buckets, and batch_size is the most
    utterances that one may hold (null: no limit). Those of validation sets hold so much with their padding."""
    quadratic_duration: float | None = bounded(None, above=0)
    """With batch_duration: an utterance of d seconds counts as d + d²/quadratic_duration."""
    use_bucketing: bool | None = None
    """false: no buckets, with batch_duration; true without it: buckets of batch_size or bucket_batch_size."""
    num_buckets: int = bounded(20, at_least=1)
    """Duration buckets, where they are used."""
    bucket_duration_bins: tuple[float, ...] | None = None
    """Upper ends of the buckets in seconds; null: equally much audio in each."""
    bucket_batch_size: tuple[int, ...] | None = None
    """Utterances a batch of each bucket of bucket_duration_bins."""
    bucketing_batch_size: int | tuple[int, ...] | None = None
    """Utterances a batch of each tarred set of a list; of a number, the last has so many, the one before twice, …"""
    bucketing_strategy: str = one_of("synced_randomized", ("synced_randomized", "fully_randomized", "fixed_order"))
    """fixed_order trains on the sets of bucketing_batch_size one after the other in every epoch."""
    bucketing_weights: tuple[int, ...] | None = None
    """Times that each tarred set of a list is used in an epoch."""
    shuffle: bool = True
    """A new order every epoch, the same for the same seed."""
    shuffle_n: int = bounded(2048, at_least=0)
    """Utterances of tarred sets that are shuffled together: shards come in a new order every epoch, one after the
    other, so that the disk is read where it was read before."""
    tarred_shard_strategy: Literal["scatter", "replicate"] = "scatter"
    """With several processes: each reads shards of its own, or all read from all of them."""
    drop_last: bool = False
    """Leave out the last batch of an epoch where it is smaller than the others."""
    augmentor: AugmentorSettings | None = None
    """Changes of the training waveforms by chance; null is none."""
    num_workers: int = bounded(8, at_least=0)
    """Processes that read audio; at most one for each processor is started."""
    pin_memory: bool = True
    """Page-locked memory, where there is a GPU."""

    # Without effect

    use_lhotse: bool | None = None
    """Without effect: the other keys decide."""
    seed: int | str | None = None
    """Without effect, as all seeds here: the run's seed decides."""
    shard_seed: int | str = "trng"
    concat_sampling_seed: int | None = None
    concat_shuffle: bool = True
    """Without effect: `shuffle` decides."""
    shard_manifests: bool = False
    """Without effect, as the keys that follow: how files are read changes nothing."""
    defer_setup: bool = False
    num_cuts_for_bins_estimate: int = 10000
    bucket_buffer_size: int = 10000
    shuffle_buffer_size: int | None = 10000
    concurrent_bucketing: bool = True
    bucketing_2d_strict_mode: bool = True
    max_open_streams: int | None = None
    cuda_expandable_segments: bool = True
    force_map_dataset: bool = False
    force_iterable_dataset: bool = False
    pretokenize: bool = True
    return_sample_id: bool = False
    parser: str = "en"
    """Without effect: transcripts are taken as they are."""
    int_values: bool = False
    use_semi_sorted_batching: bool = False
    """Without effect: neighbours in a batch are of similar duration in any case."""
    randomization_factor: float | None = 0.1

    # Refused

    use_start_end_token: bool = only(False, instead="leave it out")
    trim_silence: bool = only(False, instead="trim the files beforehand")
    normalize_transcripts: bool = only(False, instead="normalise the manifest's text")
    is_code_switched: bool = only(False, instead=PACK)
    use_dali: bool = only(False, instead="leave it out; audio is read on the processor")
    tarred_random_access: bool = only(False, instead="it is called skip_missing_manifest_entries today")
    metadata_only: bool = only(False, instead="leave it out")
    force_finite: bool = only(False, instead="leave it out; an epoch always ends")
    slice_length: int | None = only(None, instead="leave it out; shards are mixed by shuffle_n")
    extra_fields: None = only(None, instead=SPEECH)
    multi_config: bool = only(False, instead="write the sets as groups of input_cfg")
    sampler_fusion: str = "round_robin"
    sampler_weights: None = only(None, instead="give the weights in input_cfg")
    prompt_format: str | None = only(None, instead=SPEECH)
    use_multimodal_sampling: bool = only(False, instead=SPEECH)
    audio_locator_tag: str | None = only(None, instead=SPEECH)
    token_equivalent_duration: float | None = only(None, instead=SPEECH)
    batch_tokens: int | None = only(None, instead="give batch_duration")
    quadratic_factor: float | None = only(None, instead="give quadratic_duration")
    cut_text_into_windows_tokens: int | None = only(None, instead=SPEECH)
    min_tokens: int | None = only(None, instead=SPEECH)
    max_tokens: int | None = only(None, instead=SPEECH)
    measure_total_length: bool = True
    min_tps: float | None = only(-1, None, instead="leave such lines out of the manifest")
    max_tps: float | None = only(None, math.inf, instead="leave such lines out of the manifest")
    min_tpt: float | None = only(-1, None, instead=SPEECH)
    max_tpt: float | None = only(None, math.inf, instead=SPEECH)
    max_cer: float | None = only(None, math.inf, instead="leave such lines out of the manifest")
    min_context_speaker_similarity: float | None = only(None, -1, instead=SPEECH)
    keep: str = only("pass", instead="leave such lines out of the manifest")
    noise_path: None = only(None, instead="use augmentor.noise")
    noise_snr: Any = None
    noise_mix_prob: float = 0.5
    perturb_speed: bool = only(False, instead="use augmentor.speed")
    concatenate_samples: bool = only(False, instead=PACK)
    concatenate_gap_seconds: float = 0.1
    concatenate_duration_factor: float = 1.0
    concatenate_merge_supervisions: bool = True
    db_norm: float | None = -25.0
    truncate_duration: float | None = only(None, instead=PACK)
    truncate_offset_type: str = "random"
    cut_into_windows_duration: float | None = only(None, instead=PACK)
    cut_into_windows_hop: float | None = None
    keep_excessive_supervisions: bool = True
    rir_enabled: bool = only(False, instead="use augmentor.impulse or augmentor.reverberation")
    rir_path: str | None = None
    rir_prob: float = 0.5
    pad_min_duration: float | None = only(None, instead=PACK)
    pad_direction: str = "right"
    lowpass_enabled: bool = only(False, instead="use augmentor.telephone")
    lowpass_frequencies_interval: Any = None
    lowpass_prob: float = 0.5
    compression_enabled: bool = only(False, instead=AUGMENT)
    compression_prob: float = 0.5
    compression_level_interval: Any = None
    compression_codecs: Any = None
    compression_codec_weights: Any = None
    compression_enable_for_custom_fields: bool = False
    clipping_enabled: bool = only(False, instead=AUGMENT)
    clipping_gain_db: Any = None
    clipping_normalize: bool = True
    clipping_oversampling: int | None = 2
    clipping_prob_hard: float = 0.5
    clipping_prob: float = 0.5

    @property
    def names_files(self) -> bool:
        """True where there is something to read."""
        given = (self.manifest_filepath, self.cuts_path, self.shar_path, self.inputs)
        return any(value not in (None, "", (), []) for value in given)

    @property
    def has_plain_manifests(self) -> bool:
        """True where every recording is a file of its own that a manifest names, and none has a weight."""
        others = (self.cuts_path, self.shar_path, self.inputs, self.tarred_audio_filepaths, self.is_concat)
        return not any(others) and not has_numbers(self.manifest_filepath)


def has_numbers(value: object) -> bool:
    """True where a number stands anywhere in nested lists."""
    if isinstance(value, list | tuple):
        return any(map(has_numbers, value))
    return isinstance(value, int | float)
