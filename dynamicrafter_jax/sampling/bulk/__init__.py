"""Samples many videos from one table: reads, batches, samples and writes them, and can resume."""

from dynamicrafter_jax.sampling.bulk.batches import BatchSampler, plan_batches
from dynamicrafter_jax.sampling.bulk.hosts import agreed, share_of
from dynamicrafter_jax.sampling.bulk.loading import Loaded, Loader
from dynamicrafter_jax.sampling.bulk.manifest import FILE as MANIFEST_FILE
from dynamicrafter_jax.sampling.bulk.manifest import Manifest, read_manifest
from dynamicrafter_jax.sampling.bulk.run import BulkRun, Summary
from dynamicrafter_jax.sampling.bulk.table import Request, read_requests
from dynamicrafter_jax.sampling.bulk.writing import (
    Writer,
    check_folder,
    remove_leftovers,
    summary_name,
)

__all__ = [
    "MANIFEST_FILE",
    "BatchSampler",
    "BulkRun",
    "Loaded",
    "Loader",
    "Manifest",
    "Request",
    "Summary",
    "Writer",
    "agreed",
    "check_folder",
    "plan_batches",
    "read_manifest",
    "read_requests",
    "remove_leftovers",
    "share_of",
    "summary_name",
]
