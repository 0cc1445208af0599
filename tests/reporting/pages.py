"""Pages as a reader's browser parses them, and the command line that writes them."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

from cppo_verl.cli.main import main


class Page(HTMLParser):
    """Checks nesting, collects ids, references and attributes."""

    VOID = {"meta", "link", "br", "img", "input", "hr"}

    def __init__(self, file: Path):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str | None] = []
        self.references: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self.text = " ".join(self.text.split())
        assert self.open == [] and len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes {self.open[-1:] or 'nothing'}"

    def handle_data(self, data):
        self.text += data

    def attributes(self, wanted: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == wanted]

    def drawings(self) -> list[str]:
        """What the drawings say to those who do not see them; all are made for phones and screen readers."""
        found = [attributes for attributes in self.attributes("svg") if attributes.get("class") == "plot"]
        assert all(a["role"] == "img" and len(str(a["aria-label"])) > 40 and "width" not in a for a in found)
        return [str(attributes["aria-label"]) for attributes in found]

    def check_self_contained(self) -> None:
        """It refers to its own parts alone and runs nothing."""
        assert all(reference.startswith("#") and reference[1:] in self.ids for reference in self.references)
        assert "http" not in self.source and "@import" not in self.source and "//" not in self.source
        assert not {"script", "link", "iframe", "image", "img"} & {tag for tag, _ in self.tags}


def status(*arguments: object) -> int:
    """Exit status of ``cppo-verl report``."""
    return main(["report", *map(str, arguments)])


def reported(*arguments: object) -> Path:
    """The report of the command line; its directory is the value of --out, else the run's own."""
    assert status(*arguments) == 0
    named = "--out" in arguments
    return Path(str(arguments[arguments.index("--out") + 1] if named else arguments[0])) / ("" if named else "report")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
