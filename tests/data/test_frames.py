"""Rendered frames: what is said of them is what they show."""

import numpy as np
import pytest

from llmrl.data.frames import COLOURS, EDGE, GROUNDS, Frame, Thing, frames, make_frame
from llmrl.data.source import load_rows
from llmrl.seeding import generator
from llmrl.settings.data import DataConfig

TWO = Frame(
    ground="white",
    things=(Thing(what="disc", colour="red", x=8, y=8, size=14), Thing(what="7", colour="blue", x=40, y=56, size=14)),
)


def test_words_of_parts_name_what_lies_there():
    found = TWO.words(4)
    assert found[0] == "red" and found[14] == "7" and found.count("white") >= 12
    assert TWO.words(1) == ["7"]


def test_the_picture_has_the_colours_where_the_words_say():
    pixels = np.asarray(TWO.image())
    assert (
        pixels.shape == (EDGE, EDGE, 3)
        and tuple(pixels[8, 8]) == COLOURS["red"]
        and tuple(pixels[30, 4]) == GROUNDS["white"]
    )
    near = pixels[50:62, 34:46].astype(int)
    assert (near[..., 2] - near[..., 0] > 100).any() and not (near[..., 0] - near[..., 2] > 10).any()


def test_things_do_not_overlap_and_answers_are_right():
    kinds = set()
    for index in range(200):
        frame = make_frame(generator(3, "frames", index))
        for place, one in enumerate(frame.things):
            for other in frame.things[:place]:
                assert max(abs(one.x - other.x), abs(one.y - other.y)) > (one.size + other.size) / 2
        row = frames(3, index)
        question, answer = row["prompt"], row["answer"]
        kinds.add(question.split()[1])
        names = {thing.name: thing for thing in frame.things}
        if question.startswith("How many"):
            assert answer == str(len(frame.things))
        elif question.startswith("Which"):
            axis = "x" if "left" in question else "y"
            pair = [thing for name, thing in names.items() if f"the {name}" in question]
            assert getattr(names[answer], axis) == min(getattr(thing, axis) for thing in pair)
        elif question.startswith("Where"):
            thing = next(thing for name, thing in names.items() if name in question)
            assert answer.startswith("top") == (thing.y < 16) and answer.endswith("left") == (thing.x < 16)
        else:
            assert any(answer in (thing.colour, thing.what) for thing in frame.things)
    assert kinds == {"many", "is", "colour"}


def test_rows_are_made_by_seed_and_both_splits_show_images():
    for split in ("train", "held_out"):
        first, again, other = (
            load_rows(DataConfig(source="frames", split=split, limit=8, shuffle=False), seed=seed) for seed in (0, 0, 1)
        )
        assert [row.images for row in first] == [row.images for row in again] != [row.images for row in other]
        assert all(len(row.images) == 1 and row.answer and "images" not in row.columns for row in first)


def test_an_unknown_word_size_is_no_knob():
    from llmrl.errors import DataError

    with pytest.raises(DataError, match="no knob 'size'"):
        load_rows(DataConfig(source="frames", args={"size": 3}, limit=2), seed=0)
