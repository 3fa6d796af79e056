"""Every task: real files where they are, hub-shaped rows made by hand, and what bad rows say."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llmrl.errors import DataError, EvalError
from llmrl.eval.load import load_questions, load_shots
from llmrl.eval.task import Generated, Question
from llmrl.eval.tasks import TASKS, find_task
from llmrl.eval.tasks.competition_math import last_boxed
from llmrl.rewards.scoring import load_reward, score_one
from llmrl.rewards.validation import trajectory_of

DATA = Path(os.environ.get("LLMRL_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no benchmark files in {DATA}; set LLMRL_DATA")

COUNTS = {
    "aime24": 30,
    "aime25": 30,
    "amc23": 40,
    "aqua": 254,
    "countdown": 3000,
    "cruxeval": 800,
    "gsm8k": 1319,
    "gsm_hard": 1319,
    "humaneval": 164,
    "math": 5000,
    "math500": 500,
    "mbpp": 500,
    "mbpp_hidden": 500,
    "mbppplus": 378,
    "olympiadbench": 675,
    "svamp": 1000,
}

HUB_ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    # task: a row as the hub has it, the gold, a piece of the prompt
    "gsm8k": ({"question": "2 + 2?", "answer": "It is <<2+2=4>>4.\n#### 1,004"}, "1004", "2 + 2?"),
    "math500": (
        {"problem": "P?", "answer": "\\frac12", "subject": "Algebra", "level": 3, "unique_id": "test/a/1.json"},
        "\\frac12",
        "P?",
    ),
    "math": (
        {"problem": "P?", "level": "Level 5", "type": "Geometry", "solution": "so \\boxed{\\frac{1}{2}}."},
        "\\frac{1}{2}",
        "P?",
    ),
    "aime24": (
        {"id": 60, "problem": "P?", "answer": "204", "year": "2024"},
        "204",
        "P?",
    ),
    "aime25": ({"id": "0", "problem": "P?", "answer": "70"}, "70", "P?"),
    "amc23": ({"id": 0, "question": "P?", "answer": "27.0", "url": "u"}, "27", "P?"),
    "olympiadbench": (
        {
            "id": 1606,
            "question": "P?",
            "final_answer": ["2", "3"],
            "subfield": "Algebra",
            "answer_type": "Numerical",
            "error": "1e-1",
            "unit": None,
        },
        "2, 3",
        "P?",
    ),
    "svamp": (
        {"ID": "chal-1", "Body": "Ann has 3.", "Question": "How many?", "Answer": "3.0", "Type": "Common-Divison"},
        "3",
        "Ann has 3. How many?",
    ),
    "gsm_hard": ({"input": "P?", "code": "...", "target": 2.0107e-06}, "0.0000020107", "P?"),
    "aqua": (
        {"question": "P?", "options": ["A)40", "B)200"], "rationale": "r", "correct": "B"},
        "B",
        "A) 40\nB) 200",
    ),
    "countdown": ({"target": 7, "nums": [3, 4]}, "7", "[3, 4]"),
    "humaneval": (
        {
            "task_id": "HumanEval/0",
            "prompt": "def f():\n",
            "entry_point": "f",
            "canonical_solution": "    return {}\n",
            "test": "def check(candidate):\n    assert candidate() == {}",
        },
        "def f():\n    return {}\n",
        "def f():",
    ),
    "mbpp": (
        {"task_id": 11, "text": "Do {x}.", "code": "a\r\nb", "test_list": ["assert f() == {}"], "test_setup_code": ""},
        "a\nb",
        "assert f() == {}",
    ),
    "mbpp_hidden": (
        {"task_id": 11, "text": "Do {x}.", "code": "a", "test_list": ["assert f() == {}", "assert f(1)"]},
        "a",
        "assert f() == {}",
    ),
    "mbppplus": (
        {"task_id": 2, "code": "def f(): ...", "prompt": "Do {x}.", "test_list": ["assert f()"], "test": "assert f()"},
        "def f(): ...",
        "Do {x}.",
    ),
    "cruxeval": ({"code": "def f(x):\n    return {x}", "input": "1", "output": "{1}", "id": "sample_0"}, "{1}", "f(1)"),
}


@needs_data
@pytest.mark.parametrize("name", sorted(COUNTS))
def test_the_whole_local_file_is_read_and_its_checksum_recorded(name: str) -> None:
    task = find_task(name)
    loaded = load_questions(task, data_dir=DATA)
    assert len(loaded.questions) == loaded.available == COUNTS[name]
    assert loaded.sha256 == hashlib.sha256(Path(loaded.origin).read_bytes()).hexdigest()
    for question in loaded.questions:
        assert question.answer.strip()
        for template in (task.template, task.plain_template):
            assert "{problem}" not in template.format(**question.columns)
        for name in task.breakdown:
            assert question.columns[name]


@needs_data
@pytest.mark.parametrize("name", ["gsm8k", "aqua", "mbpp", "gsm_hard"])
def test_worked_examples_come_from_another_split_than_the_questions(name: str) -> None:
    task = find_task(name)
    shots = load_shots(task, task.plain_shots, data_dir=DATA)
    assert len(shots) == task.plain_shots > 0
    questions = load_questions(task, data_dir=DATA).questions
    assert not {shot.id for shot in shots} & {question.id for question in questions}
    for shot in shots:
        assert shot.answer in task.shot_response.format(answer=shot.answer, **shot.columns)


@needs_data
def test_mbpp_shows_the_three_problems_that_its_paper_shows() -> None:
    task = find_task("mbpp")
    assert [shot.id for shot in load_shots(task, 3, data_dir=DATA)] == ["mbpp/2", "mbpp/3", "mbpp/4"]


@pytest.mark.parametrize("name", sorted(HUB_ROWS))
def test_rows_as_the_hub_has_them_are_read(name: str) -> None:
    task = find_task(name)
    row, answer, piece = HUB_ROWS[name]
    question = task.read(row, 0)
    assert question.answer == answer
    assert piece in task.template.format(**question.columns)
    assert piece.splitlines()[0] in task.plain_template.format(**question.columns)
    assert question.id


def test_the_table_of_hub_rows_misses_no_task_that_is_on_the_hub() -> None:
    on_hub = {name for name in TASKS if getattr(find_task(name).source, "hub", "")}
    assert on_hub == set(HUB_ROWS)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_is_registered_under_its_own_name_and_its_settings_make_sense(name: str) -> None:
    task = find_task(name)
    assert task.name == name
    assert task.samples >= 1
    assert task.max_tokens >= 1
    assert task.temperature > 0
    assert 0 < task.top_p <= 1
    assert (task.plain_shots == 0) or task.shot_source is not None
    assert ":" in task.verifier


@pytest.mark.parametrize(
    ("name", "hint"),
    [("gms8k", "did you mean 'gsm8k'"), ("GSM8K", "gsm8k"), ("math-500", "math500"), ("zzz", "known: ")],
)
def test_an_unknown_task_says_what_may_have_been_meant(name: str, hint: str) -> None:
    with pytest.raises(EvalError, match=hint):
        find_task(name)


@pytest.mark.parametrize("name", ["addition", "arithmetic", "countdown_generated"])
def test_generated_tasks_give_the_same_held_out_problems_every_time(name: str) -> None:
    task = find_task(name)
    assert isinstance(task.source, Generated)
    once, again = load_questions(task), load_questions(task)
    assert once == again
    assert len(once.questions) == len({question.id for question in once.questions}) == 200
    if name == "addition":
        for question in once.questions:
            assert int(question.answer) == sum(question.columns["terms"])


def _write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_limit_takes_a_nested_subset_that_depends_on_ids_alone(tmp_path: Path) -> None:
    rows = [{"id": f"q{i}", "problem": f"{i}?", "answer": str(i)} for i in range(50)]
    task = find_task(str(_write(tmp_path / "own.jsonl", *rows)))
    ids = [[q.id for q in load_questions(task, limit=n).questions] for n in (10, 20, 50)]
    assert set(ids[0]) < set(ids[1]) < set(ids[2])
    assert ids[0] == sorted(ids[0], key=lambda name: int(name[1:]))
    assert ids[0] != [f"q{i}" for i in range(10)]
    _write(tmp_path / "own.jsonl", *reversed(rows))
    assert {q.id for q in load_questions(task, limit=10).questions} == set(ids[0])
    assert [q.id for q in load_questions(task, limit=3, first=True).questions] == ["q49", "q48", "q47"]
    assert load_questions(task, limit=10).available == 50
    with pytest.raises(EvalError, match="limit=0"):
        load_questions(task, limit=0)


def test_malformed_rows_name_file_line_and_reason(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    path = tmp_path / "gsm8k" / "test.jsonl"
    good = {"problem": "2 + 2?", "answer": "4"}
    for bad, reason in [
        ({"problem": "2 + 2?"}, "no column 'solution' or 'answer'"),
        ({"answer": "4"}, "no column 'problem' or 'question'; the row has 'answer'"),
        ({"problem": "  ", "answer": "4"}, "column 'problem' is empty"),
        ({"problem": ["2"], "answer": "4"}, "holds list, not text"),
        ({**good, "id": "gsm8k/0"}, "is that of .*:1 too"),
    ]:
        _write(path, good, bad)
        with pytest.raises(EvalError, match=r"1 malformed row\(s\) of 2(.|\n)*test\.jsonl:2: .*" + reason):
            load_questions(find_task("gsm8k"), data_dir=tmp_path)
    for bad, reason in [("{", "invalid JSON"), ("[1]", "must be an object")]:
        _write(path, good, bad)
        with pytest.raises((EvalError, DataError), match=r"test\.jsonl:2: .*" + reason):
            load_questions(find_task("gsm8k"), data_dir=tmp_path)


def test_missing_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"no file .*gsm8k/test\.jsonl; put it there, or leave --data-dir out"):
        load_questions(find_task("gsm8k"), data_dir=tmp_path)
    with pytest.raises(EvalError, match="is no folder"):
        load_questions(find_task("gsm8k"), data_dir=tmp_path / "nowhere")
    with pytest.raises(EvalError, match="is on no hub; give --data-dir"):
        load_questions(find_task("countdown_easy"))
    with pytest.raises(EvalError, match="task math has no worked examples; run it with shots=0"):
        load_shots(find_task("math"), 2)


def test_aqua_refuses_a_gold_that_is_no_option() -> None:
    with pytest.raises(ValueError, match=r"the gold 'F' is none of the options \['A', 'B'\]"):
        find_task("aqua").read({"question": "P?", "options": ["A)1", "B)2"], "correct": "F"}, 0)


def test_last_boxed_takes_the_last_balanced_one() -> None:
    assert last_boxed(r"\boxed{1} then \boxed{\frac{1}{2}} end") == r"\frac{1}{2}"
    for broken in ("no box", r"\boxed{1"):
        with pytest.raises(ValueError, match="no balanced"):
            last_boxed(broken)


def test_a_yaml_task_file_reads_its_data_with_its_own_columns(tmp_path: Path) -> None:
    _write(tmp_path / "rows.jsonl", {"q": "1 + 1?", "gold": 2, "kind": "add", "n": 1}, {"q": "No", "gold": 3, "n": 2})
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ndata: rows.jsonl\ncolumns: {problem: q, answer: gold}\ntemplate: '{problem} Answer \\boxed{{}}.'\n"
        "where: {n: 1}\nbreakdown: [kind]\nmax_tokens: 32\nsamples: 4\n"
    )
    task = find_task(str(tmp_path / "mine.yaml"))
    loaded = load_questions(task)
    assert [question.answer for question in loaded.questions] == ["2"]
    assert task.template.format(**loaded.questions[0].columns) == "1 + 1? Answer \\boxed{}."
    assert (task.max_tokens, task.samples, task.breakdown) == (32, 4, ("kind",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("name: a\ndata: x.jsonl\ntemplat: b", "unknown key 'templat'; did you mean 'template'"),
        ("name: a", "either data .* or hub"),
        ("name: a\ndata: x.jsonl\nhub: o/n", "either data .* or hub"),
        ("name: a\ndata: x.jsonl\nsamples: 0", "samples: "),
        ("name: a\ndata: x.jsonl\ntemplate: 'lone { brace'", "literal braces are written twice"),
        ("name: a\ndata: x.jsonl\ntemplate: '{a.b}'", "is no column name"),
        ("- a", "holds keys and values"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_a_bad_task_file_says_what_is_wrong(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(EvalError, match=reason):
        find_task(str(tmp_path / "bad.yaml"))


def test_a_task_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="no task file"):
        find_task(str(tmp_path / "none.yaml"))


MBPPPLUS_ROW = {
    "task_id": "Mbpp/2",
    "prompt": '"""\nShared elements.\nassert set(f((3, 4), (4, 5))) == set((4,))\n"""\n',
    "entry_point": "f",
    "canonical_solution": "def f(a, b):\n    assert isinstance(a, tuple)\n    return tuple(set(a) & set(b))\n",
    "base_input": [[[1, 2, 3], [3, 2]]],
    "plus_input": [[[], []], [[9, 8], [8, 9]]],
    "atol": 0,
}


def _passes(program: str) -> bool:
    return subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, timeout=60).returncode == 0


def test_mbppplus_restores_types_compares_as_the_assert_does_and_fails_wrong_answers() -> None:
    question = find_task("mbppplus").read(MBPPPLUS_ROW, 0)
    (test,) = question.columns["tests"]
    assert question.id == "mbppplus/2"
    assert question.columns["problem"].startswith("Shared elements.")
    assert _passes(question.answer + test)
    assert _passes("def f(a, b):\n    return [x for x in reversed(a) if x in b]" + test)  # sets: order is free
    assert not _passes("def f(a, b):\n    return (2, 3)" + test)
    assert not _passes("def f(a, b):\n    return a" + test)


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        ("0.1 + 0.2", "0.3", True),
        ("0.3", "0.30001", False),
        ("float('nan')", "float('nan')", True),
        ("[1, (2, 3)]", "(1, [2, 3])", True),
        ("[1, 2]", "[1, 2, 3]", False),
        ("{'a': 1.0}", "{'a': 1.0000000001}", True),
        ("True", "1", True),
        ("__import__('re').match('a', 'a')", "True", True),
        ("__import__('re').match('a', 'a')", "None", False),
    ],
)
def test_mbppplus_compares_results_like_its_authors(reference: str, answer: str, right: bool) -> None:
    row = {**MBPPPLUS_ROW, "prompt": "assert f(1, 2) == 3", "base_input": [[1, 2]], "plus_input": []}
    row["canonical_solution"] = f"def f(a, b):\n    return {reference}\n"
    (test,) = find_task("mbppplus").read(row, 0).columns["tests"]
    assert _passes(f"def f(a, b):\n    return {answer}\n{test}") is right


def _gold_failures(name: str) -> list[str]:
    """Questions whose own gold answer does not get full marks from the task's own verifier."""
    task = find_task(name)
    patient = {"timeout_s": 120.0} if "code_tests" in task.verifier else {}  # a loaded machine is no wrong program
    reward = load_reward(task.verifier, {**task.options, **patient})
    frame = "```python\n{}\n```" if "code_tests" in task.verifier else "\\boxed{{{}}}"

    def score(question: Question) -> float | None:
        said = trajectory_of(frame.format(question.answer), question.answer, columns=question.columns)
        return score_one(reward, said).value

    questions = load_questions(task, data_dir=DATA).questions
    with ThreadPoolExecutor(2) as pool:
        return [q.id for q, value in zip(questions, pool.map(score, questions)) if value != 1.0]


@needs_data
@pytest.mark.parametrize(
    "name", ["gsm8k", "gsm_hard", "math500", "olympiadbench", "svamp", "amc23", "aime24", "aime25"]
)
def test_every_gold_answer_gets_full_marks_from_the_tasks_own_verifier(name: str) -> None:
    assert _gold_failures(name) == []


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["humaneval", "mbpp", "mbppplus", "math"])
def test_every_reference_program_passes_the_tasks_own_tests(name: str) -> None:
    assert _gold_failures(name) == []
