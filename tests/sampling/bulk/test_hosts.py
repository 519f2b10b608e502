"""What several processes agree on before they sample together."""

import bulk_jobs
import numpy as np
import pytest
import release_files

from dynamicrafter_jax.sampling import bulk
from dynamicrafter_jax.sampling.bulk import hosts
from dynamicrafter_jax.sampling.bulk.loading import Inspected

DONE, MISSING, BROKEN = "done", "missing", "broken"


class Loader(bulk.Loader):
    """Finds each output in a state that is given."""

    def __init__(self, states: list[str]) -> None:
        self._states = states

    def check(self, request: bulk.Request) -> Inspected:
        state = self._states[int(request.name[1:])]
        error = "can't be read here" if state == BROKEN else None
        return Inspected(request, {"of": request.name}, finished=state == DONE, error=error)


def test_an_output_is_made_if_one_lacks_it_and_all_can_read_its_images(tmp_path, monkeypatch):
    cases = [
        (DONE, DONE, DONE),
        (DONE, MISSING, MISSING),
        (MISSING, DONE, MISSING),
        (MISSING, BROKEN, BROKEN),
        (BROKEN, DONE, BROKEN),
        (DONE, BROKEN, BROKEN),
    ]
    rows = [{"id": f"r{i}", "image": "0.png"} for i in range(len(cases))]
    table = bulk_jobs.table(tmp_path, rows)
    requests = bulk.read_requests(table, release_files.micro().sampling)
    loaders = [Loader([case[process] for case in cases]) for process in range(2)]

    sent: list[np.ndarray] = []
    monkeypatch.setattr(
        hosts.multihost_utils, "process_allgather", lambda codes: sent.append(codes) or codes[None]
    )
    for loader in loaders:
        hosts.agreed(loader, requests)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", lambda codes: np.stack(sent))
    found = [list(map(hosts.agreed(loader, requests), requests)) for loader in loaders]

    for row, (*each, both) in enumerate(cases):
        for process, own in enumerate(each):
            one = found[process][row]
            assert one.finished == (both == DONE) and one.facts == {"of": f"r{row}"}
            said = "can't be read here" if own == BROKEN else "another process can't read"
            assert (one.error or "").startswith(said) == (both == BROKEN)
            assert (one.error is None) == (both != BROKEN)


@pytest.mark.parametrize(("data", "together"), [(1, False), (-1, False), (8, False), (16, True)])
def test_a_process_that_has_devices_enough_samples_for_itself(monkeypatch, data, together):
    config = release_files.micro()
    config.mesh.data = data
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.jax, "process_index", lambda: 1)
    whole = hosts.sharding.make_mesh(1)
    monkeypatch.setattr(hosts.sharding, "mesh_of", lambda *_: whole)
    share = hosts.share_of(config)
    assert (share.part, share.parts) == ((0, 1) if together else (1, 2))
    assert share.together == together and share.writes == (not together)
