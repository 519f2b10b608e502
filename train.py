r"""Trains a model: from videos to checkpoints.

    python train.py --config=configs/finetune_512.py --workdir=DIR \
        --config.data.source=videos/ --config.init.checkpoint=model.ckpt

If the run stops, run the same command to resume. See docs/training.md.
"""

import contextlib
import sys
from collections.abc import Sequence

from dynamicrafter_jax import cli

# isort: split
import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from dynamicrafter_jax import sharding
from dynamicrafter_jax.attention import choose_attention
from dynamicrafter_jax.config import matmul_precision, networks_of, settings_of
from dynamicrafter_jax.data.loader import batches
from dynamicrafter_jax.data.opening import open_examples
from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import distributed
from dynamicrafter_jax.runtime.preemption import EXIT_STATUS, Preemption
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.training.checkpoints import Checkpoints, start_or_restore
from dynamicrafter_jax.training.console import Console
from dynamicrafter_jax.training.distillation import check_sampling
from dynamicrafter_jax.training.feed import Feed
from dynamicrafter_jax.training.history import History
from dynamicrafter_jax.training.keys import parameter_key, step_key, validation_key
from dynamicrafter_jax.training.metrics import MetricWriter
from dynamicrafter_jax.training.objectives import make_objective
from dynamicrafter_jax.training.optimizer import learning_rate, make_optimizer
from dynamicrafter_jax.training.profiling import Profiler
from dynamicrafter_jax.training.samples import Samples, open_subjects
from dynamicrafter_jax.training.settings import TrainSettings
from dynamicrafter_jax.training.state import abstract_state
from dynamicrafter_jax.training.step import compile_step, make_train_step
from dynamicrafter_jax.training.throughput import Throughput
from dynamicrafter_jax.training.validation import open_validation
from dynamicrafter_jax.training.workdir import check_workdir, claim_workdir, record_session
from dynamicrafter_jax.weights.load import abstract_params, origin

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, samples.")
PROCESSES = cli.define_processes()

# The first steps are all reported, to show that the run is making progress, and how fast.
_TOLD = 10


def main(_: Sequence[str]) -> None:
    """Joins the other processes, then trains."""
    config, workdir = CONFIG.value, WORKDIR.value
    if config is None or workdir is None:
        raise UserError("--config and --workdir are needed: what to train, and where to keep it")
    settings = settings_of(TrainSettings, "train", config.train)
    if settings.objective == "distill":
        check_sampling(settings.lesson, SamplingSettings.from_config(config.sampling))
    with PROCESSES.joined(), contextlib.ExitStack() as stack:
        finished = train(config, settings, workdir, stack)
    if not finished:
        sys.exit(EXIT_STATUS)


def train(
    config: ConfigDict, settings: TrainSettings, workdir: str, stack: contextlib.ExitStack
) -> bool:
    """Trains to the last step or until a request to stop; returns whether it reached the last."""
    writes = jax.process_index() == 0  # one process for all

    # Mesh
    mesh = sharding.mesh_of(config)
    stack.enter_context(sharding.use_mesh(mesh))
    stack.enter_context(matmul_precision(config))
    sharding.local_rows(mesh, settings.batch_size // settings.accumulation)  # may raise
    rows = sharding.local_rows(mesh, settings.batch_size)

    # Data
    examples = open_examples(config, config.data.source, settings.seed)

    # Model
    boxed = abstract_params(config)
    models = networks_of(config, choose_attention(mesh))
    models = models._replace(unet=models.unet.clone(remat=settings.remat))
    schedule = make_schedule(**config.diffusion.to_dict())
    objective = make_objective(settings, models, schedule, config.sampling.vae_frames)

    # State
    optimizer = make_optimizer(settings)
    abstract = abstract_state(boxed, optimizer, settings, mesh)

    # Restore
    check_workdir(workdir, config)
    checkpoints = stack.enter_context(
        Checkpoints(workdir, keep_last=settings.keep_last, keep_every=settings.keep_every)
    )
    state, start = start_or_restore(
        config, abstract, optimizer, checkpoints, parameter_key(settings.seed)
    )
    first = int(state.step)
    if first >= settings.steps:
        raise UserError(
            f"{workdir} has done its {settings.steps} steps: raise train.steps to continue"
        )
    validation = open_validation(config, settings, objective, mesh, validation_key(settings.seed))
    subjects = open_subjects(config, settings, mesh)

    # Workdir, once everything that a run needs has been found
    claim_workdir(workdir, config)
    if start:
        checkpoints.save_frozen(state.frozen)
    if writes:
        paths = {source.path for source in start.sources.values()} if start else ()
        weights = [entry for path in sorted(paths, key=str) for entry in origin(path)]
        record_session(workdir, config=config, weights=weights, mesh=mesh, first_step=first)
    writer = stack.enter_context(MetricWriter(workdir, enabled=writes, first_step=first + 1))
    samples = subjects and Samples(subjects, workdir=workdir, writer=writer)
    bar = None if jax.process_count() == 1 else False
    console = stack.enter_context(Console(settings.steps, first, enabled=writes, bar=bar))
    for line in start.summary() if start else ():
        console.say(line)

    # Step
    loader = batches(
        examples,
        batch_size=settings.batch_size,
        rows=rows,
        start=first,
        stop=settings.steps,
        workers=config.data.workers,
        prefetch=config.data.prefetch,
    )
    feed = Feed(stack.enter_context(contextlib.closing(loader)), mesh)
    rng = sharding.replicate(step_key(settings.seed), mesh)
    with console.timed("compiling the training step"):
        train_step, flops = compile_step(
            make_train_step(
                objective,
                optimizer,
                accumulation=settings.accumulation,
                ema_decay=settings.ema_decay,
                where=jax.tree.map(lambda leaf: leaf.sharding, state.params),
            ),
            state,
            feed.peek(),
            rng,
            mesh,
        )

    # Monitoring
    throughput = Throughput(mesh, settings.batch_size, flops)
    history = History(settings.batch_size)
    profiler = stack.enter_context(
        Profiler(
            workdir,
            first=settings.profile_start,
            count=settings.profile_steps,
            enabled=writes,
        )
    )
    preemption = stack.enter_context(Preemption())
    rate = learning_rate(settings)

    # Loop
    distributed.wait_for_all("loop")
    metrics = None
    for step in range(first + 1, settings.steps + 1):
        profiler.before(step, metrics)
        with throughput.waiting():
            batch = next(feed)
        state, metrics = train_step(state, batch, rng)
        throughput.handed_over(metrics)
        history.add(step, metrics)
        history.settle(unfinished=2)
        checkpoints.check()
        console.advance(step)
        stops = preemption.requested(step)
        ends = stops or step == settings.steps

        if ends or step % settings.log_every == 0 or step <= first + _TOLD:
            values = history.scalars() | throughput.scalars()
            values["learning_rate"] = float(np.asarray(rate(step - 1)))
            writer.scalars(step, values)
            console.report(step, values)
        if ends or step % settings.checkpoint_every == 0:
            with throughput.paused():
                history.settle()
                checkpoints.save(state, wait=ends)
        if stops:
            console.say(
                f"stopped after step {step}, which is saved: run the same command to resume"
            )
            return False
        if validation and (ends or step % settings.validate_every == 0):
            with throughput.paused():
                values = validation(state.best_params)
                writer.scalars(step, values)
                console.report(step, values)
        if samples and settings.sample_every and step % settings.sample_every == 0:
            with throughput.paused():
                samples.observe(feed.rows)
                writer.scalars(step, samples(step, state.best_params))
    return True


if __name__ == "__main__":
    cli.run(main)
