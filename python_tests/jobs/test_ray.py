"""A job and a server on a Ray cluster of this machine, whose workers may be killed."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from functools import partial
from unittest import mock

import psutil
import pyarrow.parquet as pq
import pytest
import ray

import edlm_engine
from edlm_engine import Engine, cli
from edlm_engine.jobs import job_of, run_job
from edlm_engine.jobs.shards import shard_file
from edlm_engine.ray import application, generate
from edlm_engine.serving.options import ServeOptions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
LOOPBACK = "127.0.0.1"
CONFIG = {"steps": 4, "num_candidates": 2, "length": 24, "batch_invariant": True}
QUICK = ["--steps", "4", "--candidates", "2", "--length", "24", "--batch-invariant"]


def load():
    return Engine.from_pretrained()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two CPUs, loopback addresses only, no reports of use; nothing of it is left behind."""
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",  # loopback only, and else a token is left in the home folder
        "PYTHONPATH": os.pathsep.join(
            [str(edlm_engine.__path__[0] + "/.."), os.environ.get("PYTHONPATH", "")]
        ),
        "RAY_SERVE_DEFAULT_HTTP_HOST": LOOPBACK,
    }
    # Ray replaces a loopback address by one that others reach.
    here = mock.patch("ray._private.services.get_node_ip_address", return_value=LOOPBACK)
    with mock.patch.dict(os.environ, variables), here:
        _start(tmp_path_factory)
        try:
            yield
        finally:
            session = ray._private.worker.global_worker.node.get_session_dir_path()
            ray.shutdown()
            left = subprocess.run(["pgrep", "-f", session], capture_output=True, text=True).stdout
            for pid in map(int, left.split()):
                os.kill(pid, signal.SIGKILL)


def _start(tmp_path_factory):
    for attempt in range(3):  # Ray gives a node 30 s to start, too few on a busy machine
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=100 * 2**20,
                log_to_driver=False,
                logging_level="ERROR",
                _node_ip_address=LOOPBACK,
                _temp_dir=str(tmp_path_factory.mktemp("ray")),
            )
            return
        except Exception as error:
            ray.shutdown()
            if attempt == 2 or "timed out during startup" not in str(error):
                raise


def workers():
    """The processes of the pool that makes shards."""
    found = subprocess.run(["pgrep", "-f", "ray::MapWorker"], capture_output=True, text=True)
    return {int(pid) for pid in found.stdout.split()}


def listening_elsewhere():
    """Addresses beyond loopback that processes of this test listen at."""
    mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
    ends = [
        each.laddr.ip
        for process in mine
        for each in process.net_connections("inet")
        if each.status == "LISTEN"
    ]
    assert ends
    return [ip for ip in ends if ip.removeprefix("::ffff:") not in (LOOPBACK, "::1")]


def test_a_killed_worker_changes_nothing(cluster, single_thread, tmp_path, capsys):
    job = job_of(config=CONFIG, seed=1, num=20, shard_size=2)
    out, killed = tmp_path / "out", []

    def kill_one():
        while not any(out.glob("shard-*")):
            time.sleep(0.02)
        os.kill(workers().pop(), signal.SIGKILL)
        killed.append(len(list(out.glob("shard-*"))))

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    command = ["generate", *QUICK, "--num", "20", "--seed", "1", "--shard-size", "2"]
    command += ["--out", str(out), "--ray"]
    assert cli.main([*command, "--workers", "2"]) == 0
    killer.join(60)
    assert len(killed) == 1 and killed[0] < len(job.shards)
    run_job(job, load, tmp_path / "alone")
    for shard in job.shards:
        made = pq.read_table(shard_file(out, shard))
        assert made.equals(pq.read_table(shard_file(tmp_path / "alone", shard)))
        assert made.column("error").null_count == len(made) == 2
    assert listening_elsewhere() == []
    capsys.readouterr()
    assert cli.main(command) == 0  # nothing is left to do
    assert capsys.readouterr().out == f"20 of 20 sequences in {out}\n"


def test_what_a_worker_cannot_load_is_told(cluster, tmp_path):
    with pytest.raises(Exception, match="no model at no/such/folder"):
        generate(job_of(num=1), partial(Engine.from_pretrained, "no/such/folder"), tmp_path / "out")


def test_serve_gives_the_engines_tokens(cluster):
    from ray import serve

    options = ServeOptions(max_sequences=4)
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": LOOPBACK, "port": port})
    try:
        serve.run(application(load, options, max_replicas=2), name="edlm", route_prefix="/")
        body = {"prompt": "The old", "seed": 7, "edlm": CONFIG}
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{port}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            (choice,) = json.load(answer)["choices"]
        # A replica listens for others of Ray Serve at all addresses, which no setting changes.
        assert [ip for ip in listening_elsewhere() if ip != "::"] == []
    finally:
        serve.shutdown()
    alone = load().generate(config=CONFIG, seed=[choice["edlm"]["seed"]], prompt=body["prompt"])
    assert choice["edlm"]["tokens"] == alone.sequences[0, -len(choice["edlm"]["tokens"]) :].tolist()
    assert alone.texts[0] == body["prompt"] + choice["text"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_replicas": 0}, "max_replicas must be >= 1, got 0"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas must be >= 3, got 2"),
        ({"queue_length": -1}, "queue_length must be >= 1, got -1"),
    ],
)
def test_bad_numbers_of_replicas_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        application(load, **given)
