"""A whole run of `train.py` with stand-ins for networks: each number that it notes, in NumPy."""

import contextlib
import importlib.util
from typing import Any

import grain  # noqa: F401 (it has flags of its own, which must be defined before)
import jax
import numpy as np
import pytest
import release_files
import runs
import stand_ins
from flax import traverse_util
from losses_by_hand import losses_by_hand
from stand_ins import BASE_SCALE, FRAMES, SIDE, TOKENS

from dynamicrafter_jax import cli
from dynamicrafter_jax.config import settings_of
from dynamicrafter_jax.data.opening import open_examples
from dynamicrafter_jax.models.layers import Parameter
from dynamicrafter_jax.training.inputs import Batch
from dynamicrafter_jax.training.settings import TrainSettings
from dynamicrafter_jax.training.state import create_state

SEED, STEPS, CLIPS, HELD_OUT = 5, 3, 4, 3
PEAK, DECAY = 0.02, 0.3


@pytest.fixture
def program(monkeypatch) -> Any:
    """`train.py` as a module, with stand-ins for what it builds, and without its flags."""
    with monkeypatch.context() as patch:
        for name in ("string", "bool", "integer"):
            patch.setattr(f"absl.flags.DEFINE_{name}", lambda *_, **__: None)
        patch.setattr(cli, "define_config", lambda: None)
        spec = importlib.util.spec_from_file_location("program", runs.ROOT / "train.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    values: Any = traverse_util.flatten_dict(stand_ins.params(), sep="/")
    boxed = {
        path: Parameter(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (None,) * leaf.ndim)
        for path, leaf in values.items()
    }

    def start(config, abstract, optimizer, checkpoints, key):
        del config, key
        state = create_state(abstract, values.__getitem__, optimizer)
        checkpoints.save_frozen(state.frozen)
        return state, None

    monkeypatch.setattr(module, "networks_of", lambda *_: stand_ins.stand_ins())
    monkeypatch.setattr(
        module, "abstract_params", lambda _: traverse_util.unflatten_dict(boxed, sep="/")
    )
    monkeypatch.setattr(module, "start_or_restore", start)
    return module


def config() -> Any:
    config = release_files.micro()
    config.sampling.update(height=SIDE, width=SIDE, num_frames=FRAMES, vae_frames=2)
    config.text_encoder.context_length = TOKENS
    config.diffusion.base_scale = BASE_SCALE
    config.data.update(
        source="synthetic:train", validation="synthetic:test", workers=0, condition_dropout=0.2
    )
    config.mesh.data = 1
    config.train.update(
        seed=SEED,
        steps=STEPS,
        batch_size=CLIPS,
        accumulation=2,
        learning_rate=PEAK,
        warmup_steps=1,
        decay="cosine",
        ema_decay=DECAY,
        log_every=1,
        checkpoint_every=1,
        keep_last=STEPS,
        validate_every=2,
        validation_clips=HELD_OUT,
        sample_every=2,
    )
    return config


def clips(chosen: Any, source: str, numbers: range, training: bool) -> Any:
    """Samples by their numbers, stacked."""
    examples = open_examples(chosen, source, SEED, training=training)
    rows = [examples(number) for number in numbers]
    fields: Any = {
        name: np.stack([row[name] for row in rows]) for name in Batch._fields if name in rows[0]
    }
    return Batch(**fields | {"sample_index": np.asarray(numbers, np.uint32)})


def saved(workdir: Any, step: int, item: str) -> Any:
    """The parameters of a checkpoint, with the frozen ones."""
    everything = stand_ins.params()
    if step:
        found = runs.saved(workdir, step)
        for network in ("unet", "projector"):
            for name in everything[network]:
                everything[network][name] = found[f"{item}['{network}']['{name}']"]
    return everything


def test_every_number_of_a_run(program, tmp_path, monkeypatch):
    chosen, sampled = config(), []

    class Samples:
        def observe(self, rows: Any) -> None:
            self.rows = rows

        def __call__(self, step: int, params: Any) -> dict[str, float]:
            sampled.append((step, self.rows["index"][0], jax.tree.map(np.array, params)))
            return {}

    monkeypatch.setattr(program, "open_subjects", lambda *_: True)
    monkeypatch.setattr(program, "Samples", lambda *_, **__: Samples())
    settings = settings_of(TrainSettings, "train", chosen.train)
    with contextlib.ExitStack() as stack:
        assert program.train(chosen, settings, str(tmp_path), stack)

    told: dict[int, dict[str, float]] = {}
    for line in runs.noted(tmp_path):
        told.setdefault(line["step"], {}).update(line)
    key = jax.random.key(SEED)
    ema = None
    for step in range(1, STEPS + 1):
        numbers = range(CLIPS * (step - 1), CLIPS * step)
        batch = clips(chosen, "synthetic:train", numbers, training=True)
        before, after = (saved(tmp_path, n, "params") for n in (step - 1, step))
        losses, _ = losses_by_hand(batch, jax.random.fold_in(key, 1), before, dropout=True)
        assert told[step]["loss"] == pytest.approx(losses.mean(), rel=1e-4), step

        # Half the rate first, then all of it, and down half a cosine.
        place = max(0, step - 2) / (STEPS - 1)
        rate = PEAK / 2 if step == 1 else PEAK * (1 + np.cos(np.pi * place)) / 2
        assert told[step]["learning_rate"] == pytest.approx(rate)

        ema = before if ema is None else ema
        d = min(DECAY, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda old, new, d=d: d * old + (1 - d) * new, ema, after)
        average = saved(tmp_path, step, "ema")
        for ours, wanted in zip(jax.tree.leaves(average), jax.tree.leaves(ema), strict=True):
            np.testing.assert_allclose(ours, wanted, atol=1e-5)
        assert ("validation_loss" in told[step]) == (step > 1)
        if step > 1:  # every second step, and the last
            batch = clips(chosen, "synthetic:test", range(HELD_OUT), training=False)
            times = ((np.arange(HELD_OUT) + 0.5) / HELD_OUT * 1000).astype(int)
            rng = jax.random.fold_in(key, 2)
            losses, _ = losses_by_hand(batch, rng, average, timestep=times)
            assert told[step]["validation_loss"] == pytest.approx(losses.mean(), rel=1e-4), step
        if step == 2:
            ((at, first, params),) = sampled
            assert (at, first) == (step, numbers[0])
            assert np.array_equal(params["unet"]["kernel"], average["unet"]["kernel"])
