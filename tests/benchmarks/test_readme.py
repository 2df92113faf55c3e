"""What README.md and the other pages point at is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_TESTS = {"VGAN_FAST_TEST_VIDEOS", "gpu", "opcheck", "pytest", "slow"}  # in no program


def test_every_picture_and_file_that_readmes_link_to_is_there():
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "benchmarks" / "results").glob("*.md"))]
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


def test_every_file_and_name_that_contributing_tells_of_is_there():
    words = re.findall(r"`([\w./]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    paths = [word for word in words if "/" in word and "NAME" not in word]
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []
    names = {word for word in words if "/" not in word and "." not in word}
    code = "".join(
        file.read_text(encoding="utf-8")
        for folder in ("kernels", "loaders", "vgan_fast")
        for file in (ROOT / folder).rglob("*.py")
    )
    unknown = {name for name in names if not re.search(rf"\b{name}\b", code)}
    assert unknown <= OF_TESTS
