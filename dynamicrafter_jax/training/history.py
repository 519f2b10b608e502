"""Collects the metrics of steps over an interval, and ends a run whose loss is not finite."""

import math
from collections import deque

import jax
import numpy as np

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.training.inputs import QUARTERS
from dynamicrafter_jax.training.step import Metrics


class History:
    """Collects the metrics of steps without making the devices wait for the host.

    Attributes:
        skipped: Clips that could not be read since the process started, on all hosts.
    """

    def __init__(self, batch_size: int) -> None:
        """Makes an empty history.

        Args:
            batch_size: Clips per step, over all devices.
        """
        self.skipped = 0
        self._batch_size = batch_size
        self._unsettled: deque[tuple[int, Metrics]] = deque()
        self._settled: list[Metrics] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Adds the metrics of a step, which may still be running."""
        self._unsettled.append((step, metrics))

    def settle(self, unfinished: int = 0) -> None:
        """Fetches and checks the metrics of steps, all but the latest `unfinished`.

        Raises:
            UserError: A loss or a gradient is not finite, which makes all later states useless.
        """
        while len(self._unsettled) > unfinished:
            step, metrics = self._unsettled.popleft()
            metrics = jax.tree.map(np.asarray, metrics)
            if not metrics.finite:
                raise UserError(
                    f"step {step}: the loss is {float(metrics.losses.mean):g} and the gradient's "
                    f"norm {float(metrics.grad_norm):g}, so training can't continue; the last "
                    "checkpoint is from before. Lower train.learning_rate, or look for bad clips"
                )
            self.skipped += self._batch_size - round(float(metrics.losses.weight))
            self._settled.append(metrics)

    def scalars(self) -> dict[str, float]:
        """Settles all steps, and returns means since the last call; empty without steps.

        - `loss`, and `loss/quarter_1` (the least noisy timesteps) to `loss/quarter_4`, each if any
          clip was drawn there;
        - `grad_norm`, before clipping;
        - `skipped`, if there are skipped clips.

        Raises:
            UserError: See `settle`.
        """
        self.settle()
        told, self._settled = self._settled, []
        if not told:
            return {}
        loss = np.sum([metrics.losses.quarter_loss for metrics in told], axis=0)
        weight = np.sum([metrics.losses.quarter_weight for metrics in told], axis=0)
        found = {
            "loss": float(np.mean([metrics.losses.mean for metrics in told])),
            "grad_norm": float(np.mean([metrics.grad_norm for metrics in told])),
        }
        if self.skipped:
            found["skipped"] = self.skipped
        for quarter in range(QUARTERS):
            mean = float(loss[quarter] / weight[quarter]) if weight[quarter] else math.nan
            if math.isfinite(mean):
                found[f"loss/quarter_{quarter + 1}"] = mean
        return found
