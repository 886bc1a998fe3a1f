"""Keys: equal for equal content, and a mismatch told field by field."""

from __future__ import annotations

from fcache.store.identity import differences, item_id, view_key
from tests.store.making import PLAIN, PYRAMID


def test_key_depends_on_content_and_not_on_its_order() -> None:
    assert view_key(PLAIN) == view_key(dict(reversed(PLAIN.items())))
    assert view_key(PLAIN) != view_key(PYRAMID)
    assert view_key(PLAIN) != view_key({**PLAIN, "dtype": "float32"})


def test_item_depends_on_content_and_selection() -> None:
    names = {item_id("a", {"fps": 5}), item_id("b", {"fps": 5}), item_id("a", {"fps": 6})}
    assert len(names) == 3
    assert item_id("a", {"fps": 5, "stride": 1}) == item_id("a", {"stride": 1, "fps": 5})


def test_differences_name_the_fields_down_to_the_last() -> None:
    found = [str(one) for one in differences(PLAIN, {**PYRAMID, "extra": "x" * 64})]
    assert "backbone.kind: vit -> pyramid" in found
    assert "backbone.stages.1.channels: 6 -> 4" in found
    assert f"extra: absent -> {'x' * 12}..." in found
    assert not any(line.startswith("dtype") for line in found)


def test_a_list_and_a_tuple_do_not_differ() -> None:
    assert differences({"blocks": (9, 19)}, {"blocks": [9, 19]}) == []
    assert [one.field for one in differences({"blocks": [9]}, {"blocks": [9, 19]})] == ["blocks.1"]
