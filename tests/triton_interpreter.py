"""Triton's interpreter without what it makes anew at every step: most of its time goes into describing types.

A shape's description, a dtype's numpy twin and the functions of the language that a launch replaces are kept. What is
computed stays the interpreter's own. Its insides differ from version to version: where they are not as expected,
everything stays as it is, and is slower.
"""

import triton.language as tl
from triton.runtime import interpreter


def speed_up():
    try:
        for part in (_language_once_a_launch, _descriptions_once_a_shape, _numpy_dtypes_once, _equal_to_itself):
            part()
    except (ImportError, AttributeError):
        return  # another version's interpreter


def _language_once_a_launch():
    """It patches its language for every call of a device function; what a launch has patched stays until it ends."""
    patch = interpreter._patch_lang
    done = set()

    def patch_once(fn):
        modules = {id(module) for module in fn.__globals__.values() if module is tl or module is tl.core}
        new = modules - done
        if modules and not new:
            return interpreter._LangPatchScope()
        scope = patch(fn)
        done.update(new)
        restore = scope.restore

        def restore_and_forget():
            restore()
            done.difference_update(new)

        scope.restore = restore_and_forget
        return scope

    interpreter._patch_lang = patch_once


def _descriptions_once_a_shape():
    blocks, tensors = {}, {}
    describe_block, describe_tensor = tl.block_type.__init__, tl.tensor.__init__

    def block(self, element_ty, shape):
        sizes = tuple(n.value if isinstance(n, tl.constexpr) else n for n in shape)
        if sizes in blocks:
            self.element_ty = element_ty
            self.shape, self.numel, text = blocks[sizes]
            self.name = f"<{text}, {element_ty}>"
        else:
            describe_block(self, element_ty, shape)
            blocks[sizes] = self.shape, self.numel, str(self.shape)

    def tensor(self, handle, type):
        sizes = tuple(type.shape) if type.is_block() else ()
        if sizes in tensors:
            self.handle, self.type, self.dtype = handle, type, type.scalar
            self.numel, self.shape = tensors[sizes]
        else:
            describe_tensor(self, handle, type)
            tensors[sizes] = self.numel, self.shape

    tl.block_type.__init__, tl.tensor.__init__ = block, tensor


def _numpy_dtypes_once():
    find, found = interpreter._get_np_dtype, {}

    def numpy_dtype(dtype):
        scalar = dtype.scalar
        key = "pointer" if scalar.is_ptr() else scalar.name
        if key not in found:
            found[key] = find(scalar)
        return found[key]

    interpreter._get_np_dtype = numpy_dtype


def _equal_to_itself():
    dtypes_equal, shapes_equal = tl.dtype.__eq__, tl.core.tuple.__eq__

    def equal_shapes(self, other):
        if self is other:
            return tl.constexpr(True)
        if isinstance(other, list) and all(isinstance(n, int) for n in other):
            return tl.constexpr(self.values == other)
        return shapes_equal(self, other)

    tl.dtype.__eq__ = lambda self, other: self is other or dtypes_equal(self, other)
    tl.core.tuple.__eq__ = equal_shapes
