"""Every page is in the index, and every link inside the repository leads somewhere, headings included."""

import re
from pathlib import Path

import pytest
import yaml

from tests import ROOT

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def slugs(path: Path) -> set[str]:
    """The anchors that forges make of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).strip().replace(" ", "-") for heading in headings}


def links() -> list[tuple[Path, str]]:
    return [(page, target) for page in PAGES for target in LINK.findall(without_code(page.read_text(encoding="utf-8")))]


@pytest.mark.parametrize(("page", "target"), links(), ids=lambda x: x.name if isinstance(x, Path) else x)
def test_a_link_leads_somewhere(page: Path, target: str):
    if re.match(r"[a-z]+://", target):
        return
    place, _, anchor = target.partition("#")
    path = (page.parent / place).resolve() if place else page
    assert path.exists()
    assert not anchor or anchor in slugs(path)


def test_the_index_has_every_page():
    listed = {target for page, target in links() if page == ROOT / "docs/README.md"}
    assert {page.name for page in PAGES if page.parent.name == "docs"} - {"README.md"} <= listed


# ---- the files of a public project run what the developer's script runs

TEST_SH = (ROOT / "run_scripts/test.sh").read_text(encoding="utf-8")


def test_the_forge_runs_the_same_script():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands and all(command.startswith("bash run_scripts/test.sh") for command in commands)


def test_a_commit_is_looked_at_by_the_same_linters():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    tools = {" ".join(hook["entry"].removeprefix(".venv/bin/").split()[:2]) for hook in hooks}
    assert tools == {"ruff check", "ruff format", "mypy"}
    assert all(f'"$venv/bin/{tool.split()[0]}"' in TEST_SH for tool in tools)
