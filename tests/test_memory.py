"""Large tensors reuse the pages of those before them."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
if sys.argv[1] == "loopprobe": import loopprobe
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
numbers = torch.ones(20_000_000)
for _ in range(20): numbers + 1  # until the heap has found its places
before = faults()
for _ in range(5): numbers + 1
print(faults() - before)
"""


def _faults(name, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, name], capture_output=True, text=True, check=True, env=clean | environment
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_tensors_are_reused_unless_the_user_sets_malloc():
    mapped_anew = _faults("torch")
    assert mapped_anew > 1_000
    assert _faults("loopprobe") < mapped_anew / 100
    assert _faults("loopprobe", MALLOC_TRIM_THRESHOLD_="131072") > mapped_anew / 2
