"""Exported models: the same clips as the code makes, without the code; damage is refused."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util
from jax import export

from dynamicrafter_jax import artifact
from dynamicrafter_jax.artifact import exporting, layout, loading
from dynamicrafter_jax.config import networks_of
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.tokenizer import tokenize
from dynamicrafter_jax.weights import converted
from dynamicrafter_jax.weights.tensors import open_tensors

ROOT = Path(__file__).parent.parent.parent
PROMPTS = ["a man surfing", "a dog", ""]
METHOD: dict[str, Any] = {"solver": "unipc", "steps": 3, "deep_cache_interval": 2}


def pictures(count: int) -> list[np.ndarray]:
    draw = np.random.default_rng(0).integers
    return [draw(0, 256, (16, 24, 3), dtype=np.uint8) for _ in range(count)]


def run(*command: str, cwd: Path = ROOT) -> str:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of a converted model: two clips a call, steps with a memory."""
    folder = tmp_path_factory.mktemp("exported")
    model = tiny.micro()
    for section, tree in model.params.items():
        converted.save_tree(converted.section_path(folder / "model", section), tree)
    sources = [{"name": "micro", "sha256": "0" * 64}]
    converted.write_description(converted.as_path(folder / "model"), model.config, sources)
    run(
        "-m",
        "dynamicrafter_jax.artifact",
        f"--checkpoint={folder / 'model'}",
        f"--config={ROOT / 'tests/configs/micro.py'}",
        *(f"--config.sampling.{name}={value}" for name, value in METHOD.items()),
        "--batch_size=2",
        "--platforms=portable",
        f"--output={folder / 'artifact'}",
    )
    return folder / "artifact"


@pytest.fixture(scope="module")
def animate(exported: Path) -> artifact.Artifact:
    return artifact.load(exported)


