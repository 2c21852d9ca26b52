"""Parts of a model: built with fresh weights, or with none where a file's values follow."""

from __future__ import annotations

import torch

from overtone.models.parts import UnsetWeights, build_part


def test_parts_that_are_loaded_draw_no_random_numbers() -> None:
    settings = {
        "encoder": {"features": 16, "layers": 1, "width": 8, "heads": 2},
        "decoder": {"kind": "rnnt", "classes": 5, "width": 8},
        "ctc_decoder": {"width": 8, "classes": 5},
    }
    before = torch.random.get_rng_state()
    with UnsetWeights():
        unset = {part: build_part(part, arguments) for part, arguments in settings.items()}
    assert torch.equal(torch.random.get_rng_state(), before)
    fresh = {part: build_part(part, arguments) for part, arguments in settings.items()}
    assert not torch.equal(torch.random.get_rng_state(), before)
    for part in settings:
        shapes, expected = ({k: v.shape for k, v in net.state_dict().items()} for net in (unset[part], fresh[part]))
        assert shapes == expected
