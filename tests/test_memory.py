"""A long run on a CPU does not collect a compiled kernel for every number of tokens it has met."""

import os
import subprocess
import sys

import pytest
import torch

from llmrl.memory import KERNELS, keep_few_kernels

CHILD = """
import sys
import torch
from pathlib import Path
from llmrl.memory import keep_few_kernels, keep_freed_memory
from llmrl.policy.products import product

keep_freed_memory()
keep_few_kernels()
torch.set_num_threads(1)
weight = torch.randn(96, 64)

def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

for rows in range(2, 600):
    product(torch.randn(rows, 64), weight)
    if rows == 100:
        before = megabytes()
print(megabytes() - before)
"""


def growth(**environment):
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_CACHE_CAPACITY")}
    done = subprocess.run([sys.executable, "-c", CHILD], env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(
    not (sys.platform.startswith("linux") and torch.backends.mkldnn.is_available()),
    reason="needs Linux and a build of torch with oneDNN",
)
def test_products_of_ever_new_shapes_take_no_more_memory_for_ever():
    many = growth(LRU_CACHE_CAPACITY="1024", ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024")
    assert growth() < many / 3


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    keep_few_kernels()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == str(KERNELS)
