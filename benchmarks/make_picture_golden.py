"""Makes the golden file for the measures of pictures, with other implementations.

    python benchmarks/make_picture_golden.py

It needs a separate environment with the packages dreamsim (0.2.1), open-clip-torch and
scikit-image. Nothing is downloaded: weights are rebuilt from names, written as DreamSim releases
them, and read by the `dreamsim` package. DINO's code, which that package loads from a repository,
is replaced by the package's own copy.
"""

import functools
import importlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import clip_files
import dreamsim_files as names
import torch
from PIL import Image


def main() -> int:
    found = dict(similarities()) | dict(clip_numbers()) | dict(dreamsim_numbers())
    np.savez_compressed(names.GOLDEN / "picture_metrics.npz", allow_pickle=False, **found)
    return 0


def dreamsim_numbers() -> Iterator[tuple[str, np.ndarray]]:
    """Yields features, vectors and distances by kind and size of networks."""
    normalize = importlib.import_module("dreamsim.model").normalize_embedding
    for size, sizes in names.SIZES.items():
        pictures = [Image.fromarray(names.picture(*which)) for which in names.pictures(size)]
        for kind in names.KINDS:
            with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
                model, preprocess = load(names.write(Path(folder), kind, sizes), kind, sizes)
                images = torch.cat([preprocess(picture) for picture in pictures])
                if size == "small":
                    yield f"distances_{kind}", model(images, images.roll(1, 0)).numpy()
                model.base_model.model.normalize_embeds = False
                features = model.embed(images)
                yield f"features_{kind}_{size}", features.numpy()
                yield f"vectors_{kind}_{size}", normalize(features).numpy()


def load(folder: Path, kind: str, sizes: names.Sizes) -> Any:
    """Returns what `dreamsim.dreamsim` does, for networks of any size."""
    package = importlib.import_module("dreamsim")
    extraction = "dreamsim.feature_extraction"
    vit = importlib.import_module(f"{extraction}.vision_transformer")
    make = functools.partial(
        vit.VisionTransformer,
        patch_size=names.PATCH,
        embed_dim=sizes.width,
        depth=sizes.layers,
        num_heads=sizes.heads,
        qkv_bias=True,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    )
    # The package reads a head that it has no use for here.
    head = {f"mlp.{i}.{part}": torch.zeros(1) for i in (0, 2, 4) for part in ("weight", "bias")}
    head["last_layer.weight"] = torch.zeros(1)
    student = {"student": {f"module.head.{name}": values for name, values in head.items()}}
    torch.save(student, folder / "dino_vitb16_pretrain.pth")

    def hub(_: str, name: str) -> Any:
        assert name == "dino_vitb16"
        network = make()
        state = torch.load(folder / "checkpoints/dino_vitbase16_pretrain.pth", weights_only=True)
        network.load_state_dict(state)
        return network

    def sized(patch_size: int) -> Any:
        assert patch_size == names.PATCH
        return make()

    with (
        mock.patch("torch.hub.load", hub),
        mock.patch(f"{extraction}.load_clip_as_dino.vit_base", sized),
        mock.patch(f"{extraction}.load_open_clip_as_dino.vit_base", sized),
    ):
        return package.dreamsim(device="cpu", cache_dir=str(folder), dreamsim_type=kind)


def clip_numbers() -> Iterator[tuple[str, np.ndarray]]:
    """Yields the vectors of texts and pictures from a small OpenCLIP."""
    package = importlib.import_module("open_clip")
    vision = {"patch_size": clip_files.VISION["patch_size"], "image_size": 224}
    vision |= {name: clip_files.VISION[name] for name in ("width", "layers", "head_width")}
    text = {name: clip_files.TEXT[name] for name in ("context_length", "vocab_size", "width")}
    text |= {name: clip_files.TEXT[name] for name in ("heads", "layers")}
    network = package.CLIP(clip_files.EMBEDDING, vision, text).eval()
    state = {name: torch.from_numpy(values) for name, values in clip_files.tensors().items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected and missing in ([], ["attn_mask"]), (missing, unexpected)
    mean, std = package.OPENAI_DATASET_MEAN, package.OPENAI_DATASET_STD
    preprocess = package.image_transform(224, is_train=False, mean=mean, std=std)
    pictures = [Image.fromarray(names.picture(*which)) for which in names.PICTURES]
    with torch.inference_mode():
        images = torch.stack([preprocess(picture) for picture in pictures])
        yield "clip_pixels", images[:, :, ::16, ::16].numpy()
        yield "clip_images", network.encode_image(images).numpy()
        yield "clip_texts", network.encode_text(torch.from_numpy(clip_files.token_ids())).numpy()


def similarities() -> Iterator[tuple[str, np.ndarray]]:
    """Yields the similarity of each picture to a noisier one, computed by scikit-image."""
    metrics = importlib.import_module("skimage.metrics")
    for seed, height, width in names.PICTURES:
        picture = names.picture(seed, height, width)
        noisy = names.noisy(picture, seed)
        yield f"psnr_{seed}", np.asarray(metrics.peak_signal_noise_ratio(picture, noisy))
        similarity = metrics.structural_similarity(
            picture,
            noisy,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=-1,
        )
        yield f"ssim_{seed}", np.asarray(similarity)


if __name__ == "__main__":
    sys.exit(main())
