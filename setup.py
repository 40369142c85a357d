"""Maps the folders on disk to the import package: engine/ is `kinema`, kernels/<op>/ is `kinema.ops.<op>`.

`kernels/` itself has no `__init__.py`: a root package of that name would shadow the public package
`kernels`, which transformers and diffusers import (tests/packaging guards this).
"""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def packages_below(folder: str, name: str) -> dict[str, str]:
    """Every package under `folder`, as {import name: folder on disk}."""
    found = {}
    for init in sorted((ROOT / folder).rglob("__init__.py")):
        relative = init.parent.relative_to(ROOT / folder)
        found[".".join([name, *relative.parts])] = str(init.parent.relative_to(ROOT))
    return found


PACKAGE_DIR = {
    **packages_below("engine", "kinema"),
    **packages_below("kernels", "kinema.ops"),
    **packages_below("benchmarks", "kinema.bench"),
}

setup(
    packages=list(PACKAGE_DIR),
    package_dir=PACKAGE_DIR,
    include_package_data=False,  # package_data alone says what is shipped, whatever MANIFEST.in adds to the archive
    package_data={
        "kinema": ["py.typed"],
        "kinema.sample": ["model/**/*.json", "model/**/*.safetensors"],
    },
)
