"""Every page is in the index, and every link inside the repository leads somewhere, headings included."""

import re
from pathlib import Path

import pytest
import yaml

from tests import ROOT

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    """Without blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def slugs(page: Path) -> set[str]:
    """The anchors that forges make of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).strip().replace(" ", "-") for heading in headings}


LINKS = [(page, target) for page in PAGES for target in LINK.findall(re.sub(r"`[^`\n]*`", "", text_of(page)))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    lost = []
    for target in (target for where, target in LINKS if where == page and not re.match(r"[a-z]+://", target)):
        place, _, anchor = target.partition("#")
        path = (page.parent / place).resolve() if place else page
        if not path.exists() or (anchor and anchor not in slugs(path)):
            lost.append(target)
    assert not lost


def test_the_index_has_every_page():
    listed = {target for page, target in LINKS if page == ROOT / "docs/README.md"}
    assert {page.name for page in PAGES if page.parent.name == "docs"} - {"README.md"} <= listed


def test_forge_and_commits_run_what_the_developers_script_runs():
    script = (ROOT / "run_scripts/test.sh").read_text(encoding="utf-8")
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands and all(command.startswith("bash run_scripts/test.sh") for command in commands)
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    tools = {Path(hook["entry"].split()[0]).name for repo in config["repos"] for hook in repo["hooks"]}
    assert tools == {"ruff", "mypy"} and all(f'"$venv/bin/{tool}"' in script for tool in tools)
