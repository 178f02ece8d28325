"""Settings of every test: eight CPU devices to shard over, and silent broadcasting between ranks forbidden."""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile far more than they compute: the compiler's costly passes would double their time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
# Many tests, some of them in processes of their own, compile the same small programs: each is compiled once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Every compiled program holds memory maps, of which Linux gives a process 65,530: one more ends it.
MAPS, MOST_MAPS = pathlib.Path("/proc/self/maps"), 20_000


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Gives up compiled programs between modules once there are many; those wanted again come from the disk."""
    yield
    if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


# Tests that quicker neighbours stand for, a line each: a test with its file, or the name of a case alone.
SLOW_CASES = frozenset(pathlib.Path(__file__).with_name("slow_cases.txt").read_text(encoding="utf-8").splitlines())


def pytest_collection_modifyitems(items):
    """Marks the slow cases, many of which a decorator would mark with all others of their function."""
    for item in items:
        if item.name in SLOW_CASES or item.nodeid in SLOW_CASES:
            item.add_marker(pytest.mark.slow)
