"""The wheel of this checkout: its name, what it holds, and that it works far from the checkout."""

import email
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edlm_engine
from edlm_engine import _C

ROOT = Path(edlm_engine.__file__).parents[1]
BUILT = ROOT / "build" / "cmake" / "CMakeCache.txt"

pytestmark = [
    pytest.mark.skipif(not BUILT.is_file(), reason="`make` has not built the libraries here"),
    pytest.mark.skipif(sys.platform != "linux", reason="manylinux wheels are Linux's"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by the command of `make wheel`, from the libraries that are there."""
    dist = tmp_path_factory.mktemp("dist")
    command = [sys.executable, ROOT / "wheels" / "build_wheel.py", dist]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (path,) = dist.glob("*.whl")
    assert [file.name for file in dist.glob("*.tar.gz")] == [f"{NAME}.tar.gz"]
    assert len(list(dist.iterdir())) == 2
    return path


NAME = f"edlm_engine-{edlm_engine.__version__}"


def test_the_name_says_what_it_serves(wheel):
    tag = "cp{}{}".format(*sys.version_info)
    assert re.fullmatch(rf"{NAME}-{tag}-{tag}-manylinux_2_\d+_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"{NAME}.dist-info/METADATA").decode()
    metadata = email.message_from_string(text)
    assert metadata["Requires-Python"] == ">=3.10"
    required = [line for line in metadata.get_all("Requires-Dist") if "extra" not in line]
    assert "torch>=2.10" in required and metadata["Version"] == edlm_engine.__version__


def test_it_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    held = {name for name in names if ".dist-info/" not in name}
    sources = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "edlm_engine").rglob("*")
        if file.is_file() and file.suffix != ".so" and "__pycache__" not in file.parts
    }
    assert held - sources == {
        "edlm_engine/_torch.so",
        f"edlm_engine/{Path(_C.__file__).name}",
    }
    assert sources - held == set()


def sections(elf: bytes) -> set[str]:
    """The names of the sections of a 64-bit little-endian ELF file."""
    (start,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + size * i) for i in range(count)]
    table = headers[names][4]
    return {
        elf[table + header[0] : elf.index(b"\0", table + header[0])].decode() for header in headers
    }


def test_libraries_are_stripped_and_bring_no_torch(wheel):
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if ".so" in name]
        for name in libraries:
            found = sections(archive.read(name))
            assert ".text" in found and ".symtab" not in found and ".debug_info" not in found
    assert len(libraries) == 2


def test_it_works_away_from_the_checkout(wheel, tmp_path):
    """Unpacked as `pip install --target` does it, beside the torch of this environment."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    environment = {"PYTHONPATH": str(tmp_path / "installed"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, ROOT / "wheels" / "check_wheel.py"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout.splitlines()[-1])
    assert facts["from"] == str(tmp_path / "installed" / "edlm_engine")
    config = edlm_engine.GenerationConfig(steps=4, num_candidates=2, length=24)
    engine = edlm_engine.Engine.from_pretrained()
    assert facts["texts"] == engine.generate(2, config=config, seed=0).texts
