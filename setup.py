"""Maps the folders on disk to the import package: engine/ is `kinema`, kernels/<op>/ is `kinema.ops.<op>`.

`kernels/` itself has no `__init__.py`: a root package of that name would shadow the public package
`kernels`, which transformers and diffusers import (tests/packaging guards this).

The native CPU kernels (csrc/cpu) are built by CMake and lie beside `kinema.ops.common`. Where they cannot be built,
kinema installs without them and `kinema doctor` says so; KINEMA_NATIVE=on makes that an error, KINEMA_NATIVE=off skips
them.
"""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
LIBRARY = "libkinema_cpu.so"
NATIVE = os.environ.get("KINEMA_NATIVE", "auto")  # auto, on or off


def packages_below(folder: str, name: str) -> dict[str, str]:
    """Every package under `folder`, as {import name: folder on disk}."""
    found = {}
    for init in sorted((ROOT / folder).rglob("__init__.py")):
        relative = init.parent.relative_to(ROOT / folder)
        found[".".join([name, *relative.parts])] = str(init.parent.relative_to(ROOT))
    return found


class CMakeBuild(build_ext):
    """Builds the library with CMake: a plain shared library, whose name says nothing of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1]) / LIBRARY)

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "native"
        jobs = str(os.cpu_count() or 1)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["cmake", "-S", ROOT, "-B", build], check=True)
            subprocess.run(["cmake", "--build", build, "--parallel", jobs], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"the native kernels could not be built ({error})") from error
        shutil.copy2(build / LIBRARY, target)


class AnyPython(bdist_wheel):
    """The library is called through ctypes: a wheel with it serves every Python 3 of its platform."""

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])


PACKAGE_DIR = {
    **packages_below("engine", "kinema"),
    **packages_below("kernels", "kinema.ops"),
    **packages_below("benchmarks", "kinema.bench"),
}
# optional: a compiler that is missing or fails is a warning
EXTENSIONS = [Extension("kinema.ops.common.libkinema_cpu", [], optional=NATIVE != "on")] if NATIVE != "off" else []

setup(
    packages=list(PACKAGE_DIR),
    package_dir=PACKAGE_DIR,
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPython},
    # asked for only where there is none, so that a build without an index can use the system's
    setup_requires=[] if shutil.which("cmake") or NATIVE == "off" else ["cmake>=3.18"],
    include_package_data=False,  # package_data alone says what is shipped, whatever MANIFEST.in adds to the archive
    package_data={
        "kinema": ["py.typed"],
        "kinema.sample": ["model/**/*.json", "model/**/*.safetensors"],
    },
)
