"""APPS, CodeContests and MBPP as rows: real samples where they are there, folders and rows made here, and bad ones."""

import json
import os
from pathlib import Path

import pytest

from llmrl.data.programming import programming_rows, shown_examples
from llmrl.data.source import load_rows
from llmrl.errors import DataError
from llmrl.rewards.code_outcome import CodeOutcome
from llmrl.rewards.validation import trajectory_of
from llmrl.settings.data import DataConfig

DATA = Path(os.environ.get("LLMRL_DATA", "/nowhere"))
CALL = {
    "question.txt": "Add two numbers.",
    "starter_code.py": "class Solution:\n    def add(self, a: int, b: int) -> int:\n        ",
    "input_output.json": json.dumps({"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [[3], [7]]}),
    "solutions.json": json.dumps(["class Solution:\n\tdef add(self, a, b):\n\t\treturn a + b"]),
    "metadata.json": json.dumps({"difficulty": "introductory", "url": "here"}),
}
STDIN = {
    "question.txt": "Double it.\n\n---Example---\nInput\n2\n\nOutput\n4\n\nInput\n3\n\nOutput\n6\n\n---Note---\nNone.",
    "input_output.json": json.dumps({"inputs": ["5\n", "7\n"], "outputs": ["10\n", "14\n"]}),
    "solutions.json": json.dumps(["print(2 * int(input()))"]),
}


def write(folder, files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def score(row, program):
    return CodeOutcome(comparison="apps")(trajectory_of(f"```python\n{program}\n```", "", columns=row))


def rows_of(source, **more):
    return [row for _, _, row in programming_rows(source, more.pop("split", "train"), **more)]


def test_apps_folders_hold_calls_and_standard_input(tmp_path):
    write(tmp_path / "train" / "0000", CALL)
    write(tmp_path / "train" / "0001", STDIN)
    rows = load_rows(DataConfig(source=f"apps:{tmp_path}", shuffle=False), seed=0)
    assert [row.id for row in rows] == ["apps/0000", "apps/0001"]
    call, stdin = (row.columns for row in rows)
    assert (call["kind"], stdin["kind"]) == ("function", "stdio")
    assert "class Solution with a method add" in call["problem"] and "def add(self" in call["problem"]
    assert call["difficulty"] == "introductory" and stdin["example_tests"] == [
        {"input": "2\n", "output": "4\n"}, {"input": "3\n", "output": "6\n"}
    ]  # fmt: skip
    for row in (call, stdin):
        assert "\t" not in row["answer"]
        found = score(row, row["answer"])
        assert found.value == 1.0 and found.parts["outcome"] == 3, found.reason
    assert score(call, "class Solution:\n    def add(self, a, b): return a").value == -0.3
    assert score(call, "class Solution:\n    def add(self, a, b): return (a + b,)").value == 1.0  # as its harness does
    assert score(stdin, "print(int(input()))").value == -0.3 and score(stdin, "input(").value == -1.0


def test_what_examples_and_hidden_tests_say_is_kept_apart(tmp_path):
    wrong = STDIN | {"question.txt": STDIN["question.txt"].replace("Output\n4", "Output\n5")}
    write(tmp_path / "a" / "0", wrong)
    (row,) = rows_of(f"apps:{tmp_path}")
    found = score(row, row["answer"])
    assert found.value == 1.0 and "examples_disagree" in found.flags and found.parts["example_outcome"] == 2


def test_apps_rows_may_lack_tests_and_examples_and_say_so(tmp_path):
    write(tmp_path / "a" / "0", {"question.txt": "?", "input_output.json": "null", "solutions.json": ""})
    (row,) = rows_of(f"apps:{tmp_path}")
    assert row["tests"] == row["example_tests"] == row["solutions"] == []
    found = score(row, "pass")
    assert found.value is None and found.flags == ("no_tests",)


def test_keys_of_numbers_are_numbers_again(tmp_path):
    cases = {"fn_name": "f", "inputs": [[{"1": 2, "-3": 4}]], "outputs": [{"2": 1}]}
    write(tmp_path / "a" / "0", {"question.txt": "?", "input_output.json": json.dumps(cases)})
    (row,) = rows_of(f"apps:{tmp_path}")
    assert "f({1: 2, -3: 4})" in row["tests"][0] and "found == {2: 1}" in row["tests"][0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"question.txt": "?", "input_output.json": "{"}, r"0: not a row of apps: Expecting property name"),
        ({"question.txt": "?", "input_output.json": '{"inputs": [1], "outputs": []}'}, "not a row of apps: zip"),
    ],
)
def test_a_bad_apps_row_is_named(tmp_path, files, message):
    write(tmp_path / "train" / "0", files)
    with pytest.raises(DataError, match=message):
        rows_of(f"apps:{tmp_path}")


