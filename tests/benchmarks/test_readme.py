"""What README.md points at is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_picture_and_file_that_readmes_link_to_is_there():
    pages = [ROOT / "README.md", *sorted((ROOT / "benchmarks" / "results").glob("*.md"))]
    linked = 0
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                linked += 1
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
    assert linked > 20


def test_no_caption_is_left_to_be_written():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.findall(r"\b[A-Z]+_CAPTION\b|\bTODO\b", text)
