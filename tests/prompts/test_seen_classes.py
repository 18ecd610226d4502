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
        (("cat", "fruit"), ()),
    ],
)
def test_names_are_compared_by_synonyms(task, seen) -> None:
    found = seen_classes(IMAGENET, task)
    assert found.is_known and found.seen == seen
    assert found.is_unseen is (not seen)
    assert str(len(task)) in found.describe()


def test_what_has_no_names_is_not_known() -> None:
    for info, task in ((IMAGENET, ("0", "1")), (PromptInfo(name="a"), ("tabby", "orange"))):
        found = seen_classes(info, task)
        assert not found.is_known and not found.is_unseen
        assert "not known" in found.describe() or "no names" in found.describe()
