"""Files and hub data -> rows: mapping, splitting, and every way a row can be malformed."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from llmrl.data.rows import Row, check_disjoint, is_held_out
from llmrl.data.source import held_out_config, load_rows, load_train_eval
from llmrl.errors import DataError
from llmrl.settings.data import DataConfig, EvalDataConfig


def shared_data(name: str) -> Path:
    root = Path(os.environ.get("LLMRL_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not (root / name).exists():
        pytest.skip(f"no {name} in {root}")
    return root / name


def write_lines(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def in_order(source: str, **more) -> list[Row]:
    return load_rows(DataConfig(source=source, shuffle=False, **more), seed=0)


def test_jsonl_rows_keep_all_columns_and_get_ids(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", {"question": "1+1?", "answer": 2, "level": [1]}, {"question": "2+2?", "answer": "4"}
    )
    first, second = in_order(path)
    assert (first.id, first.prompt, first.answer, first.columns["level"]) == ("a/0", "1+1?", "2", [1])
    assert (second.id, second.answer, second.origin) == ("a/1", "4", f"{path}:2")


def test_json_and_parquet_hold_the_same_rows_as_jsonl(tmp_path):
    rows = [{"id": f"r{i}", "problem": f"{i}+1?", "answer": str(i + 1), "tests": ["a", "b"]} for i in range(5)]
    jsonl = in_order(write_lines(tmp_path / "a.jsonl", *rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.json", "a.parquet"):
        loaded = in_order(str(tmp_path / name))
        assert [(r.id, r.prompt, r.answer, dict(r.columns)) for r in loaded] == [
            (r.id, r.prompt, r.answer, dict(r.columns)) for r in jsonl
        ]


def test_a_glob_reads_files_by_name_and_keeps_ids_apart(tmp_path):
    for folder in ("b", "a"):
        (tmp_path / folder).mkdir()
        write_lines(tmp_path / folder / "part.jsonl", {"prompt": f"from {folder}"})
    rows = in_order(str(tmp_path / "*" / "part.jsonl"))
    assert [(row.id, row.prompt) for row in rows] == [("a/part/0", "from a"), ("b/part/0", "from b")]


def test_columns_are_mapped_and_renamed(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"q": "why?", "gold": 3.5, "key": 9, "test_list": ["x"]})
    (row,) = in_order(path, columns={"prompt": "q", "answer": "gold", "id": "key", "tests": "test_list"})
    assert (row.id, row.prompt, row.answer, row.columns["tests"], row.columns["gold"]) == (
        "9",
        "why?",
        "3.5",
        ["x"],
        3.5,
    )


def test_blank_lines_and_a_byte_order_mark_are_fine(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}')
    assert [row.prompt for row in in_order(str(tmp_path / "a.jsonl"))] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "a"', "invalid JSON, Expecting ',' delimiter at column 15"),
        (b"[1, 2]", "a row must be an object with named columns, not list"),
        (b'"text"', "not str"),
        (b'{"promt": "a"}', "no column prompt, problem, question .*has promt.*did you mean 'promt'"),
        (b"{}", "the row has none"),
        (b'{"prompt": ""}', "column 'prompt' is empty"),
        (b'{"prompt": " \\n "}', "column 'prompt' is empty"),
        (b'{"prompt": 3}', "column 'prompt' must be text or a list of chat messages, not int"),
        (b'{"prompt": null}', "not NoneType"),
        (b'{"prompt": []}', "empty list of messages"),
        (b'{"prompt": ["a"]}', "message 0 must have role and content"),
        (b'{"prompt": [{"role": "usr", "content": "a"}]}', "message 0 has role 'usr'; known are system, user"),
        (b'{"prompt": [{"role": "user", "content": [1]}]}', "message 0 has list content"),
        (b'{"prompt": [{"role": "user", "content": " "}]}', "all messages are empty"),
        (b'{"prompt": "a", "answer": null}', "column 'answer' must be text or a number, not NoneType"),
        (b'{"prompt": "a", "answer": {"x": 1}}', "column 'answer' must be text or a number, not dict"),
        (b'{"prompt": "a", "answer": true}', "not bool"),
        (b'{"prompt": "a", "id": ""}', "column 'id' is empty"),
        (b'{"prompt": "a", "id": "same"}', "has the id 'same', which .*a.jsonl:1 has too"),
        (b'{"prompt": "a", "prompt": "b"}', "column 'prompt' appears twice"),
        (b'{"prompt": "\xff"}', "not UTF-8 text"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"prompt": "a", "answer": 1' + b"0" * 5000 + b"}", "invalid JSON, Exceeds the limit"),
    ],
)
def test_a_malformed_row_is_reported_with_file_line_and_reason(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "good", "id": "same"}\n' + line + b'\n{"prompt": "good"}\n')
    with pytest.raises(DataError, match=rf"a\.jsonl:2.*{reason}"):
        in_order(str(path))


def test_a_mapped_column_that_is_missing_names_the_nearest(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "a", "solution": "1"})
    with pytest.raises(DataError, match=r"a\.jsonl:1: no column 'solutoin'.*did you mean 'solution'"):
        in_order(path, columns={"answer": "solutoin"})


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b'{"prompt": "a"}', "must hold one list of rows, not dict"),
        ("a.json", b'[{"prompt": "a"},\n {"prompt" "b"}]', "at line 2 column 12"),
        ("a.json", b'[{"prompt": "a"}, 7]', "row 1: a row must be an object"),
        ("a.parquet", b"no parquet", "not a readable parquet file"),
        ("a.jsonl", b"\n \n", "holds no rows"),
        ("a.csv", b"prompt\na\n", r"files of kind \.csv are not read; use \.jsonl"),
    ],
)
def test_a_malformed_file_is_reported(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        in_order(str(tmp_path / name))


def test_a_missing_file_names_the_nearest(tmp_path):
    write_lines(tmp_path / "train.jsonl", {"prompt": "a"})
    with pytest.raises(DataError, match=r"no such data file: .*/trian\.jsonl; did you mean .*/train\.jsonl"):
        in_order(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match="there is no folder"):
        in_order(str(tmp_path / "none" / "train.jsonl"))
    with pytest.raises(DataError, match=r"is a folder; name its files, for example .*/\*\.jsonl"):
        in_order(str(tmp_path))
    with pytest.raises(DataError, match="no file matches"):
        in_order(str(tmp_path / "x*.jsonl"))


def test_limit_takes_a_keyed_sample_if_shuffled_and_the_head_if_not(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *({"prompt": f"p{i}"} for i in range(50)))
    assert [row.prompt for row in in_order(path, limit=3)] == ["p0", "p1", "p2"]
    draws = [[row.prompt for row in load_rows(DataConfig(source=path, limit=3), seed=seed)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    everything = load_rows(DataConfig(source=path), seed=0)
    assert sorted(row.prompt for row in everything) == sorted(f"p{i}" for i in range(50))
    assert [row.prompt for row in everything][:3] == draws[0]


def test_one_file_is_split_by_problem_whatever_the_seeds(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *({"prompt": f"Problem {i}"} for i in range(400)))
    parts = [
        load_train_eval(DataConfig(source=path), EvalDataConfig(n=None, seed=seed), seed=seed + 5) for seed in range(3)
    ]
    for train, held in parts:
        assert {row.prompt for row in train} == {row.prompt for row in parts[0][0]}
        assert {row.prompt for row in held} == {row.prompt for row in parts[0][1]}
        assert len(train) + len(held) == 400
        assert 20 < len(held) < 70
        assert all(is_held_out(row.identity) for row in held)


def test_repeated_problems_stay_on_one_side_of_the_split(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", *({"prompt": f"Problem  {i % 20}" if i % 2 else f"problem {i % 20}"} for i in range(200))
    )
    train, held = load_train_eval(DataConfig(source=path), EvalDataConfig(n=None), seed=0)
    assert len(train) + len(held) == 200
    assert not {row.identity for row in train} & {row.identity for row in held}


def test_a_leak_between_two_files_is_an_error_with_an_example(tmp_path):
    train = write_lines(tmp_path / "train.jsonl", {"prompt": "one?"}, {"prompt": "What  is\nTWO?"})
    held = write_lines(tmp_path / "test.jsonl", {"prompt": "three?"}, {"prompt": "what is two?"})
    with pytest.raises(DataError, match=r"1 training rows.*train/1.*train\.jsonl:2.*test/1.*what is two\?"):
        load_train_eval(DataConfig(source=train), EvalDataConfig(source=held), seed=0)


def test_a_system_message_does_not_hide_a_leak(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is two?"}]
    train = write_lines(tmp_path / "train.jsonl", {"prompt": turns})
    held = write_lines(tmp_path / "test.jsonl", {"prompt": "What is two?"})
    with pytest.raises(DataError, match="also poses"):
        load_train_eval(DataConfig(source=train), EvalDataConfig(source=held), seed=0)


def test_commuted_sums_do_not_leak():
    row = {"columns": {}, "answer": "8", "origin": "here"}
    ours = Row(id="a", prompt="What is 3 + 5?", identity="3+5", **row)
    theirs = Row(id="b", prompt="What is 5 + 3?", identity="3+5", **row)
    with pytest.raises(DataError, match="1 training rows"):
        check_disjoint([ours], [theirs])
    check_disjoint([ours], [Row(id="c", prompt="What is 5 + 4?", identity="4+5", **row)])


def test_addition_gives_200_held_out_problems_that_no_training_seed_meets():
    held = []
    for seed in (0, 1, 17):
        train, held_out = load_train_eval(DataConfig(source="addition"), EvalDataConfig(), seed=seed)
        held.append([row.id for row in held_out])
        sums = {tuple(sorted(row.columns["terms"])) for row in train}
        assert len(train) == len(sums) == 4096
        assert not sums & {tuple(sorted(row.columns["terms"])) for row in held_out}
    assert held[0] == held[1] == held[2]
    assert len(set(held[0])) == 200


def test_a_records_own_identity_column_means_nothing(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *({"prompt": f"p{i}", "identity": "human"} for i in range(3)))
    assert len({row.identity for row in in_order(path)}) == 3


def test_a_hub_id_goes_through_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    write_lines(
        tmp_path / "org" / "name" / "train.jsonl", {"question": "1+1?", "answer": "2"}, {"question": "x", "answer": "y"}
    )
    write_lines(tmp_path / "org" / "name" / "test.jsonl", {"question": "2+2?", "answer": "4"})
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    train, held = load_train_eval(
        DataConfig(source="org/name", shuffle=False), EvalDataConfig(split="test", n=None), seed=0
    )
    assert [(row.id, row.prompt, row.answer) for row in train] == [
        ("org/name/train/0", "1+1?", "2"),
        ("org/name/train/1", "x", "y"),
    ]
    assert [row.prompt for row in held] == ["2+2?"]
    with pytest.raises(DataError, match=r"could not load data set org/name \(subset None, split validation\)"):
        load_rows(DataConfig(source="org/name", split="validation"), seed=0)


def test_settings_that_cannot_work_are_refused():
    for wrong in (
        {"sources": "addition"},
        {"limit": 0},
        {"max_prompt_tokens": 0},
        {"template": "no field"},
        {"template": "{prompt.__class__}"},
        {"template": "{prompt[0]}"},
        {"template": "{prompt!r}"},
        {"template": "{prompt:>9}"},
        {"template": "{}"},
        {"template": "{prompt"},
        {"system": "Be brief.", "chat": False},
    ):
        with pytest.raises(ValidationError):
            DataConfig(**{"source": "addition", **wrong})
    with pytest.raises(DataError, match=r"are knobs of a generator, and 'a.jsonl' is none"):
        load_rows(DataConfig(source="a.jsonl", args={"high": 3}), seed=0)
    with pytest.raises(DataError, match="use train or held_out"):
        load_rows(DataConfig(source="addition", split="test"), seed=0)


def test_held_out_data_inherits_what_it_does_not_say():
    train = DataConfig(source="addition", args={"high": 9}, template="Sum: {problem}", system="S", max_prompt_tokens=99)
    same = held_out_config(EvalDataConfig(n=7), train)
    assert (same.source, same.split, same.args, same.limit) == ("addition", "held_out", {"high": 9}, 7)
    assert (same.template, same.system, same.max_prompt_tokens) == ("Sum: {problem}", "S", 99)
    other = held_out_config(EvalDataConfig(source="org/name", template="{question}", n=None), train)
    assert (other.split, other.args, other.limit, other.template) == ("test", {}, None, "{question}")
    assert held_out_config(EvalDataConfig(source="countdown"), train).split == "held_out"
    assert held_out_config(EvalDataConfig(), DataConfig(source="org/name", split="train[:50%]")).split == "train[:50%]"


def test_gsm8k_loads_whole_and_its_own_splits_do_not_leak():
    folder = shared_data("gsm8k")
    train, held = load_train_eval(
        DataConfig(source=str(folder / "train.jsonl")),
        EvalDataConfig(source=str(folder / "test.jsonl"), n=None),
        seed=0,
    )
    assert len(held) == 1319
    assert len(train) > 7000
    assert sum(row.answer.replace(",", "").lstrip("-").isdigit() for row in held) == 1319


def test_shared_countdown_rows_split_without_leaks():
    path = shared_data("countdown") / "mid3.jsonl"
    train, held = load_train_eval(DataConfig(source=str(path)), EvalDataConfig(n=100), seed=0)
    assert not any(is_held_out(row.identity) for row in train)
    assert 2500 < len(train) < 2850
    assert len(held) == 100
    assert len(train[0].columns["numbers"]) == 3


def test_a_template_makes_prompts_of_rows_that_have_none(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"nums": [i, 2], "target": i + 2}) + "\n" for i in range(30)))
    config = DataConfig(
        source=str(file), columns={"numbers": "nums", "answer": "target"}, template="Make {answer} of {numbers}."
    )
    row = next(row for row in load_rows(config, seed=0) if row.columns["nums"] == [5, 2])
    assert (row.prompt, row.answer, row.columns["numbers"]) == ("Make 7 of [5, 2].", "7", [5, 2])
    with pytest.raises(DataError, match="no column prompt"):
        load_rows(config.model_copy(update={"template": "Make {answer} of {cards}."}), seed=0)
