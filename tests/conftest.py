"""What every test runs under: no network, one thread (tiny tensors are slower with more), kernels interpreted.

And which tests there are. KINEMA_TESTS=quick leaves out what is marked `usual` and the folders of QUICK_WITHOUT,
KINEMA_TESTS=all takes in what is marked `full`; tests/native_tables.py reads it too.
"""

import gc
import importlib.util
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

# no run of a test's counts for the next estimate of the machine's user (engine/estimate)
os.environ["KINEMA_CACHE"] = tempfile.mkdtemp(prefix="kinema-cache-")

import torch

torch.set_num_threads(1)
INTERPRETED = not torch.cuda.is_available()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is first imported

SUITE = os.environ.get("KINEMA_TESTS", "")
# the slow ones of what a day's work seldom breaks: whole matrices of parity, programs of their own, builds, benchmarks
QUICK_WITHOUT = frozenset(
    {
        *("aot", "bench", "fuzz", "mutants", "sample", "slow", "triton"),
        *("packaging/test_archives.py", "packaging/test_bare_checkout.py"),
        *("cli/test_cli_interrupted.py", "cli/test_cli_streams.py"),
        *("native/test_threads.py", "native/test_interrupts.py"),
        *("native/test_misuse.py", "native/test_random_calls.py"),
        *("checkpoints/test_load_memory.py", "checkpoints/test_checkpoint_writer.py"),
        *("models/test_vae_memory.py", "models/test_compiled_ops.py", "media/test_media_memory.py"),
        *("pipeline/test_pipeline_memory.py", "pipeline/test_continuation.py", "pipeline/test_video_failures.py"),
    }
)
HERE = Path(__file__).parent


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


@pytest.fixture
def poisoned_memory():
    """What is allocated and never written reads as NaN, in whole numbers as the largest: torch.empty and its like.

    Else it may well be the right result of the call before, which lay in the same place. torch fills what it allocates
    in its deterministic mode (also in native code of its own); what comes from the system is zeros, which is worse.
    """
    from kinema.ops.common import native, pages

    huge_pages, before = pages._huge_pages, torch.are_deterministic_algorithms_enabled()

    def filled(count):
        block = huge_pages(count)
        return None if block is None else block.fill_(0xFF)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pages, "_huge_pages", filled)
        native._local.workspace = None  # scratch of the test before, which has its numbers in it
        torch.use_deterministic_algorithms(INTERPRETED, warn_only=True)  # a GPU's kernels would be others
        yield
        torch.use_deterministic_algorithms(before)


def pytest_configure(config):
    if SUITE not in ("", "quick", "all"):
        raise pytest.UsageError(f"KINEMA_TESTS={SUITE}: wanted quick, all or nothing")


def pytest_ignore_collect(collection_path, config):
    left_out = collection_path.relative_to(HERE).as_posix() in QUICK_WITHOUT if SUITE == "quick" else False
    return True if left_out else None


def pytest_collection_modifyitems(config, items):
    unwanted = {"": ["full"], "quick": ["full", "usual"], "all": []}[SUITE]
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in unwanted)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not any(item.get_closest_marker(name) for name in unwanted)]


def pytest_collection_finish(session):
    gc.freeze()  # what is imported by now is no garbage, and whoever collects (every measurement does) need not look
    if INTERPRETED and any("triton" in item.nodeid for item in session.items) and importlib.util.find_spec("triton"):
        spec = importlib.util.spec_from_file_location("triton_interpreter", HERE / "triton_interpreter.py")
        interpreter = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(interpreter)
        interpreter.speed_up()


def pytest_sessionfinish(session):
    gc.unfreeze()  # or what is left at the end is called a leak
