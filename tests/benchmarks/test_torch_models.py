"""The PyTorch networks that ours are timed against compute the release's numbers too."""

import benchmark_modules
import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
torch_layers, torch_models = benchmark_modules.load("torch_layers", "torch_models")
torch.set_num_threads(1)  # threads of several workers would wait for one another

# Both compute in float32, in different orders.
TARGET = 1e-5


@pytest.mark.parametrize("kind", ["v", "eps"])
def test_unet_computes_the_golden_numbers(kind, relative_error):
    golden, config = tiny.golden(f"tiny_{kind}_modules"), tiny.config(kind)
    network = torch_models.UNet(**config.unet.to_dict())
    torch_layers.load(network, tiny.params(kind, "unet"))
    tensor = torch_layers.tensor
    b, t, h, w, _ = golden["x"].shape
    image = golden["image_context"].reshape(b, t, -1, config.unet.context_dim)
    y = network(
        torch_layers.channels_first(golden["x"]),
        tensor(golden["timesteps"]),
        tensor(golden["text_context"]),
        tensor(image),
        tensor(golden["fs"]),
    )
    ours = y.numpy().transpose(0, 2, 3, 1).reshape(b, t, h, w, -1)
    assert relative_error(ours, golden["unet"]) < TARGET


def test_decoder_computes_the_golden_numbers(relative_error):
    golden, vae = tiny.golden("tiny_v_modules"), tiny.config("v").vae
    params = tiny.params("v", "vae")
    network = torch_models.VAEDecoder(**vae.to_dict())
    torch_layers.load(network, {name: params[name] for name in ("decoder", "post_quant")})
    z = torch_layers.channels_first(golden["vae_z"])
    ours = network(z).numpy().transpose(0, 2, 3, 1)
    assert relative_error(ours, golden["vae_decoded"]) < TARGET


def test_parameters_are_complete_or_refused():
    norm = torch.nn.GroupNorm(1, 2)
    scale, bias = np.full(2, 3.0), np.full(2, 4.0)
    torch_layers.load(norm, {"scale": scale, "bias": bias})
    assert norm.weight.tolist() == [3, 3] and norm.bias.tolist() == [4, 4]
    with pytest.raises(ValueError, match="lack bias"):
        torch_layers.load(norm, {"scale": scale})
    with pytest.raises(ValueError, match="lacks other"):
        torch_layers.load(norm, {"scale": scale, "bias": bias, "other": bias})
