"""A run whose workdir is in a bucket: through TensorStore and `epath`, to a server of our own."""

import json
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils.epath import backend, gpath
from fake_gcs import Bucket, serve
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.training.checkpoints import Checkpoints
from dynamicrafter_jax.training.state import TrainState
from dynamicrafter_jax.training.workdir import claim_workdir

WORKDIR = "gs://lab/runs/first"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Everything `gs://` is in here."""
    # Which backend a bucket has would be asked with credentials.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import gcsfs

    made = Bucket()
    with serve(made) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
        gcsfs.GCSFileSystem.clear_instance_cache()
        backend._FileSystemSpecBackend._get_filesystem.cache_clear()
        yield made
        gcsfs.GCSFileSystem.clear_instance_cache()
        backend._FileSystemSpecBackend._get_filesystem.cache_clear()


def make_state(step: int, devices: int = 8) -> TrainState:
    random = np.random.default_rng(step)
    mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])
    params = {
        "unet": {"kernel": jnp.asarray(random.standard_normal((16, 400)), jnp.float32)},
        "projector": {"latents": jnp.asarray(random.standard_normal((8, 3)), jnp.bfloat16)},
    }
    opt_state = jax.tree.map(lambda leaf: leaf + 1, optax.adam(1e-3).init(params))
    state = TrainState(jnp.int32(step), params, {}, opt_state, params)
    return jax.device_put(
        state,
        jax.tree.map(
            lambda leaf: NamedSharding(
                mesh, PartitionSpec("data") if leaf.ndim else PartitionSpec()
            ),
            state,
        ),
    )


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def assert_same(ours: TrainState, expected: TrainState) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), ours, expected
    )


def steps_in(bucket: Bucket) -> list[str]:
    names = [name.split("/") for place, name in bucket.objects if place == "lab"]
    return sorted({name[3] for name in names if name[2] == "checkpoints"})


def test_a_run_in_a_bucket(bucket: Bucket):
    config = ConfigDict({"train": {"steps": 10, "seed": 1}})
    claim_workdir(WORKDIR, config)
    claim_workdir(WORKDIR, config)
    stored = bucket.objects["lab", "runs/first/config.json"].data
    assert json.loads(stored) == config.to_dict()

    frozen = {"vae": jnp.arange(6.0)}
    with Checkpoints(WORKDIR, keep_last=2, keep_every=3) as opened:
        assert opened.latest_step() is None
        opened.save_frozen(jax.tree.map(jnp.zeros_like, frozen))
        opened.save_frozen(frozen)
        for step in (1, 3, 4, 5):
            opened.save(make_state(step), wait=True)
        assert steps_in(bucket) == ["3", "4", "5"]
    for item in ("checkpoints/5/params", "checkpoints/5/opt_state", "frozen"):
        folder = f"runs/first/{item}/"
        stored = {
            name.removeprefix(folder): len(object.data)
            for (_, name), object in bucket.objects.items()
            if name.startswith(folder)
        }
        listed = json.loads(bucket.objects["lab", f"{folder}files.json"].data)
        assert {*stored} - {*listed} <= {
            "files.json", "commit_success.txt", "_CHECKPOINT_METADATA"
        }  # fmt: skip
        assert listed.items() <= stored.items()
    with Checkpoints(WORKDIR, keep_last=2) as again:
        assert again.latest_step() == 5
        assert_same(again.restore(abstract(make_state(5, devices=4))), make_state(5))
        assert_same(again.restore(abstract(make_state(3)), step=3), make_state(3))
        shapes = {"vae": jax.ShapeDtypeStruct((6,), jnp.float32, sharding=frozen["vae"].sharding)}
        np.testing.assert_array_equal(again.restore_frozen(shapes)["vae"], frozen["vae"])
    with pytest.raises(UserError, match=r"train\.seed 1 -> 2"):
        claim_workdir(WORKDIR, ConfigDict({"train": {"steps": 10, "seed": 2}}))


def test_an_unfinished_step_in_a_bucket(bucket: Bucket):
    """There is no renaming in a bucket: a last object says that a step is whole."""
    with Checkpoints(WORKDIR, keep_last=2) as opened:
        opened.save(make_state(1))
        opened.save(make_state(2), wait=True)
    del bucket.objects["lab", "runs/first/checkpoints/2/commit_success.txt"]
    with (
        pytest.warns(UserWarning, match="never finished, and is ignored: 2$"),
        Checkpoints(WORKDIR, keep_last=2) as again,
    ):
        assert again.latest_step() == 1
        assert_same(again.restore(abstract(make_state(1))), make_state(1))
        assert steps_in(bucket) == ["1", "2"]
        again.save(make_state(3), wait=True)
    assert steps_in(bucket) == ["1", "3"]


def test_a_damaged_step_in_a_bucket(bucket: Bucket):
    with Checkpoints(WORKDIR, keep_last=2) as opened:
        opened.save(make_state(1), wait=True)
        lost = next(name for name in bucket.objects if "params/ocdbt" in name[1])
        del bucket.objects[lost]
        backend.fsspec_backend.fs(WORKDIR).invalidate_cache()  # as in a new process
        with pytest.raises(
            UserError, match=r"checkpoints/1 is damaged .params/ocdbt\S+ is missing"
        ):
            opened.restore(abstract(make_state(1)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_bucket_that_takes_no_more(bucket: Bucket):
    with Checkpoints(WORKDIR, keep_last=2) as opened:
        opened.save(make_state(1), wait=True)
        bucket.room = 4
        with pytest.raises(UserError, match=r"checkpoints/2 could not be saved .*from step 1$"):
            opened.save(make_state(2), wait=True)
        bucket.room = None
        assert opened.latest_step() == 1
        opened.save(make_state(3), wait=True)
        assert_same(opened.restore(abstract(make_state(3))), make_state(3))
        assert_same(opened.restore(abstract(make_state(1)), step=1), make_state(1))
