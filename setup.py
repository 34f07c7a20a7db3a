"""Builds the native libraries by driving CMake (the one list of sources) with Ninja."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures into build/ and lets CMake write the libraries into the package."""

    def run(self) -> None:
        package = ROOT if self.inplace else Path(self.build_lib).resolve()
        build = ROOT / "build" / "cmake"
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
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DEDLM_OUTPUT={package / 'edlm_engine'}",
            f"-DEDLM_CUDA={cuda}",
        ]
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        subprocess.run(configure, check=True, env=env)
        subprocess.run(["cmake", "--build", str(build)], check=True, env=env)

    def get_outputs(self) -> list[str]:
        return []


setup(
    packages=find_packages(include=["edlm_engine", "edlm_engine.*"]),
    package_data={"edlm_engine": ["*.so", "py.typed", "*.pyi", "assets/**/*", "serving/page.html"]},
    ext_modules=[Extension("edlm_engine._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
