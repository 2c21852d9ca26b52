"""Contradictions in the settings of a data set."""

from __future__ import annotations

from overtone.config.augmentor import contradictions
from overtone.config.dataset import DatasetSettings
from overtone.config.fields import Findings
from overtone.config.sources import SourceList


def check_dataset(dataset: DatasetSettings, listed: SourceList, findings: Findings, *, key: str, trains: bool) -> None:
    """Check a data set of a training. key: of the set in messages. trains: it is what is trained on."""
    if dataset.batch_size is None and dataset.batch_duration is None and dataset.bucket_batch_size is None:
        findings.add(f"{key}.batch_size", "has to be given, or batch_duration.")
    if dataset.augmentor is not None:
        for inner, fault in contradictions(dataset.augmentor).items():
            findings.add(f"{key}.augmentor.{inner}", fault)
        if not trains:
            findings.add(f"{key}.augmentor", "is for training; leave it out.")
    low, high = dataset.min_duration, dataset.max_duration
    if low is not None and high is not None and low > high:
        findings.add(f"{key}.min_duration", f"{low} s is longer than max_duration, {high} s.")
    check_buckets(dataset, findings, key)
    if trains:
        check_mixing(dataset, listed, findings, key)


def check_buckets(dataset: DatasetSettings, findings: Findings, key: str) -> None:
    """Check the duration buckets."""
    bins, sizes = dataset.bucket_duration_bins, dataset.bucket_batch_size
    if bins is not None and (not bins or list(bins) != sorted(set(bins)) or bins[0] <= 0):
        findings.add(f"{key}.bucket_duration_bins", f"{list(bins)}: rising numbers of seconds are needed.")
    if sizes is not None and (bins is None or len(sizes) != len(bins) or min(sizes, default=0) < 1):
        message = "needs bucket_duration_bins, and a number of utterances, at least 1, for each of these."
        findings.add(f"{key}.bucket_batch_size", message)
    buckets = dataset.batch_duration is not None or dataset.use_bucketing
    for name in ("bucket_duration_bins", "bucket_batch_size"):
        if getattr(dataset, name) is not None and (not buckets or dataset.use_bucketing is False):
            findings.add(f"{key}.{name}", "needs use_bucketing=true, or batch_duration.")
    if dataset.quadratic_duration is not None and dataset.batch_duration is None:
        findings.add(f"{key}.quadratic_duration", "needs batch_duration.")


def check_mixing(dataset: DatasetSettings, listed: SourceList, findings: Findings, key: str) -> None:
    """Check the shares of several sets."""
    parts = listed.parts
    mixes = {
        "is_concat": dataset.is_concat,
        "bucketing_weights": dataset.bucketing_weights is not None,
        "weights": listed.weights is not None,
    }
    given = [name for name, is_given in mixes.items() if is_given]
    if len(given) > 1:
        findings.add(f"{key}", f"{' and '.join(given)} are given together; one of them decides the shares.")
    elif given and not dataset.shuffle:
        findings.add(f"{key}.shuffle", f"has to be true with {given[0]}: an epoch is drawn from several sets.")
    probabilities = dataset.concat_sampling_probabilities
    if dataset.is_concat and dataset.concat_sampling_technique == "random":
        if probabilities is None or len(probabilities) != parts or min(probabilities) <= 0:
            message = f"has to be given with technique random: a share above 0 for each of the {parts} manifests."
            findings.add(f"{key}.concat_sampling_probabilities", message)
    elif probabilities is not None:
        message = "needs is_concat=true and concat_sampling_technique=random."
        findings.add(f"{key}.concat_sampling_probabilities", message)
    for name in ("bucketing_weights", "bucketing_batch_size"):
        value = getattr(dataset, name)
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        if value is not None and dataset.tarred_audio_filepaths is None:
            findings.add(f"{key}.{name}", "is for tarred sets; give batch_duration and num_buckets.")
        elif isinstance(value, tuple) and len(value) != parts:
            findings.add(f"{key}.{name}", f"has {len(value)} numbers for {parts} tarred sets; give one each.")
        elif any(number < 1 for number in values):
            findings.add(f"{key}.{name}", f"{value}: whole numbers from 1 are needed.")
    if dataset.bucketing_batch_size is not None and (dataset.batch_duration is not None or dataset.use_bucketing):
        findings.add(f"{key}.bucketing_batch_size", "is given beside duration buckets; give one of the two.")
