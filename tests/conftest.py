"""What every test runs under: no network, one thread (tiny tensors are slower with more), kernels interpreted."""

import os
from contextlib import contextmanager

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)
INTERPRETED = not torch.cuda.is_available()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is first imported


@pytest.fixture(scope="session")
def hosts_default():
    """A context in which the host application has set torch's default dtype ("float64", …) or device ("meta")."""

    @contextmanager
    def default(name):
        usual = torch.get_default_dtype()
        try:
            if name == "meta":
                torch.set_default_device(name)
            else:
                torch.set_default_dtype(getattr(torch, name))
            yield
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(usual)

    return default


def pytest_collection_finish(session):
    if INTERPRETED and any("triton" in item.nodeid for item in session.items):
        _patch_the_language_once_a_launch()


def _patch_the_language_once_a_launch():
    """Triton's interpreter patches its language for every call of a device function: two thirds of its time.

    What a launch has patched stays patched until it ends; only what it has not is left to do for a call.
    """
    try:
        import triton.language as tl
        from triton.runtime import interpreter

        patch = interpreter._patch_lang
    except (ImportError, AttributeError):
        return  # no Triton, or another version's interpreter
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
