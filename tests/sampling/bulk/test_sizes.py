"""Rows of a table that choose their own size."""

from typing import Any

import bulk_jobs
import numpy as np
import pytest
import tiny

from dynamicrafter_jax import media


@pytest.mark.slow
def test_rows_of_other_sizes_are_what_they_are_alone(tmp_path, relative_error):
    bulk_jobs.pictures(tmp_path, 1)
    sizes: list[dict[str, Any]] = [
        {"height": 16, "num_frames": 3},
        {"height": 24, "num_frames": 2, "video_fps": 4},
    ]
    table = [{"id": f"r{i}", "image": "0.png", "prompt": "a cat"} | s for i, s in enumerate(sizes)]
    path = bulk_jobs.table(tmp_path, table)
    job = bulk_jobs.Job(tmp_path / "videos", 2)
    assert job(path).made == 2
    shown = [media.read_video(tmp_path / "videos" / f"r{i}.mp4") for i in range(2)]
    assert [(video.shape[:3], fps) for video, fps in shown] == [((3, 16, 24), 8), ((2, 24, 24), 4)]
    for request, size in zip(bulk_jobs.requests(path), sizes, strict=True):
        with job.sample.sampler.in_force():
            latents, _ = job.sample(bulk_jobs.read([request], tmp_path))
        alone = tiny.micro().sample(
            request.image,
            request.prompt,
            first_index=request.sample_index,
            steps=bulk_jobs.STEPS,
            **size,
        )
        assert relative_error(np.asarray(latents)[0], alone.latents[0]) < 1e-5