@pytest.fixture
def damaged(exported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def describe_file(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def describe_anew(folder: Path, **changes: object) -> None:
    path = folder / "artifact.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_clips_are_those_of_the_code(animate: artifact.Artifact):
    # Three clips by twos: the last batch is filled up.
    settings: dict[str, Any] = {
        "seed": 7,
        "guidance_scale": 3.0,
        "fps": 10,
        "negative_prompt": "blurred",
    }
    ours = animate.sample(pictures(3), PROMPTS, first_index=2, **settings)
    theirs = tiny.micro().sample(pictures(3), PROMPTS, first_index=2, **METHOD, **settings)
    np.testing.assert_allclose(ours.latents, theirs.latents, rtol=0, atol=1e-5)
    assert ours.frames.dtype == np.uint8 and ours.frames.std() > 10
    difference = ours.frames.astype(int) - theirs.frames()
    assert np.abs(difference).max() <= 1


def test_one_picture_is_one_video(animate: artifact.Artifact):
    (picture,) = pictures(1)
    video = animate(picture, "a dog", seed=1)
    assert video.shape == (3, 16, 24, 3)
    np.testing.assert_array_equal(animate([picture], ["a dog"], seed=1)[0], video)
    assert np.abs(animate(picture, "a dog", seed=2).astype(int) - video).max() > 1


def test_letterboxing_is_the_caller_s_choice(animate: artifact.Artifact):
    tall = pictures(1)[0].transpose(1, 0, 2)
    ours = animate.sample(tall, "a dog", fit="letterbox")
    theirs = tiny.micro().sample(tall, "a dog", **METHOD, fit="letterbox")
    np.testing.assert_allclose(ours.latents, theirs.latents, rtol=0, atol=1e-5)
    assert ours.frames.shape == (1, 3, 16, 10, 3)
    assert np.abs(ours.frames.astype(int) - theirs.frames()).max() <= 1
    with pytest.raises(UserError, match="fit is 'stretch'"):
        animate(tall, fit="stretch")


def test_a_second_call_compiles_nothing(
    animate: artifact.Artifact, caplog: pytest.LogCaptureFixture
):
    def compiled() -> int:
        return sum("Compiling" in record.getMessage() for record in caplog.records)

    animate(pictures(2))
    with jax.log_compiles():
        animate(pictures(2), "a dog", seed=3, guidance_scale=2.0, fps=5, guidance_rescale=0.1)
        assert compiled() == 0
        jax.jit(lambda x: x + 1)(jnp.zeros(3))
        assert compiled() > 0


def test_the_portable_program_is_for_three_platforms(exported: Path, animate: artifact.Artifact):
    program = export.deserialize(bytearray((exported / "programs/portable.bin").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    inputs = {
        name: jax.ShapeDtypeStruct(of["shape"], of["dtype"])
        for name, of in animate.description["inputs"].items()
    }
    traced = []
    for file in (layout.WEIGHTS_FILE, layout.TABLES_FILE):
        with open_tensors(exported / file) as tensors:
            traced.append(
                {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tensors.items()}
            )
    function = jax.jit(program.call).trace(*traced, inputs)
    for platform in program.platforms:
        text = function.lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.convolution" in text


def test_nothing_of_the_exporting_machine_is_in_a_program(exported: Path):
    program = (exported / "programs/portable.bin").read_bytes()
    assert str(ROOT).encode() not in program and b"autoencoder.py" not in program


def test_the_description_says_what_was_exported(exported: Path):
    description = json.loads((exported / "artifact.json").read_text())
    assert description["format_version"] == 1
    assert description["programs"] == {"portable": ["cpu", "cuda", "tpu"]}
    assert description["settings"]["steps"] == 3 and description["num_passes"] == 2
    assert description["sources"] == [{"name": "micro", "sha256": "0" * 64}]
    assert description["parameters"] == sum(x.size for x in jax.tree.leaves(tiny.micro().params))
    assert description["made_with"]["versions"]["jax"] == jax.__version__
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files == {"artifact.json", *description["files"]}
    for name, file in description["files"].items():
        assert file == describe_file(exported / name)


LOADER = """
import sys
import numpy as np
from dynamicrafter_jax import artifact
animate = artifact.load(sys.argv[1])
np.save(sys.argv[2], animate(np.load(sys.argv[3]), "a dog", seed=4))
rooms = ("dynamicrafter_jax.models", "dynamicrafter_jax.diffusion", "dynamicrafter_jax.config")
loaded = [name for name in sys.modules if name.startswith((*rooms, "flax", "orbax", "torch"))]
assert not loaded, loaded
"""


def test_the_loader_imports_no_model(exported: Path, animate: artifact.Artifact, tmp_path: Path):
    (picture,) = pictures(1)
    np.save(tmp_path / "picture.npy", picture)
    video, source = tmp_path / "video.npy", tmp_path / "picture.npy"
    run("-c", LOADER, str(exported), str(video), str(source))
    np.testing.assert_array_equal(np.load(video), animate(picture, "a dog", seed=4))


def test_the_documented_program_needs_no_package(
    exported: Path, animate: artifact.Artifact, tmp_path: Path
):
    document = (ROOT / "docs/exporting.md").read_text()
    _, below = document.split("\n## Without this package\n", 1)
    blocks = re.findall(r"^```python\n(.*?)^```", below, re.M | re.S)
    assert len(blocks) == 1
    os.symlink(exported, tmp_path / "artifact_512")
    image = np.random.default_rng(1).uniform(-1, 1, (16, 24, 3)).astype(np.float32)
    np.save(tmp_path / "picture.npy", image)
    # An import of what is None is an ImportError.
    hidden = "import sys\nsys.modules['dynamicrafter_jax'] = sys.modules['flax'] = None\n"
    run("-c", hidden + blocks[0], cwd=tmp_path)
    frames = np.load(tmp_path / "frames.npy")
    assert frames.shape == (2, 3, 16, 24, 3)
    np.testing.assert_array_equal(frames[0], animate(tmp_path / "picture.npy", "a man surfing"))


def test_documented_tokens_are_of_the_documented_prompt():
    document = (ROOT / "docs/exporting.md").read_text()
    (line,) = re.findall(r'token_ids"\]\[:, :5\] = (.*)  # "(.*)"', document)
    ids, prompt = line
    assert [int(token) for token in ids.split(",")] == tokenize([prompt])[0, :5].tolist()


@pytest.mark.parametrize(
    "file", ["weights.safetensors", "tables.safetensors", "programs/portable.bin"]
)
def test_damaged_files_are_refused(damaged: Path, file: str):
    path = damaged / file
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(UserError, match=f"{file} is not the file that artifact.json describes"):
        artifact.load(damaged)
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"{file} is not the file that artifact.json describes"):
        artifact.load(damaged)
    path.unlink()
    with pytest.raises(UserError, match=f"{file} is missing"):
        artifact.load(damaged)


def test_other_descriptions_are_refused(damaged: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"is not an exported model: it has no artifact\.json"):
        artifact.load(tmp_path)
    describe_anew(damaged, format_version=2)
    with pytest.raises(UserError, match=r"format 2, newer than this code can read \(1\): upgrade"):
        artifact.load(damaged)
    describe_anew(damaged, format_version=1, inputs=None)
    with pytest.raises(UserError, match="it has no inputs"):
        artifact.load(damaged)
    (damaged / "artifact.json").write_text('{"format_version": 1, ')
    with pytest.raises(UserError, match="is not whole"):
        artifact.load(damaged)


def test_a_program_that_this_jax_can_not_read_says_which_made_it(damaged: Path):
    program = damaged / "programs/portable.bin"
    program.write_bytes(b"no program at all" * 9)
    files = json.loads((damaged / "artifact.json").read_text())["files"]
    describe_anew(damaged, files=files | {"programs/portable.bin": describe_file(program)})
    with pytest.raises(UserError, match=f"was made with JAX {jax.__version__}.*export the model"):
        artifact.load(damaged)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"steps": 5}, "steps is 3 in this exported model and can't be 5: export another"),
        ({"stpes": 5}, "unknown setting stpes: choose from guidance_scale"),
        ({"seed": -1}, "seed is -1: choose a finite number from 0 to 4294967295"),
        ({"seed": 1.5}, "seed is 1.5: a whole number is needed"),
        ({"fps": "8"}, "fps is '8': a number is needed"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"image_guidance_scale": 2.0}, "exported without image_guidance_scale"),
        ({"loop": True}, "not exported for interpolation"),
        ({"prompt": ["a", "b"]}, "1 images but 2 prompts"),
    ],
)
def test_unusable_options_are_refused(
    animate: artifact.Artifact, options: dict[str, Any], words: str
):
    with pytest.raises(UserError, match=re.escape(words)):
        animate(pictures(1)[0], **options)


