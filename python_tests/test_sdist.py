"""The source distribution holds what builds the libraries, tests and benchmarks; no built file."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import edlm_engine

ROOT = Path(edlm_engine.__file__).parents[1]
FOLDERS = ("edlm_engine", "cmake", "csrc", "bench", "docs", "examples", "python_tests")
BUILT = ("*.so", "__pycache__", "generated")
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

pytestmark = pytest.mark.skipif(
    not (ROOT / "MANIFEST.in").is_file(), reason="the package is installed, this is no checkout"
)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The folder inside a source distribution made of a copy of the checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    copy = folder / "checkout"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*BUILT))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, copy)
    (copy / "edlm_engine" / "_torch.so").write_bytes(b"of another machine")
    build = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (archive,) = (copy / "dist").glob("*.tar.gz")
    assert archive.name == f"edlm_engine-{edlm_engine.__version__}.tar.gz"
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def test_every_source_is_there(sdist):
    wanted = {
        file.relative_to(ROOT)
        for name in FOLDERS
        for file in (ROOT / name).rglob("*")
        if file.is_file() and file.suffix != ".so" and not {*BUILT} & {*file.parts}
    }
    wanted |= {Path(name) for name in ("CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE")}
    files = {file.relative_to(sdist) for file in sdist.rglob("*") if file.is_file()}
    assert wanted - files == set()
    assert not [file for file in files if file.suffix == ".so"]


@pytest.mark.skipif(shutil.which("cmake", path=PATH) is None, reason="there is no cmake")
def test_cmake_finds_its_sources(sdist):
    """Configuring looks up every source that a library names."""
    command = [shutil.which("cmake", path=PATH), "-S", str(sdist), "-B", str(sdist / "build")]
    command += ["-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}", "-DEDLM_CUDA=OFF"]
    run = subprocess.run(command, env=os.environ | {"PATH": PATH}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
