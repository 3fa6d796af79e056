"""Completions in the trackers' tables: read back from TensorBoard's own files."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from accelerate import Accelerator

from llmrl.train.completions import COLUMNS, log_completions
from tests.tiny import trajectory

ROWS = [trajectory("Q|?", [[70, 71]], sample=number, reward=0.5) for number in range(3)]


def test_tensorboard_gets_a_table_of_the_first_rows(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    accelerator.init_trackers("x")
    log_completions(accelerator.trackers, 7, ROWS, [1.0, None, -1.0], 2)
    accelerator.end_training()
    (file,) = tmp_path.rglob("events*")
    events = reader.EventAccumulator(str(file)).Reload()
    (event,) = events.Tensors("completions/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 7
    assert text.count("<code>Q&#124;?</code>") == 2 and "| 0.5 | 1 | done |" in text and "| 0.5 | – | done |" in text


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_other_trackers_get_a_data_frame_under_their_own_table(name, monkeypatch):
    """Neither package is in the test install: what they are handed is looked at."""
    module = ModuleType(name)
    module.Table = lambda dataframe: dataframe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    sent = []
    run = SimpleNamespace(log=lambda values, step: sent.append((step, values["completions"])))
    log_completions([SimpleNamespace(name=name, tracker=run)], 3, ROWS, [None] * 3, 5)
    ((step, frame),) = sent
    assert step == 3 and list(frame.columns) == list(COLUMNS) and len(frame) == 3
    assert frame["reward"].tolist() == [0.5] * 3


def test_no_rows_and_none_wanted_send_nothing():
    sent = []
    tracker = SimpleNamespace(name="tensorboard", writer=SimpleNamespace(add_text=lambda *told, **_: sent.append(told)))
    log_completions([tracker], 1, ROWS, [None] * 3, 0)
    log_completions([tracker], 1, [], [], 4)
    assert sent == []
    log_completions([tracker], 1, ROWS, [None] * 3, 1)
    assert len(sent) == 1
