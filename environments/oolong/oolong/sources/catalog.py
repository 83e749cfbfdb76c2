"""Sources by name."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from oolong.sources import fetched, labelled_files
from oolong.sources.source import LabelledSource, Row, SourceError, TextSource


def wordnet() -> LabelledSource:
    """The source inside the package: about six thousand noun glosses of WordNet 3.1 with their lexicographer class."""
    packed = resources.files("oolong").joinpath("data/wordnet.tsv.gz").read_bytes()
    rows = []
    for line in gzip.decompress(packed).decode("ascii").splitlines():
        label, _, text = line.partition("\t")
        rows.append(Row(text, label))
    return TextSource(
        rows,
        id="wordnet",
        licence="WordNet 3.1, Princeton University: free use, copying and changing with its notice (data/wordnet.LICENSE.txt)",
        items="dictionary definitions of nouns",
        meaning="what kind of thing the definition describes",
    )


def open_source(ref: str | Mapping[str, Any]) -> LabelledSource:
    """Opens the source that a reference names. A process reads each source once.

    Args:
        ref: a name ("wordnet", "trec_coarse", "spam"), the path of a CSV, TSV, JSONL or parquet file, or a source's `ref`.

    Raises:
        SourceError: the source is unknown, missing or cannot be read.
    """
    if isinstance(ref, str):
        ref = labelled_files.file_ref(ref) if labelled_files.looks_like_file(ref) else {"id": ref}
    try:
        key = json.dumps(ref, sort_keys=True)
    except TypeError as error:
        raise SourceError(f"a source reference must be plain JSON: {error}") from None
    return _open(key)


@lru_cache(maxsize=8)
def _open(key: str) -> LabelledSource:
    ref: dict[str, Any] = json.loads(key)
    if "path" in ref:
        return labelled_files.read_file(**_fields(ref, labelled_files.FILE_FIELDS))
    name = _fields(ref, ("id",)).get("id")
    builders = {"wordnet": wordnet, "trec_coarse": fetched.trec_coarse, "spam": fetched.spam}
    if name not in builders:
        raise SourceError(
            f"there is no source {name!r}; sources are {', '.join(sorted(builders))}, or the path of a .csv, .tsv, .jsonl or "
            ".parquet file"
        )
    return builders[name]()


def _fields(ref: Mapping[str, Any], allowed: Sequence[str]) -> dict[str, Any]:
    unknown = sorted(set(ref) - set(allowed))
    if unknown:
        raise SourceError(f"a source reference has no field {unknown[0]!r}; it has {', '.join(allowed)}")
    return dict(ref)
