"""Files that are whole or not there."""

import os
import signal
import subprocess
import sys

import pytest

from llmrl.atomic import replacing, write_text


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("old")
    for on_disk in (False, True):
        with replacing(file, on_disk=on_disk) as partial:
            partial.write_text(f"new {on_disk}")
            assert file.read_text() != f"new {on_disk}", "not before the block ends"
        assert file.read_text() == f"new {on_disk}"
        assert os.listdir(tmp_path) == ["a.json"]


def test_a_block_that_raises_changes_nothing(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("old")

    def fails():
        with replacing(file) as partial:
            partial.write_text("ne")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fails()
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_kill_in_the_middle_of_writing_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path; from llmrl.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('ne'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert file.read_text() == "old"
    write_text(file, "new")
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"], "what the killed process left is written over"


def test_text_is_utf_8_and_lone_surrogates_are_as_asked(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "a\udc80é", errors="backslashreplace")
    assert file.read_bytes() == "a\\udc80é".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\udc80")
    assert file.read_bytes() == "a\\udc80é".encode()
