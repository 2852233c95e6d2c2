"""``diinn-bench engine_layers``: what NVIDIA's own builder says of our engines."""

import importlib.util

import numpy as np
import pytest
from diinn.benchmarks import __main__ as bench
from diinn.benchmarks import engine_layers

if importlib.util.find_spec(engine_layers.BUILDER) is None:
    pytest.skip("no builder of NVIDIA's here: pip install 'diinn[nvidia-builder]'", allow_module_level=True)


def test_maps_of_their_own_take_the_copy_away(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["engine_layers", "nano"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "nano" in line]
    generated = {row[1].strip(): row[4] for row in rows}
    assert len(generated) == 5
    before, after = (next(v for k, v in generated.items() if word in k) for word in ("Transpose", "HWC8"))
    assert "Tran" in before
    assert "Tran" not in after


def test_each_map_gets_its_own_channels() -> None:
    """The weights of the added convolutions, one after the other, are those of the convolution they stand for."""
    from diinn.runtime.bundles import bundle as bundles
    from diinn.runtime.engines import profiles

    bundle, trt = bundles.load("small"), importlib.import_module(engine_layers.BUILDER)
    map_outputs = engine_layers._with_names_of(trt)
    seen = {}

    def change(network: object) -> object:
        layers = [network.get_layer(i) for i in range(network.num_layers)]  # type: ignore[attr-defined]
        joint = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION][-1]
        seen["joint"] = [np.array(v) for v in (map_outputs._as(joint, trt.IConvolutionLayer).kernel, joint.bias)]
        seen["own"] = map_outputs.channels_last(network)
        return seen["own"]

    engine_layers.build(trt, bundle.graph("encoder", "fp16"), profiles.encoder(bundle), change)
    assert len(seen["own"]) == 2 * len(bundle.maps)
    np.testing.assert_array_equal(np.concatenate([w.reshape(-1) for w in seen["own"][::2]]), seen["joint"][0])
    np.testing.assert_array_equal(np.concatenate(seen["own"][1::2]), seen["joint"][1])