def test_unusable_inputs_are_refused(animate: artifact.Artifact):
    given = {name: np.zeros(1) for name in animate.description["inputs"]}
    with pytest.raises(UserError, match=r"must be float32 \(16, 24, 3\)"):
        animate(np.zeros((16, 16, 3), np.float32))
    with pytest.raises(
        UserError, match=r"takes the inputs image, .* and seed is missing or unknown"
    ):
        animate.run(given | {"seed": np.zeros(1)})
    with pytest.raises(
        UserError, match=r"image is float64 \(1,\): .* takes float32 \(2, 16, 24, 3\)"
    ):
        animate.run(given)


def test_a_fused_program_is_chosen_where_there_is_one():
    programs = {"portable": ["cpu", "cuda", "tpu"], "tpu": ["tpu"]}
    chosen = {name: loading.choose_program(programs, name) for name in ("cpu", "cuda", "tpu")}
    assert chosen == {"cpu": "portable", "cuda": "portable", "tpu": "tpu"}
    with pytest.raises(UserError, match="runs on cpu, cuda, tpu, not on rocm"):
        loading.choose_program(programs, "rocm")


def test_programs_that_can_not_be_exported_are_named():
    with pytest.raises(UserError, match="export it on a machine with an NVIDIA GPU"):
        exporting.check_targets(["cuda"])
    with pytest.raises(UserError, match=r"no program 'gpu'.*portable, tpu, cuda"):
        exporting.check_targets(["portable", "gpu"])
    assert exporting.possible_targets() == ["portable", "tpu"]


@pytest.mark.slow
def test_the_tpu_program_holds_the_fused_kernel():
    config = tiny.micro().config.copy_and_resolve_references()
    config.precision.update(dtype="bfloat16", param_dtype="bfloat16")
    config.sampling.update(height=512, width=512)
    settings = SamplingSettings.from_config(config.sampling)
    models = networks_of(config)
    flat = cast(dict[str, jax.Array], traverse_util.flatten_dict(tiny.micro().params, sep="/"))
    weights = {name: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for name, x in flat.items()}
    tables = jax.eval_shape(lambda: exporting.make_tables(config, settings))
    inputs = exporting.input_shapes(models, settings, 1, False)
    program = exporting.export_program(config, exporting.TARGETS["tpu"], weights, tables, inputs)
    assert program.platforms == ("tpu",)
    assert "@tpu_custom_call" in program.mlir_module()


@pytest.mark.slow
def test_interpolation_with_weights_in_half_precision(tmp_path: Path):
    config = tiny.micro().config.copy_and_resolve_references()
    config.precision.param_dtype = "bfloat16"
    config.sampling.steps = 2
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.micro().params)
    folder = tmp_path / "artifact"
    exporting.export_artifact(config, params, folder, targets=["portable"], interpolation=True)
    with open_tensors(folder / "weights.safetensors") as tensors:
        assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(jnp.bfloat16)}
    animate, model = artifact.load(folder), ImageToVideo(config, params)
    first, last = pictures(2)
    cases: list[dict[str, Any]] = [{"end_image": last}, {"loop": True}]
    for options in cases:
        ours = animate.sample(first, "a dog", **options)
        theirs = model.sample(first, "a dog", **options)
        np.testing.assert_allclose(ours.latents, theirs.latents, rtol=0, atol=1e-5)
        assert np.abs(ours.frames.astype(int) - theirs.frames()).max() <= 1
    with pytest.raises(UserError, match="exported for interpolation: give an end_image, or loop"):
        animate(first)
