from __future__ import annotations

import io
import tarfile
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch import Tensor

from overtone.audio.features import LogMel
from overtone.audio.mel import mel_filter_bank
from overtone.errors import ConfigError, UsageError
from support.fixtures import fixture_file, fixture_models

SHORT, LONG = 12_345, 20_000


def wavs() -> list[Tensor]:
    files = [fixture_file(f"wavs/w{index}.wav") for index in range(3)]
    return [torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in files]


def padded(waveforms: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    return torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths


def noise(*lengths: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return padded([0.1 * torch.randn(length, generator=generator) for length in lengths])


def assert_same_mel(ours: Tensor, reference: np.ndarray[Any, Any]) -> None:
    """Equal but for the rounding of the transform.

    The lowest bin is nearly empty after pre-emphasis; there float32 FFTs of different processors (NeMo's own
    included) part by up to 6e-4 in one value of a thousand.
    """
    assert ours.shape == reference.shape
    difference = np.abs(ours.numpy() - reference)
    assert np.quantile(difference, 0.998) < 1e-4
    assert np.median(difference) < 5e-6
    assert difference.max() < 1e-3


def test_buffers_equal_the_checkpoint() -> None:
    reference = np.load(fixture_file("mel/reference.npz"))
    preprocessor = LogMel()
    assert sorted(preprocessor.state_dict()) == ["fb", "window"]
    np.testing.assert_allclose(preprocessor.fb.numpy(), reference["fb"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(preprocessor.window.numpy(), reference["window"], rtol=0, atol=1e-7)


def test_equals_nemo() -> None:
    reference = np.load(fixture_file("mel/reference.npz"))
    preprocessor = LogMel(pad_to=0).eval()
    for index, wav in enumerate(wavs()):
        mel, lengths = preprocessor(*padded([wav]))
        assert_same_mel(mel, reference[f"mel_{index}"])
        assert lengths.tolist() == reference[f"mel_len_{index}"].tolist()


def test_equals_nemo_in_a_padded_batch() -> None:
    reference = np.load(fixture_file("mel/reference.npz"))
    mel, lengths = LogMel(pad_to=0).eval()(*padded(wavs()))
    assert lengths.tolist() == reference["mel_len_b"].tolist()
    for index in range(3):
        alone = reference[f"mel_{index}"]
        assert_same_mel(mel[index : index + 1, :, : alone.shape[2]], alone)
        assert not mel[index, :, alone.shape[2] :].any()


def checkpoint(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The preprocessor's settings and buffers of a reference model."""
    with tarfile.open(fixture_file(f"{name}/model.nemo")) as archive:
        config, ckpt = (archive.extractfile(f"./{member}") for member in ("model_config.yaml", "model_weights.ckpt"))
        assert config is not None
        assert ckpt is not None
        settings = yaml.safe_load(config)["preprocessor"]
        weights = torch.load(io.BytesIO(ckpt.read()), weights_only=True)
    prefix = "preprocessor.featurizer."
    return settings, {key.removeprefix(prefix): weights[key] for key in weights if key.startswith(prefix)}


@pytest.mark.parametrize("name", fixture_models())
def test_equals_every_reference_model(name: str) -> None:
    reference = np.load(fixture_file(f"{name}/ref_base.npz"))
    settings, buffers = checkpoint(name)
    preprocessor = LogMel(features=settings["features"], normalize=settings["normalize"], pad_to=0).eval()
    assert torch.allclose(preprocessor.fb, buffers["fb"], rtol=0, atol=1e-6)
    preprocessor.load_state_dict(buffers)
    mel, lengths = preprocessor(*padded(wavs()))
    if "mel_0" not in reference and settings["features"] == 80:  # models of equal features share one file
        reference = dict(reference) | dict(np.load(fixture_file("mel/reference.npz")))
    for index in range(3):
        if f"mel_{index}" in reference:
            expected = reference[f"mel_{index}"]
            assert_same_mel(mel[index : index + 1, :, : expected.shape[2]], expected)
            assert lengths[index] == reference[f"mel_len_{index}"]
    if "mel_b" in reference:
        assert_same_mel(mel, reference["mel_b"])
    if "mel_len_b" in reference:
        assert lengths.tolist() == reference["mel_len_b"].tolist()


def exact(waveform: Tensor) -> Tensor:
    """The features of one waveform by the definition, in float64: a transform by a full DFT matrix."""
    x = waveform.double()
    x = torch.cat((x[:1], x[1:] - 0.97 * x[:-1]))
    x = torch.nn.functional.pad(x, (256, 256))
    place = torch.arange(400, dtype=torch.float64)
    window = torch.zeros(512, dtype=torch.float64)
    window[56:456] = 0.5 - 0.5 * torch.cos(2 * torch.pi * place / 399)
    frames = torch.stack([x[160 * t : 160 * t + 512] * window for t in range(len(waveform) // 160)])
    angle = 2 * torch.pi * torch.outer(torch.arange(512.0), torch.arange(257.0)).double() / 512
    power = (frames @ angle.cos()) ** 2 + (frames @ angle.sin()) ** 2
    bank = mel_filter_bank(sample_rate=16_000, n_fft=512, features=80).double()
    mel = torch.log(bank @ power.T + 2**-24)
    return (mel - mel.mean(1, keepdim=True)) / (mel.std(1, keepdim=True) + 1e-5)


def test_equals_the_definition() -> None:
    waveforms, lengths = noise(LONG)
    mel, frames = LogMel(pad_to=0).eval()(waveforms, lengths)
    torch.testing.assert_close(mel[0, :, : frames[0]].double(), exact(waveforms[0]), rtol=0, atol=1e-4)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = noise(LONG)
    whole, _ = LogMel().eval()(*batch)
    monkeypatch.setattr("overtone.audio.features.FRAMES_PER_BLOCK", 7)
    torch.testing.assert_close(LogMel().eval()(*batch)[0], whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalize", ["per_feature", "all_features", None])
def test_a_row_is_the_same_bits_in_every_batch(normalize: str | None) -> None:
    preprocessor = LogMel(normalize=normalize, pad_to=0).eval()
    waveforms, lengths = noise(SHORT, LONG, 4_000)
    batch, frames = preprocessor(waveforms, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, alone_frames = preprocessor(waveforms[row : row + 1, :length], lengths[row : row + 1])
        assert alone_frames[0] == frames[row] == length // 160
        assert torch.equal(batch[row, :, : frames[row]], alone[0, :, : frames[row]])


def test_samples_past_the_length_do_not_count() -> None:
    for preemphasis in (0.97, None):
        preprocessor = LogMel(preemphasis=preemphasis).eval()
        waveforms, lengths = noise(SHORT, LONG)
        dirty = waveforms.clone()
        dirty[0, SHORT:] = 1.0
        assert torch.equal(preprocessor(dirty, lengths)[0], preprocessor(waveforms, lengths)[0])


@pytest.mark.parametrize(("pad_to", "expected"), [(0, 126), (1, 126), (16, 128), (64, 128), (126, 126)])
def test_frame_axis(pad_to: int, expected: int) -> None:
    mel, lengths = LogMel(pad_to=pad_to, pad_value=-3.0).eval()(*noise(SHORT, LONG))
    assert mel.shape == (2, 80, expected)
    assert lengths.tolist() == [SHORT // 160, LONG // 160]
    assert lengths.dtype == torch.int64
    assert (mel[0, :, SHORT // 160 :] == -3.0).all()
    assert (mel[1, :, LONG // 160 :] == -3.0).all()


def test_tiny_rows() -> None:
    waveforms, lengths = noise(0, 1, 159, 160, 330)
    mel, frames = LogMel(pad_to=0).eval()(waveforms, lengths)
    assert frames.tolist() == [0, 0, 0, 1, 2]
    assert mel.isfinite().all()
    assert not mel[:4].any()


def test_normalisation() -> None:
    waveforms, lengths = noise(LONG)
    plain, frames = LogMel(normalize=None, pad_to=0).eval()(waveforms, lengths)
    raw = plain[:, :, : frames[0]]
    per_feature, _ = LogMel(pad_to=0).eval()(waveforms, lengths)
    torch.testing.assert_close(per_feature[0, :, :-1].mean(1), torch.zeros(80), rtol=0, atol=1e-5)
    torch.testing.assert_close(per_feature[0, :, :-1].std(1), torch.ones(80), rtol=0, atol=1e-4)
    together, _ = LogMel(normalize="all_features", pad_to=0).eval()(waveforms, lengths)
    torch.testing.assert_close(together[:, :, :-1], (raw - raw.mean()) / (raw.std() + 1e-5), rtol=0, atol=1e-5)
    fixed = {"fixed_mean": [float(f) for f in range(80)], "fixed_std": [2.0] * 80}
    shifted, _ = LogMel(normalize=fixed, pad_to=0).eval()(waveforms, lengths)
    torch.testing.assert_close(shifted[0, :, :-1], (raw[0] - torch.arange(80.0)[:, None]) / 2, rtol=0, atol=1e-5)
    assert sorted(LogMel(normalize=fixed).state_dict()) == ["fb", "window"]
    assert torch.equal(LogMel(normalize="NA", pad_to=0).eval()(waveforms, lengths)[0], plain)


def test_logarithm_and_power() -> None:
    waveforms, lengths = noise(LONG)
    settings: dict[str, Any] = {"normalize": None, "pad_to": 0}
    energy, _ = LogMel(**settings, log=False).eval()(waveforms, lengths)
    added, _ = LogMel(**settings, log_zero_guard_value=0.5).eval()(waveforms, lengths)
    torch.testing.assert_close(added[:, :, :-1], (energy + 0.5).log()[:, :, :-1])
    clamped, _ = LogMel(**settings, log_zero_guard_type="clamp", log_zero_guard_value=0.5).eval()(waveforms, lengths)
    torch.testing.assert_close(clamped[:, :, :-1], energy.clamp(min=0.5).log()[:, :, :-1])
    silence = torch.zeros(1, 1600), torch.tensor([1600])
    for guard, value in (("tiny", torch.finfo(torch.float32).tiny), ("eps", torch.finfo(torch.float32).eps)):
        mel, _ = LogMel(**settings, log_zero_guard_value=guard).eval()(*silence)
        torch.testing.assert_close(mel[:, :, :-1], torch.full((1, 80, 10), value).log())
    magnitude, _ = LogMel(**settings, log=False, magnitude_power=1.0, features=257, mel_norm=None).eval()(*silence)
    assert not magnitude.any()


def test_dither_only_in_training_and_from_the_global_generator() -> None:
    preprocessor = LogMel(dither=1e-2)
    waveforms, lengths = noise(SHORT, LONG)
    before = waveforms.clone()
    torch.manual_seed(5)
    first, _ = preprocessor.train()(waveforms, lengths)
    second, _ = preprocessor(waveforms, lengths)
    torch.manual_seed(5)
    again, _ = preprocessor(waveforms, lengths)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(waveforms, before)
    state = torch.random.get_rng_state()
    preprocessor.eval()(waveforms, lengths)
    LogMel(dither=0.0).train()(waveforms, lengths)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_always_float32_and_without_gradients() -> None:
    waveforms, lengths = noise(LONG)
    preprocessor = LogMel().eval()
    expected, _ = preprocessor(waveforms, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mel, _ = preprocessor(waveforms.requires_grad_(), lengths)
    assert mel.dtype == torch.float32
    assert not mel.requires_grad
    assert torch.equal(mel, expected)
    assert preprocessor(waveforms.detach().double(), lengths)[0].dtype == torch.float32


def test_other_rates_windows_and_transforms() -> None:
    for window in ("hann", "hamming", "blackman", "bartlett", "none"):
        mel, lengths = LogMel(window=window, sample_rate=8_000, n_fft=None, features=40, pad_to=0).eval()(*noise(8_000))
        assert mel.shape == (1, 40, 101)
        assert lengths.tolist() == [100]
    preprocessor = LogMel(sample_rate=8_000, n_fft=None, window_size=0.02)
    assert (preprocessor.n_fft, preprocessor.hop_length, preprocessor.window_length) == (256, 80, 160)
    assert preprocessor.seconds_per_frame == 0.01
    odd, lengths = LogMel(n_fft=401, pad_to=0).eval()(*noise(1_600))
    assert odd.shape[2] == 10
    assert lengths.tolist() == [9]


def test_filter_bank() -> None:
    bank = mel_filter_bank(sample_rate=16_000, n_fft=512, features=80)
    assert bank.shape == (80, 257)
    assert (bank >= 0).all()
    triangles = mel_filter_bank(
        sample_rate=16_000, n_fft=512, features=10, low_frequency=300, high_frequency=4_000, norm=None
    )
    hertz = torch.arange(257) * 16_000 / 512
    assert not triangles[:, (hertz <= 300) | (hertz >= 4_000)].any()
    centre = (hertz > 600) & (hertz < 3_000)
    torch.testing.assert_close(triangles.sum(0)[centre], torch.ones(int(centre.sum())), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sample_rate", 0),
        ("sample_rate", 16_000.0),
        ("window_size", -0.1),
        ("window_stride", 0.0),
        ("window_stride", 1e-5),
        ("window", "kaiser"),
        ("window", None),
        ("normalize", "per_featur"),
        ("normalize", {"fixed_mean": [0.0] * 80}),
        ("normalize", {"fixed_mean": [0.0] * 80, "fixed_std": [1.0] * 79}),
        ("normalize", {"fixed_mean": [0.0] * 80, "fixed_std": [0.0] * 80}),
        ("normalize", {"fixed_mean": 0.0, "fixed_std": 1.0}),
        ("n_fft", 256),
        ("n_fft", "512"),
        ("preemphasis", float("nan")),
        ("features", 0),
        ("low_frequency", 9_000.0),
        ("high_frequency", 9_000.0),
        ("log", "yes"),
        ("log_zero_guard_type", "max"),
        ("log_zero_guard_value", "small"),
        ("log_zero_guard_value", -1.0),
        ("dither", -1e-5),
        ("dither", "1e-5"),
        ("pad_to", "max"),
        ("pad_to", -1),
        ("pad_value", float("inf")),
        ("frame_splicing", 2),
        ("magnitude_power", -1.0),
        ("exact_pad", True),
        ("mel_norm", "htk"),
    ],
)
def test_refuses_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        LogMel(**{key: value})


def test_suggests_the_nearest_value() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'per_feature'"):
        LogMel(normalize="per_featur")


def test_refuses_lengths_past_the_batch() -> None:
    with pytest.raises(UsageError, match="161 samples in a batch of 160"):
        LogMel()(torch.zeros(1, 160), torch.tensor([161]))
