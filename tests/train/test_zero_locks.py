"""A compilation of DeepSpeed's that was killed is an error, not an endless wait."""

import os
import time

import pytest

from llmrl.config import ConfigError
from llmrl.train.backends.zero import check_locks


def test_an_old_lock_is_named_and_a_fresh_one_is_waited_for(tmp_path):
    check_locks(tmp_path / "nothing-was-compiled-yet")
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    check_locks(tmp_path)
    hour_ago = time.time() - 3600
    os.utime(lock, (hour_ago, hour_ago))
    with pytest.raises(ConfigError, match=r"killed compilation left 60 min ago; delete it"):
        check_locks(tmp_path)
