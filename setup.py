"""Builds the native libraries by driving CMake (the one list of sources) with Ninja."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Lets CMake build in build/cmake and copies the libraries into the package or the wheel.

    EDLM_CUDA is AUTO, ON or OFF; EDLM_BUILD another folder to build in; EDLM_TORCH a folder `torch`
    with its headers and libraries, of any Python, if not that of the Python that builds.
    """

    def run(self) -> None:
        package = ROOT if self.inplace else Path(self.build_lib).resolve()
        build = Path(os.environ.get("EDLM_BUILD") or ROOT / "build" / "cmake").resolve()
        cuda = os.environ.get("EDLM_CUDA", "AUTO")
        if cuda not in ("AUTO", "ON", "OFF"):
            raise SystemExit(f"EDLM_CUDA must be AUTO, ON or OFF, got {cuda}")
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            # What CMake remembers of another Python that was built for in this folder.
            *("-U_Python_*", "-UPython_*", "-UPYTHON_*"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DEDLM_OUTPUT={build / 'libraries'}",
            f"-DEDLM_CUDA={cuda}",
            f"-DEDLM_TORCH={os.environ.get('EDLM_TORCH', '')}",
        ]
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        subprocess.run(configure, check=True, env=env)
        subprocess.run(["cmake", "--build", str(build)], check=True, env=env)
        for name in (self.get_ext_filename("_C"), "_torch.so"):
            to = package / "edlm_engine" / name
            partial = to.with_suffix(".partial")
            shutil.copy(build / "libraries" / name, partial)
            partial.replace(to)  # a process that has loaded the old one keeps it

    def get_outputs(self) -> list[str]:
        return []


setup(
    packages=find_packages(include=["edlm_engine", "edlm_engine.*"]),
    package_data={"edlm_engine": ["py.typed", "*.pyi", "assets/**/*", "serving/page.html"]},
    ext_modules=[Extension("edlm_engine._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
