"""Many videos from one table: read, batched, sampled, written, and taken up where a run ended."""

from dynamicrafter_jax.bulk.batch_sampler import BatchSampler
from dynamicrafter_jax.bulk.batches import plan_batches
from dynamicrafter_jax.bulk.hosts import agreed, share_of
from dynamicrafter_jax.bulk.loading import Loaded, Loader
from dynamicrafter_jax.bulk.manifest import FILE as MANIFEST_FILE
from dynamicrafter_jax.bulk.manifest import Manifest, read_manifest
from dynamicrafter_jax.bulk.run import BulkRun, Summary
from dynamicrafter_jax.bulk.table import Request, read_requests
from dynamicrafter_jax.bulk.writing import Writer, check_folder, remove_leftovers, summary_name

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
