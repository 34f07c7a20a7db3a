"""Builds a wheel for each of the Pythons named and tries it in empty environments with each torch.

    python wheels/check_wheels.py PYTHON:TORCH...    (python3.12:2.10.0 python3.11:2.13.0)

Run by a Python with torch, whose headers serve the wheels of every Python. Environments stay in
build/wheels, so that a second run installs the new wheel alone.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "build" / "wheels"


def environment(name: str, python: str, *requirements: str) -> Path:
    """The interpreter of a virtual environment in build/wheels, made of `requirements` once."""
    interpreter = FOLDER / name / "bin" / "python"
    ready = FOLDER / name / "ready"
    if not ready.exists():
        subprocess.run([python, "-m", "venv", FOLDER / name], check=True)
        install(interpreter, *requirements)
        ready.touch()
    return interpreter


def install(interpreter: Path, *requirements: str) -> None:
    subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *requirements], check=True)


def wheel_for(python: str) -> Path:
    """The wheel of this checkout for an interpreter that has nothing installed."""
    tag = "import sys; print('cp%d%d' % sys.version_info[:2])"
    tag = subprocess.run([python, "-c", tag], check=True, capture_output=True, text=True).stdout
    tag = tag.strip()
    builder = environment(f"{tag}-build", python, "-r", str(HERE.parent / "requirements-build.txt"))
    settings = {
        "EDLM_BUILD": str(FOLDER / "cmake"),  # only the module _C is compiled for each Python
        "EDLM_TORCH": str(Path(torch.__file__).parent),
    }
    command = [builder, HERE / "build_wheel.py", FOLDER / "dist"]
    subprocess.run(command, check=True, env=os.environ | settings)
    (wheel,) = (FOLDER / "dist").glob(f"*-{tag}-*.whl")
    return wheel


def seen(wheel: Path, python: str, version: str) -> dict:
    """What check_wheel.py says of the wheel, installed beside this torch, far from the checkout."""
    interpreter = environment(f"{Path(python).name}-torch-{version}", python, f"torch=={version}")
    install(interpreter, "--force-reinstall", "--no-deps", str(wheel))
    install(interpreter, str(wheel))  # what it requires
    with tempfile.TemporaryDirectory() as away:
        command = [interpreter, HERE / "check_wheel.py"]
        run = subprocess.run(command, cwd=away, check=True, stdout=subprocess.PIPE, text=True)
        kernels = HERE.parent / "csrc" / "tests" / "registered_kernels.py"
        facts = json.loads(run.stdout.splitlines()[-1])
        backends = ["CPU", "CUDA"] if facts["cuda kernels"] else ["CPU"]
        library = Path(facts["from"]) / "_torch.so"
        subprocess.run([interpreter, kernels, library, *backends], cwd=away, check=True)
    return facts | {"wheel": wheel.name}


def main(pairs: list[str]) -> None:
    wheels: dict[str, Path] = {}
    for python, version in (pair.split(":") for pair in pairs):
        if python not in wheels:
            wheels[python] = wheel_for(python)
        facts = seen(wheels[python], python, version)
        print(
            f"{facts['wheel']}: Python {facts['python']}, torch {facts['torch']}, "
            f"{facts['installed MiB']} MiB, first text {facts['texts'][0]!r}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
