"""Features of many clips: on any mesh the same, and kept in files."""

import jax.numpy as jnp
import numpy as np
import pytest

from dynamicrafter_jax import sharding
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.metrics.features import Extractor, Features, merge_features
from dynamicrafter_jax.metrics.fvd import Moments

SETTINGS = {"network": "sums", "weights_sha256": "00", "frames": 4}


def network(params, clips):
    """Sums that are exact in float32, whatever their order."""
    x = clips.astype(jnp.float32)
    return jnp.stack([x.sum((1, 2, 3, 4)), x[:, 0].sum((1, 2, 3)) * params["scale"]], axis=-1)


def clip(name):
    return np.random.default_rng(int(name)).integers(0, 256, (4, 5, 6, 3), np.uint8)


def expected(names):
    clips = np.stack([clip(name) for name in names]).astype(np.float32)
    return np.stack([clips.sum((1, 2, 3, 4)), 2 * clips[:, 0].sum((1, 2, 3))], axis=-1)


def extractor(devices, clips_per_device=1):
    mesh = sharding.make_mesh(data=devices)
    params = {"scale": np.full((), 2, np.float32)}
    return Extractor(network, params, mesh, clips_per_device=clips_per_device)


def names_of(count):
    return tuple(map(str, range(count)))


def features(names, **settings):
    values = expected(names).astype(np.float32)
    return Features(values, tuple(names), {**SETTINGS, **settings})


@pytest.mark.parametrize("count", [1, 8, 19])
@pytest.mark.parametrize(("devices", "clips_per_device"), [(1, 1), (8, 1), (4, 3)])
def test_batches_keep_clips_in_order(count, devices, clips_per_device):
    extract = extractor(devices, clips_per_device)
    assert extract.batch_size == devices * clips_per_device
    found = list(extract((name, clip(name)) for name in names_of(count)))
    assert sum((names for names, _ in found), ()) == names_of(count)
    assert np.array_equal(np.concatenate([v for _, v in found]), expected(names_of(count)))


def test_finished_batches_come_before_the_error_of_a_later_clip():
    def clips():
        yield from ((name, clip(name)) for name in names_of(3))
        raise UserError("3 can't be read")

    found = []
    with pytest.raises(UserError, match="3 can't be read"):
        for names, _ in extractor(1)(clips()):
            found.append(names)
    assert found == [("0",), ("1",), ("2",)]


def test_statistics_do_not_depend_on_the_devices():
    names = names_of(37)
    one, eight = (
        Moments.of(np.concatenate([v for _, v in extractor(n)((i, clip(i)) for i in names)]))
        for n in (1, 8)
    )
    assert one.count == eight.count == 37
    assert np.abs(one.mean / eight.mean - 1).max() < 1e-8
    assert np.abs(one.covariance / eight.covariance - 1).max() < 1e-8


def test_clips_of_mixed_sizes_are_refused():
    clips = [("a", clip("0")), ("b", clip("1")[:, :4])]
    with pytest.raises(UserError, match="b is 4x4x6, but a is 4x5x6"):
        list(extractor(1)(clips))


def test_features_are_kept(tmp_path):
    path, saved = tmp_path / "features.npz", features(["3", "1", "2"])
    saved.save(path)
    loaded = Features.load(path)
    assert (loaded.names, loaded.settings) == (saved.names, saved.settings)
    assert loaded.values.dtype == np.float32 and np.array_equal(loaded.values, saved.values)
    assert [file.name for file in tmp_path.iterdir()] == ["features.npz"]


def test_features_are_selected_by_name():
    found = features(["3", "1", "2"]).select(["2", "3"])
    assert found.names == ("2", "3") and np.array_equal(found.values, expected(["2", "3"]))
    with pytest.raises(UserError, match="no features of 7"):
        found.select(["2", "7"])


def test_features_are_merged():
    merged = merge_features([features(["1", "2"]), features(["0"])])
    assert merged.names == ("1", "2", "0")
    assert np.array_equal(merged.values, expected(["1", "2", "0"]))


def test_different_settings_are_not_merged():
    with pytest.raises(UserError, match="weights_sha256 is 00 and ff; with is None and 1"):
        merge_features([features(["1"]), features(["2"], weights_sha256="ff", **{"with": 1})])
    with pytest.raises(UserError, match="two features for the same clip: 2"):
        merge_features([features(["1", "2"]), features(["2"])])
    with pytest.raises(UserError, match="no features to merge"):
        merge_features([])


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "features.npz"
    np.savez(path, features=np.zeros((2, 3), np.float32), about=np.asarray("no JSON"))
    with pytest.raises(UserError, match="does not hold features"):
        Features.load(path)
    np.savez(path, features=np.zeros((2, 3), np.float32))
    with pytest.raises(UserError, match="does not hold features and about"):
        Features.load(path)
    np.savez(path, features=np.asarray([object()]), about=np.asarray("{}"), allow_pickle=True)
    with pytest.raises(UserError, match=r"not a complete \.npz file"):
        Features.load(path)
