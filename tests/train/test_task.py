"""What a batch's loss is."""

import numpy as np
import pytest
import torch
from diinn.runtime.geometry import grid
from diinn.train import config, data, task


@pytest.mark.parametrize("layout", [grid.NEAREST, grid.ENSEMBLE], ids=["one sample a query", "four"])
@pytest.mark.parametrize("queries", [30, None])
def test_the_loss_of_each_kind_counts_every_patch_alike(layout: grid.Layout, queries: int | None) -> None:
    """Patches of unlike sizes, one of them right but for a little: as each patch's own loss, averaged."""
    options = config.parse(config.DataConfig, {"patch": 8, "batch": 2, "queries": queries, "holdout": 2}, "test")
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    patches = [data.make_sample(image, s, options, layout, np.random.default_rng(1)) for s in (1.5, 3.0)]
    errors = (0.01, 0.2)
    rgb = torch.cat([patch.rgb + error for patch, error in zip(patches, errors, strict=True)])
    wanted = {
        "l1": np.mean(errors),
        "l2": np.mean(np.square(errors)),
        "psnr": np.mean(np.log(np.square(errors) + task.PSNR_FLOOR)),
    }
    for kind, value in wanted.items():
        assert float(task._loss(kind, rgb, data.collate(patches))) == pytest.approx(value, rel=1e-4), kind
