import jax.numpy as jnp
import numpy as np
import pytest

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.training.history import History
from dynamicrafter_jax.training.step import Losses, Metrics


def told(loss, weight, quarters, norm=1.0):
    """What a step tells of clips, each in a quarter of the timesteps."""
    quarter_loss, quarter_weight = np.zeros(4), np.zeros(4)
    for quarter, value in quarters:
        quarter_loss[quarter] += value
        quarter_weight[quarter] += 1
    sums = (loss, weight, quarter_loss, quarter_weight)
    return Metrics(Losses(*(jnp.asarray(x, jnp.float32) for x in sums)), jnp.float32(norm))


def test_an_interval_is_the_mean_of_its_steps_and_quarters_that_of_their_clips():
    history = History(batch_size=2)
    history.add(1, told(3.0, 2, [(0, 1.0), (3, 2.0)], norm=1))
    history.add(2, told(5.0, 1, [(0, 5.0)], norm=3))
    assert history.scalars() == {
        "loss": (1.5 + 5) / 2,
        "grad_norm": 2.0,
        "skipped": 1,
        "loss/quarter_1": 3.0,
        "loss/quarter_4": 2.0,
    }
    assert history.scalars() == {}
    history.add(3, told(2.0, 2, [(1, 1.0), (1, 1.0)]))
    assert history.scalars()["skipped"] == 1  # of the whole run, so far


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1), (np.inf, 1), (1, np.nan)])
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(loss, norm):
    history = History(batch_size=2)
    history.add(1, told(1.0, 2, []))
    history.add(2, told(loss, 2, [], norm))
    history.add(3, told(1.0, 2, []))
    history.settle(unfinished=2)
    with pytest.raises(UserError, match=r"step 2: the loss is .* Lower train"):
        history.settle(unfinished=1)
