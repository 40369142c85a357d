"""From files to `Weights`: nothing is packed before the whole component is known to fit."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kinema.checkpoints.component_files import ComponentFiles
from kinema.checkpoints.model_folder import Component
from kinema.checkpoints.weights import Shapes, Weights, check_shapes
from kinema.errors import CheckpointError, listed

_NO_SHAPES: Shapes = {}


def load_weights(
    component: Component | ComponentFiles,
    expected: Shapes,
    *,
    optional: Shapes = _NO_SHAPES,
    ignored: Iterable[str] = (),
) -> Weights:
    """The weights of a component, once its files hold exactly the tensors that its config calls for.

    optional: tensors that may be missing, but have this shape where they are there. ignored: regular
    expressions of surplus names that do no harm, found anywhere in the name, as in diffusers'
    `_keys_to_ignore_on_load_unexpected`. One CheckpointError names every tensor that does not fit.
    """
    files = component if isinstance(component, ComponentFiles) else component.files()
    patterns = [re.compile(pattern) for pattern in ignored]
    allowed = {**optional, **expected}
    found = {
        name: shape
        for name, shape in files.shapes().items()
        if name in allowed or not any(pattern.search(name) for pattern in patterns)
    }
    wanted = {name: shape for name, shape in allowed.items() if name in expected or name in found}
    check_shapes(wanted, found, str(files.folder))

    dtypes = files.dtypes
    wrong = [f"{name} is {dtypes[name]}" for name in wanted if not dtypes[name].is_floating_point]
    if wrong:
        raise CheckpointError(
            f"{files.folder} holds integers where weights should be ({len(wrong)} tensors): {listed(wrong, '; ')}; "
            "quantised checkpoints cannot be loaded: give the original, kinema quantises as it loads"
        )
    return Weights(files)
