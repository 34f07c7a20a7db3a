"""Jobs: rows in, Parquet out, the same sequences whoever makes them and however often."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import pytest
import torch

import edlm_engine
from edlm_engine import Engine, cli
from edlm_engine.jobs import job_of, run_job
from edlm_engine.jobs.shards import open_folder, shard_file, write_shard

ROOT = Path(edlm_engine.__file__).parents[1]
CONFIG = {"steps": 3, "num_candidates": 2, "length": 12, "batch_invariant": True}
QUICK = ["--steps", "3", "--candidates", "2", "--length", "12", "--batch-invariant"]
ROWS = [
    {"id": "a", "prompt": "The old"},
    {"id": "b", "prompt": "He said", "suffix": "end."},
    {"id": "c", "prompt": "word " * 40},  # does not fit
    {"id": "d", "prompt": None},
    {"id": "e", "prompt": "She"},
]


@pytest.fixture(scope="module")
def engine():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Engine.from_pretrained()
    torch.set_num_threads(before)


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def results(out):
    return pq.read_table(sorted(out.glob("shard-*.parquet"))).to_pylist()


def test_a_job_without_prompts_is_one_generation(engine, tmp_path):
    job = job_of(config=CONFIG, seed=3, num=7, shard_size=3, batch_size=2)
    run_job(job, lambda: engine, tmp_path)
    rows, want = results(tmp_path), engine.generate(7, config=CONFIG, seed=3)
    assert [row["index"] for row in rows] == list(range(7)) and list(job.shards) == [0, 1, 2]
    assert [row["tokens"] for row in rows] == want.sequences.tolist()
    assert [row["text"] for row in rows] == want.texts
    assert [row["seed"] for row in rows] == want.seeds.tolist()
    assert [row["nfe"] for row in rows] == want.nfe.tolist()
    assert [row["energy_evaluations"] for row in rows] == want.energy_evaluations.tolist()
    for row, ess in zip(rows, want.ess.nanmean(1).tolist(), strict=True):
        assert row["mean_ess"] == pytest.approx(ess) and row["row"] is row["error"] is None


def test_each_row_has_its_sequences_and_a_bad_one_fails_alone(engine, prompts, tmp_path):
    job = job_of(prompts, config=CONFIG, seed=1, num=2, shard_size=4, batch_size=3)
    run_job(job, lambda: engine, tmp_path / "out")
    rows = results(tmp_path / "out")
    assert [row["row"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [row["id"] for row in rows] == list("aabbccddee")
    for row in rows:
        given = ROWS[row["row"]]
        assert row["prompt"] == given["prompt"] and row["suffix"] == given.get("suffix")
        if given["id"] == "c":
            assert "prompt and suffix must fit the length 12" in row["error"]
            assert row["tokens"] is row["text"] is row["nfe"] is None
            continue
        alone = engine.generate(
            config=CONFIG, seed=[row["seed"]], prompt=row["prompt"], suffix=row["suffix"]
        )
        assert row["error"] is None and row["tokens"] == alone.sequences[0].tolist()
    assert len({row["seed"] for row in rows}) == len(rows)


def test_parquet_of_token_ids_gives_what_lines_give(engine, tmp_path):
    rows = [{"prompt": [5, 6]}, {"prompt": [7]}]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("lines.jsonl", "rows.parquet"):
        run_job(job_of(tmp_path / name, config=CONFIG), lambda: engine, tmp_path / f"of-{name}")
    found = results(tmp_path / "of-lines.jsonl")
    assert found == results(tmp_path / "of-rows.parquet")
    assert [row["tokens"][: len(row["prompt"])] for row in found] == [[5, 6], [7]]


def test_a_stopped_job_goes_on(engine, prompts, tmp_path, monkeypatch):
    job = job_of(prompts, config=CONFIG, seed=1, num=2, shard_size=2)
    run_job(job, lambda: engine, tmp_path / "whole")
    out, made = tmp_path / "out", []
    make = type(job).make

    def counted(job, engine, shard):
        made.append(shard)
        if made == [0, 1, 2]:
            raise KeyboardInterrupt
        return make(job, engine, shard)

    monkeypatch.setattr(type(job), "make", counted)
    with pytest.raises(KeyboardInterrupt):
        run_job(job, lambda: engine, out)
    before = {file: file.stat().st_mtime_ns for file in out.glob("shard-*")}
    (out / ".shard-000002.parquet.0123").write_bytes(b"PAR1 half of")  # killed as it wrote
    run_job(job, lambda: engine, out)
    assert made == [0, 1, 2, 2, 3, 4]
    assert before.items() <= {file: file.stat().st_mtime_ns for file in out.glob("shard-*")}.items()
    assert results(out) == results(tmp_path / "whole")
    assert sorted(file.name for file in out.iterdir()) == sorted(
        ["job.json", *(f"shard-{shard:06d}.parquet" for shard in range(5))]
    )
    run_job(job, lambda: pytest.fail("loaded a model for nothing"), out)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 2}, "seed was 1, is 2"),
        ({"num": 3}, "num was 2, is 3"),
        ({"facts": {"model": "x"}}, "model"),
    ],
)
def test_a_folder_holds_one_job(prompts, tmp_path, changed, told):
    given = {"config": CONFIG, "seed": 1, "num": 2}
    open_folder(tmp_path / "out", job_of(prompts, **given))
    with pytest.raises(ValueError, match=f"holds another job: .*{told}"):
        open_folder(tmp_path / "out", job_of(prompts, **given | changed))
    prompts.write_text('{"prompt": "Another"}\n' * 5)
    with pytest.raises(ValueError, match="prompts_sha256"):
        open_folder(tmp_path / "out", job_of(prompts, **given))


def test_processes_share_a_job(engine, prompts, tmp_path):
    job = job_of(prompts, config=CONFIG, seed=1, shard_size=1)
    run_job(job, lambda: engine, tmp_path / "whole")
    for rank in (1, 0):
        run_job(job, lambda: engine, tmp_path / "out", rank=rank, world_size=2)
        there = [shard for shard in job.shards if shard_file(tmp_path / "out", shard).is_file()]
        assert there == ([1, 3] if rank else [0, 1, 2, 3, 4])
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_two_may_write_one_shard(tmp_path):
    table = pyarrow.table({"index": [0]})
    write_shard(tmp_path, 0, table)
    write_shard(tmp_path, 0, table)
    assert pq.read_table(shard_file(tmp_path, 0)).equals(table)
    with pytest.raises(FileNotFoundError):
        write_shard(tmp_path / "gone", 0, table)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "must hold a row at least"),
        ("a.jsonl", '{"text": "x"}', "must have a column prompt or suffix, got text"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt', "a.jsonl line 2 is not JSON"),
        ("a.jsonl", "[1]", "a.jsonl line 1 must be a JSON object"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": [1]}', "a.jsonl: "),
        ("a.jsonl", '{"prompt": "x", "seed": 1}', "must not have columns of the results, got seed"),
        ("a.parquet", "x", "a.parquet: "),
        ("a.txt", "x", "prompts must be .parquet or .jsonl"),
    ],
)
def test_bad_prompts_are_told_by_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        job_of(tmp_path / name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num": 0}, "num must be >= 1, got 0"),
        ({"shard_size": 0}, "shard_size must be >= 1"),
        ({"batch_size": -1}, "batch_size must be >= 1"),
        ({"config": {"record": True}}, "record must be False"),
    ],
)
def test_bad_arguments_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        job_of(**given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "x.jsonl"], "--prompts must come with --out"),
        (["--shard-size", "3"], "--shard-size must come with --out"),
        (["--ray"], "--ray must come with --out"),
        (["--out", "x", "--json"], "--json prints, --out writes"),
        (["--out", "x", "--workers", "2"], "--workers must come with --ray"),
        (["--out", "x", "--prompts", "no.jsonl"], "no prompts at no.jsonl"),
        (["--out", "x", "--prompts", "no.jsonl", "--prompt", "y"], "prompts must be given alone"),
    ],
)
def test_options_that_do_not_fit_are_one_line(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    assert cli.main(["generate", *QUICK, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_torchrun_shares_the_job_out(engine, prompts, tmp_path):
    job = job_of(prompts, config=CONFIG, seed=4, shard_size=1)
    run_job(job, lambda: engine, tmp_path / "whole")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "-m", "edlm_engine.cli", "generate", *QUICK]
    command += ["--prompts", str(prompts), "--seed", "4", "--shard-size", "1", "--out", str(out)]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "1 of them failed" in run.stdout  # row c
    rows = results(tmp_path / "whole")
    assert results(out) == rows


def test_the_command_writes_what_the_library_writes(engine, tmp_path, capsys):
    arguments = ["--num", "3", "--seed", "2", "--prompt", "The", "--out", str(tmp_path / "out")]
    assert cli.main(["generate", *QUICK, *arguments]) == 0
    assert f"3 of 3 sequences in {tmp_path / 'out'}" in capsys.readouterr().out
    make_engine = partial(Engine.from_pretrained)
    run_job(job_of(config=CONFIG, seed=2, num=3, prompt="The"), make_engine, tmp_path / "want")
    assert results(tmp_path / "out") == results(tmp_path / "want")
