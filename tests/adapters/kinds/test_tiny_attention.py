"""The tiny attention adapter: its settings, its positions and its widths."""

from __future__ import annotations

from typing import Any

import pytest

from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.errors import AdapterError
from support.families import WIDTH, family_model


def test_relative_positions_need_a_model_that_has_them() -> None:
    with pytest.raises(AdapterError, match="this one has 'abs_pos'"):
        family_model("abs_pos").adapters.add("a", TinyAttentionAdapter(position="rel_pos"))
    adapter = family_model("abs_pos").adapters.add("a", TinyAttentionAdapter())
    assert not any("position" in name for name in adapter.tensors())


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(AdapterError, match="no multiple of heads=3"):
        family_model().adapters.add("a", TinyAttentionAdapter(heads=3, projection=None))


def test_widths() -> None:
    assert TinyAttentionAdapter(heads=3).projection == -1
    adapter = family_model().adapters.add("a", TinyAttentionAdapter(heads=3, projection=0))
    assert adapter.tensors()["encoder.layers.0.after_attention.query.weight"].shape == (3, WIDTH)


@pytest.mark.parametrize(
    "settings", [{"heads": 0}, {"heads": 3, "projection": 8}, {"position": "near"}, {"dropout": -0.1}], ids=str
)
def test_settings_out_of_range_raise(settings: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match="tiny_attn adapter: "):
        TinyAttentionAdapter(**settings)
