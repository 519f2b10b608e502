"""The training step: what trains, what counts, and that no mesh or batching changes the maths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from random_clips import clips

from dynamicrafter_jax import sharding
from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.training import freezing
from dynamicrafter_jax.training.objectives import make_objective
from dynamicrafter_jax.training.optimizer import make_optimizer
from dynamicrafter_jax.training.settings import TrainSettings
from dynamicrafter_jax.training.state import TrainState, abstract_state, create_state
from dynamicrafter_jax.training.step import Metrics, compile_step, make_train_step

CLIPS = 8


def settings(**overrides):
    chosen = {"batch_size": CLIPS, "accumulation": 1, "learning_rate": 1e-3, "ema_decay": 0.9}
    return settings_of(TrainSettings, "train", tiny.micro().config.train, **chosen | overrides)


@functools.cache
def program(devices=1, **overrides):
    """A compiled step with its optimizer and the abstract state, for some settings."""
    chosen, model = settings(**overrides), tiny.micro()
    mesh = sharding.make_mesh(devices)
    optimizer = make_optimizer(chosen)
    abstract = abstract_state(abstract_models(model.models), optimizer, chosen, mesh)
    rng = sharding.replicate(jax.random.key(7), mesh)
    schedule = make_schedule(**model.config.diffusion.to_dict())
    step = make_train_step(
        make_objective(chosen, model.models, schedule, vae_frames=2),
        optimizer,
        accumulation=chosen.accumulation,
        ema_decay=chosen.ema_decay,
    )
    with sharding.use_mesh(mesh):
        compiled, flops = compile_step(
            step, abstract, sharding.assemble_batch(clips(), mesh), rng, mesh
        )
    return compiled, flops, abstract, optimizer, mesh, rng


def fresh(abstract, optimizer) -> TrainState:
    params = jax.tree.map(np.asarray, tiny.micro().params)  # copies, since steps donate
    return create_state(
        abstract,
        lambda path: functools.reduce(lambda tree, key: tree[key], path.split("/"), params),
        optimizer,
    )


def run(batches, devices=1, **overrides) -> tuple[TrainState, list[Metrics]]:
    compiled, _, abstract, optimizer, mesh, rng = program(devices, **overrides)
    state, told = fresh(abstract, optimizer), []
    for batch in batches:
        state, metrics = compiled(state, sharding.assemble_batch(batch, mesh), rng)
        told.append(metrics)
    return state, told


def close(ours, wanted, tolerance):
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    differences = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), ours, wanted)
    return max(jax.tree.leaves(differences)) < tolerance * largest


def test_a_step_moves_what_trains_and_leaves_the_rest():
    state, (metrics,) = run([clips()])
    params = tiny.micro().params
    assert int(state.step) == 1
    assert set(state.params) == {"unet", "projector"}
    assert set(state.frozen) == {"vae", "text_encoder", "image_encoder"}
    for name, tree in state.frozen.items():
        assert jax.tree.all(jax.tree.map(np.array_equal, tree, params[name]))
    before = {name: params[name] for name in state.params}
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), state.params, before)
    assert jax.tree.all(moved)
    assert metrics.finite and float(metrics.losses.weight) == CLIPS


def test_frozen_parameters_have_no_optimizer_state_and_no_gradient():
    abstract = program()[2]
    moments = optax.tree_utils.tree_get(abstract.opt_state, "mu")
    assert jax.tree.structure(moments) == jax.tree.structure(abstract.params)
    names = {"trainable": "projector_and_image_attention"}
    few = abstract_state(
        abstract_models(tiny.micro().models),
        make_optimizer(settings(**names)),
        settings(**names),
        sharding.make_mesh(1),
    )
    assert len(jax.tree.leaves(few.opt_state)) == 2 * len(jax.tree.leaves(few.params)) + 2
    assert program()[1] > 0


@pytest.mark.slow
def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    for broken in ((), (2, 5)):
        whole, (wanted,) = run([clips(broken=broken)])
        parts, (metrics,) = run([clips(broken=broken)], accumulation=4)
        ours = metrics.losses
        assert np.isclose(wanted.losses.mean, ours.mean, rtol=1e-5)
        assert np.allclose(wanted.losses.quarter_loss, ours.quarter_loss, rtol=1e-4)
        for name in ("mu", "nu"):
            one, other = (optax.tree_utils.tree_get(s.opt_state, name) for s in (parts, whole))
            assert close(one, other, 1e-4)


def test_a_broken_clip_changes_nothing_but_the_count():
    spoilt = clips(broken=[3])
    spoilt.video[3] = 0
    other = clips(broken=[3])
    other.ids[3] = 5
    one, (metrics,) = run([spoilt])
    two, _ = run([other])
    assert float(metrics.losses.weight) == CLIPS - 1
    assert close(one.params, two.params, 1e-7)
    _, (metrics,) = run([clips(broken=range(CLIPS))])
    assert float(metrics.losses.mean) == 0 and float(metrics.grad_norm) == 0
    assert metrics.finite


def test_the_average_follows_the_parameters():
    one, _ = run([clips()])
    start = {name: tiny.micro().params[name] for name in one.params}
    wanted = jax.tree.map(lambda a, b: (2 * a + 9 * b) / 11, start, one.params)
    assert close(one.ema, wanted, 1e-6)
    assert one.ema is not None
    assert one.best_params["unet"]["out"]["bias"] is one.ema["unet"]["out"]["bias"]


@pytest.mark.slow
def test_one_device_and_eight_give_the_same_losses():
    batches = [clips()] * 3
    _, told = run(batches)
    _, told_by_eight = run(batches, devices=8)
    for ours, wanted in zip(told_by_eight, told, strict=True):
        assert np.isclose(ours.losses.mean, wanted.losses.mean, atol=1e-5)
        assert np.isclose(ours.grad_norm, wanted.grad_norm, rtol=1e-4)
    one, eight = run(batches[:1])[0], run(batches[:1], devices=8)[0]
    ours, wanted = (optax.tree_utils.tree_get(s.opt_state, "mu") for s in (eight, one))
    assert close(ours, wanted, 1e-4)
    kernel = eight.params["unet"]["out"]["kernel"]
    assert len(kernel.sharding.device_set) == 8


def test_a_clip_of_a_batch_draws_by_its_number_alone():
    order = np.asarray([3, 1, 0, 2, 7, 5, 6, 4])
    _, (metrics,) = run([clips()])
    shuffled = jax.tree.map(lambda rows: rows[order], clips())
    _, (again,) = run([shuffled])
    assert np.isclose(metrics.losses.mean, again.losses.mean, rtol=1e-5)
    assert np.isclose(metrics.grad_norm, again.grad_norm, rtol=1e-4)
    later = clips()._replace(sample_index=clips().sample_index + np.uint32(1))
    _, (other,) = run([later])
    assert not np.isclose(metrics.losses.mean, other.losses.mean, rtol=1e-5)


def test_a_regular_expression_chooses_whole_paths():
    trained, frozen = freezing.split(
        abstract_models(tiny.models("eps")), "vae/(decoder/.*|quant/bias)"
    )
    assert set(trained) == {"vae"} and set(trained["vae"]) == {"decoder", "quant"}
    assert set(trained["vae"]["quant"]) == {"bias"}
    assert "decoder" not in frozen["vae"] and set(frozen["vae"]["quant"]) == {"kernel"}


def test_split_and_join_are_inverse_and_presets_mean_what_they_say():
    model = tiny.models("eps")
    tree = abstract_models(model)
    counts = {}
    for preset in freezing.PRESETS:
        trained, frozen = freezing.split(tree, preset)
        assert freezing.join(trained, frozen) == tree
        paths = set(freezing.traverse_util.flatten_dict(trained, sep="/"))
        counts[preset] = paths
        sections = {path.split("/")[0] for path in paths}
        match preset:
            case "vae" | "unet":
                assert sections == {preset}
            case "towers":
                assert sections == {"text_encoder", "image_encoder", "projector"}
            case _:
                assert sections == {"unet", "projector"}
                assert counts["projector_and_image_attention"] <= paths
    temporal = {p for p in counts["all"] if "/temporal" in p or "init_attn" in p}
    assert counts["temporal_frozen"] == counts["all"] - temporal
    embeddings = {p for p in counts["all"] if "/time_embed/" in p or "/fs_embed/" in p}
    assert counts["projector_and_spatial"] == counts["temporal_frozen"] - embeddings
    image = {p for p in counts["projector_and_image_attention"] if p.startswith("unet")}
    assert {p.split("/")[-1] for p in image} == {"kernel", "alpha"}
    assert {p.split("/")[-2] for p in image} == {"image_key", "image_value", "attn2"}
