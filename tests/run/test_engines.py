"""Shards on engines of others add up to the numbers of one process, a lost worker included."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest
from partials import batches, observed, require_equal

import basis_probe as bp

pytestmark = [
    pytest.mark.battery,
    pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull"),
]

_SCRIPT = """
import functools, operator, os, pathlib, signal, sys

sys.path.insert(0, {tests!r})
import basis_probe as bp
from partials import batches, observed

LOST = pathlib.Path({lost!r})


def see(i: int, n: int) -> bytes:
    part = observed(batches(), shard=(i, n)).to_bytes()
    if i == 1 and not LOST.exists():
        LOST.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return part


if __name__ == "__main__":
{engine}
    total = functools.reduce(operator.add, map(bp.Partial.from_bytes, parts))
    total.save({path!r})
"""

ENGINES = {
    "distributed": """
    from distributed import Client, LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster, Client(cluster) as client:
        parts = client.gather(client.map(see, range(4), n=4))
""",
    "ray": """
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    task = ray.remote(max_retries=3)(see)
    parts = ray.get([task.remote(i, 4) for i in range(4)])
    ray.shutdown()
""",
}


@pytest.mark.parametrize("loses", [False, True], ids=["all live", "one is lost"])
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_give_the_numbers_of_one_process(
    engine: str, loses: bool, tmp_path: pathlib.Path
) -> None:
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed: pip install basis_probe[engines]")
    lost, path, script = (tmp_path / name for name in ("lost", "total.safetensors", "script.py"))
    if not loses:
        lost.touch()
    here = str(pathlib.Path(__file__).parents[1])
    text = _SCRIPT.format(tests=here, lost=str(lost), path=str(path), engine=ENGINES[engine])
    script.write_text(text, encoding="utf-8")
    where = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    where |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    run = subprocess.run(
        [sys.executable, str(script)],
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
        env=where,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert lost.exists()
    require_equal(bp.Partial.load(path), observed(batches()), within=1e-11)
