"""The rooms of the package: imports run down only, files are short, public names stay."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import edlm_engine
from edlm_engine.info import HEAD_OPS, OPS

PACKAGE = Path(edlm_engine.__file__).parent
# From the top: a module imports from its own room and from rooms of later lines.
LINES = [
    ["cli"],
    ["options", "watch", "printed"],
    ["__init__"],
    ["info", "likelihood", "metrics", "ray"],
    ["serving", "evaluation"],
    ["training", "drop_in", "jobs", "hosts"],
    ["engine"],
    ["sampling"],
    ["energies", "checkpoints"],
    ["execution"],
    ["models"],
    ["ops", "reference"],
    [
        *("head_rows", "step_ops", "weight_ops", "residual_ops"),
        *("reference_residual", "reference_weights"),
    ],
    ["reference_law"],
    ["reference_random"],
    ["op_rules"],
    ["arrays"],
    ["step_arrays", "head_arrays"],
    ["array_numbers"],
    ["_C", "version"],
]
LINE = {room: line for line, rooms in enumerate(LINES) for room in rooms}
LONGEST = 300
LONGER = {"engine.py": 400, "training/trainer.py": 360}

FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(file):
    return file.split("/")[0].removesuffix(".py")


def imported_rooms(source):
    """The rooms that a module names in its imports, at any depth; `__init__` for the package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [alias.name for alias in node.names]
            whole = node.module == "edlm_engine"
            modules = [f"{node.module}.{name}" for name in names] if whole else [node.module]
        else:
            continue
        for package, *rest in (module.split(".") for module in modules):
            if package == "edlm_engine":
                yield rest[0] if rest and rest[0] in LINE else "__init__"


def upward(file, source):
    """The rooms a file may not import from, but does."""
    room = room_of(file)
    return sorted(
        {other for other in imported_rooms(source) if other != room and LINE[other] <= LINE[room]}
    )


@pytest.mark.parametrize("file", FILES)
def test_imports_run_down(file):
    assert room_of(file) in LINE, f"{file} is in no room: give it a line above"
    assert upward(file, FILES[file].read_text()) == []


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("sampling/plan.py", "from edlm_engine.engine import Engine", ["engine"]),
        (
            "sampling/plan.py",
            "def f():\n    from edlm_engine.training.corpus import x",
            ["training"],
        ),
        ("sampling/plan.py", "import edlm_engine.evaluation.compare", ["evaluation"]),
        ("sampling/plan.py", "from edlm_engine import engine, ops", ["engine"]),
        ("sampling/plan.py", "from edlm_engine import GenerationConfig", ["__init__"]),
        ("energies/residual.py", "from edlm_engine.checkpoints import files", ["checkpoints"]),
        ("sampling/plan.py", "from edlm_engine.sampling.run import Run\nimport torch", []),
        ("engine.py", "from edlm_engine.sampling.run import Run", []),
    ],
)
def test_an_import_that_climbs_is_seen(file, line, found):
    assert upward(file, line) == found


@pytest.mark.parametrize("file", FILES)
def test_files_are_short(file):
    assert len(FILES[file].read_text().splitlines()) <= LONGER.get(file, LONGEST)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("edlm_engine", edlm_engine.__all__),
        ("edlm_engine.likelihood", ["log_partition_bounds", "held_out_likelihood"]),
        (
            "edlm_engine.metrics",
            ["effective_sample_size", "token_entropy", "generative_perplexity"],
        ),
        ("edlm_engine.jobs", ["Job", "job_of", "run_job"]),
        ("edlm_engine.ray", ["application", "generate"]),
        ("edlm_engine.drop_in", ["sample_categorical", "accelerate"]),
        (
            "edlm_engine.arrays",
            [
                "stream_keys",
                "sample_candidates",
                "sample_weights",
                "token_log_probs",
                "residual_draw",
                "resample",
                "reveal_steps",
                "place_candidates",
                "reveal_chosen",
                "sum_log_probs",
                "head_sample_candidates",
                "head_token_log_probs",
            ],
        ),
        ("edlm_engine.ops", [*OPS, *HEAD_OPS]),
        ("edlm_engine.reference", [*OPS, *HEAD_OPS]),
    ],
)
def test_public_names(module, names):
    for name in names:
        assert hasattr(importlib.import_module(module), name), name


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'Motor'"):
        _ = edlm_engine.Motor
    assert set(edlm_engine.__all__) <= set(dir(edlm_engine))


def imported_by(code):
    """The modules that are imported once a fresh interpreter has run the code."""
    code += "; import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return run.stdout.split()


def test_a_generation_needs_no_room_above_it():
    code = "config = edlm.GenerationConfig(steps=1, length=4)"
    code = (
        f"import edlm_engine as edlm; {code}; edlm.Engine.from_pretrained().generate(config=config)"
    )
    rooms = {module.split(".")[1] for module in imported_by(code) if "edlm_engine." in module}
    assert "engine" in rooms
    assert rooms <= {room for room, line in LINE.items() if line >= LINE["engine"]}


def test_the_command_line_is_parsed_without_torch():
    modules = imported_by(
        "from edlm_engine import cli, options; options.command_line().format_help()"
    )
    assert "edlm_engine.cli" in modules and "torch" not in modules


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()