def test_an_empty_folder_and_a_missing_column_are_named(tmp_path):
    with pytest.raises(DataError, match="holds no problems"):
        rows_of(f"apps:{tmp_path}")
    file = tmp_path / "x.jsonl"
    file.write_text('{"task_id": 601, "text": "?", "code": "def f(): ..."}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:1: not a row of mbpp: no column 'test_list'"):
        rows_of(f"mbpp:{file}")
    with pytest.raises(DataError, match="no rows of split 'test'"):
        rows_of(f"mbpp:{file}", split="test")
    with pytest.raises(DataError, match="has no knob 'exmples'; did you mean"):
        load_rows(DataConfig(source=f"mbpp:{file}", args={"exmples": 2}), seed=0)


def test_mbpp_shows_some_tests_and_hides_the_others(tmp_path):
    tests = ["assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 4"]
    row = {
        "split": "train",
        "task_id": 607,
        "text": "Add one.",
        "code": "def f(x):\r\n\treturn x + 1",
        "test_list": tests,
    }
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(row) + "\n" + json.dumps(row | {"task_id": 11}) + "\n")
    (found,) = rows_of(f"mbpp:{file}", examples=2)
    assert found["id"] == "mbpp/607" and found["example_tests"] == tests[:2] and found["tests"] == tests[2:]
    assert tests[1] in found["problem"] and tests[2] not in found["problem"] and found["entry_point"] == "f"
    assert score(found, found["answer"]).value == 1.0
    with pytest.raises(DataError, match="examples=3 of 3 tests"):
        rows_of(f"mbpp:{file}", examples=3)


def test_code_contests_of_the_hub(tmp_path):
    def cases(*pairs):
        return {"input": [a for a, _ in pairs], "output": [b for _, b in pairs]}

    row = {
        "name": "p", "description": "Double it.",
        "public_tests": cases(("1\n", "2\n")), "private_tests": cases(("2\n", "4\n")),
        "generated_tests": cases(("3\n", "6\n")),
        "solutions": {"language": [2, 3], "solution": ["int main", "print(2 * int(input()))"]},
    }  # fmt: skip
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (found,) = rows_of(f"code_contests:{file}")
    assert found["solutions"] == ["print(2 * int(input()))"] and len(found["tests"]) == 2
    assert found["example_tests"] == [{"input": "1\n", "output": "2\n"}]
    assert score(found, found["answer"]).value == 1.0


def test_a_statement_without_an_example_section_shows_none():
    assert shown_examples("Input\n1\n\nOutput\n2\n") == []


@pytest.mark.skipif(not (DATA / "apps_sample").is_dir(), reason="no apps_sample in LLMRL_DATA")
def test_the_apps_sample_agrees_with_the_outcomes_that_it_ships():
    """References pass; of generated programs, what our sandbox says is what CodeRL's harness said."""
    file = DATA / "apps_sample" / "train.jsonl"
    raw = {row["id"]: row for row in map(json.loads, file.read_text().splitlines())}
    rows = rows_of(f"apps:{file}")
    assert {row["kind"] for row in rows} == {"function", "stdio"} and all(row["tests"] for row in rows)
    codes = {-2: 0, -1: 1, False: 2, True: 3}
    agree, seen = 0, 0
    for row in rows:
        assert score(row, row["answer"]).value == 1.0, row["id"]
        for made in raw[row["id"]]["gen_solutions"][:4]:
            seen += 1
            agree += score(row, made["code"]).parts.get("outcome") == codes[made["result"]]
    assert agree >= 0.9 * seen, f"{agree} of {seen}"


@pytest.mark.skipif(not (DATA / "code_contests_sample").is_dir(), reason="no code_contests_sample in LLMRL_DATA")
def test_the_code_contests_sample_is_read():
    rows = rows_of(f"code_contests:{DATA / 'code_contests_sample' / 'test.jsonl'}")
    assert len(rows) == 20 and all(row["kind"] == "stdio" and row["tests"] for row in rows)
    assert score(rows[0], "print(1)").parts["outcome"] == 2


@pytest.mark.skipif(not (DATA / "mbpp").is_dir(), reason="no mbpp in LLMRL_DATA")
def test_mbpp_is_read_whole_and_its_references_pass():
    counts = {
        split: rows_of(f"mbpp:{DATA / 'mbpp' / 'mbpp.jsonl'}", split=split) for split in ("train", "test", "validation")
    }
    assert {split: len(rows) for split, rows in counts.items()} == {"train": 374, "test": 500, "validation": 90}
    for row in counts["train"][:5]:
        assert score(row, row["answer"]).value == 1.0
