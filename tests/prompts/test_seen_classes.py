"""A prompt that has seen a task's classes is told from one that has not, by their names."""

import pytest

from sane_plugins.grafting import PromptInfo
from sane_plugins.prompts import seen_classes

IMAGENET = PromptInfo(
    name="a", classes=("tabby, tabby cat, n02123045", "orange, n07747607", "brass, n02892201")
)


@pytest.mark.parametrize(
    ("task", "seen"),
    [
        (("tabby, tabby cat", "stone"), ("tabby, tabby cat",)),
        (("Tabby_Cat", "ORANGE"), ("Tabby_Cat", "ORANGE")),
        (("n02123045", "cat"), ("n02123045",)),
        (("tom_n02123045", "x"), ("tom_n02123045",)),
        (("dog", "fruit"), ()),
    ],
)
def test_names_are_compared_by_synonyms(task, seen) -> None:
    found = seen_classes(IMAGENET, task)
    assert found.is_known and found.seen == seen
    assert found.is_unseen is (not seen)
    assert str(len(task)) in found.describe()


@pytest.mark.parametrize(
    ("task", "near"),
    [
        (("cat", "stone"), {"cat": "tabby cat"}),
        (("Cats", "oranges"), {"Cats": "tabby cat", "oranges": "orange"}),
        (("small tabby cat", "x"), {"small tabby cat": "tabby cat"}),
        (("big cat", "cat food"), {}),  # other words in front; about food
        (("tabby, tabby cat", "bra"), {}),  # seen by name; part of a word
        (("candies", "church bus"), {"candies": "cotton candy", "church bus": "bus"}),
    ],
)
def test_a_like_name_may_be_of_a_class_that_was_seen(task, near) -> None:
    classes = (*IMAGENET.classes, "cotton candy, n1", "bus, coach, n2")
    found = seen_classes(PromptInfo(name="a", classes=classes), task)
    assert found.near == near
    assert ("may have seen" in found.describe()) is bool(near)
    assert found.is_unseen is not bool(found.seen or near)


def test_what_has_no_names_is_not_known() -> None:
    for info, task in ((IMAGENET, ("0", "1")), (PromptInfo(name="a"), ("tabby", "orange"))):
        found = seen_classes(info, task)
        assert not found.is_known and not found.is_unseen
        assert "not known" in found.describe() or "no names" in found.describe()
