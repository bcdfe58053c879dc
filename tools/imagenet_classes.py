"""Names of the 1000 ImageNet-1k classes from WordNet 3.0.

python tools/imagenet_classes.py WNIDS DATA_NOUN > t2t_config/imagenet_classes.tsv

WNIDS holds the wnids in any order, one per line (`ls imagenet/train`); DATA_NOUN is WordNet 3.0's `data.noun`
(Debian's `wordnet-base` has it as /usr/share/wordnet/data.noun). Class i is the i-th wnid in alphabetical order.
Each line is a wnid and the words of its synset; WordNet's own notice, which has to be on every copy, stands on top.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(wnids_file: str, data_noun: str) -> None:
    wnids = sorted(Path(wnids_file).read_text().split())
    lines = Path(data_noun).read_text().splitlines()
    notice = [line.strip().partition(" ")[2].strip() for line in lines if line.startswith("  ")]
    print("# The ImageNet-1k classes: wnid, words of its WordNet synset. Made by tools/imagenet_classes.py.\n#")
    print("\n".join(f"# {line}".rstrip() for line in notice))
    words = dict(_synset(line) for line in lines if not line.startswith("  "))
    for wnid in wnids:
        print(f"{wnid}\t{words[wnid]}")


def _synset(line: str) -> tuple[str, str]:
    """`01440764 05 n 02 tench 0 Tinca_tinca 0 ...`: offset, file, part of speech, count (hexadecimal), words."""
    offset, _, part, count, *fields = line.split()
    return f"{part}{offset}", ", ".join(word.replace("_", " ") for word in fields[: 2 * int(count, 16) : 2])


if __name__ == "__main__":
    main(*sys.argv[1:])
