"""The kinds of frames."""

from __future__ import annotations

from collections import Counter

from rlm.repl.worker.protocol import kinds


def test_each_kind_is_one_byte_and_no_byte_stands_for_two_kinds() -> None:
    streams = [value for value in vars(kinds).values() if isinstance(value, type)]
    found = [value for stream in streams for name, value in vars(stream).items() if name.isupper()]
    assert len(found) > 30
    assert {len(kind) for kind in found} == {1}
    assert [kind for kind, count in Counter(found).items() if count > 1] == []
