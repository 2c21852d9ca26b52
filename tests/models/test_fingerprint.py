"""The quick sign of a write to a tensor, by which a fingerprint is kept or computed anew."""

from __future__ import annotations

import hashlib

import pytest
import torch

from overtone.models.fingerprint import canonical_text, sum_bits
from support.small_models import small_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_write_anywhere_is_seen(dtype: torch.dtype, count: int) -> None:
    for offset in (0, 1):
        tensor = torch.arange(count + offset).to(dtype)[offset:]
        before = sum_bits(tensor)
        assert sum_bits(tensor.clone()) == before
        for index in range(count):
            changed = tensor.clone()
            changed[index] += 1
            assert sum_bits(changed) != before


def test_shapes_and_strides_do_not_count() -> None:
    tensor = torch.randn(4, 6)
    assert sum_bits(tensor.t().contiguous().t()) == sum_bits(tensor.view(3, 8)) == sum_bits(tensor)
    assert sum_bits(tensor[0, 0]) == sum_bits(tensor[:1, 0])
    assert sum_bits(tensor[:0]) == 0


def test_the_fingerprint_is_the_digest_of_keys_shapes_and_values() -> None:
    model = small_model()
    digest = hashlib.sha256()
    for name, tensor in sorted(model.base_state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name}{list(tensor.shape)}".encode())
            digest.update(tensor.float().contiguous().numpy().astype("<f4").tobytes())
    digest.update(canonical_text(model.settings).encode())
    assert model.fingerprint() == f"sha256:{digest.hexdigest()}"
    with torch.no_grad():
        next(iter(model.encoder.parameters())).view(-1)[0] += 1
    assert model.fingerprint() != f"sha256:{digest.hexdigest()}"
