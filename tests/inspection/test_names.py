"""Whatever a run's folder is called, its page is written and names it."""

import html
import re
import shutil

from cppo_verl.cli.main import main
from cppo_verl.recording import files
from tests.inspection.records import step_record
from tests.launch.test_quoting import odd_names


def test_any_run_directory_is_inspected(tmp_path):
    made = files.write(tmp_path, step_record([["a", "b"]]))
    for name in sorted({name for name in odd_names(100) if name.strip(".")}):
        run = tmp_path / "runs" / name
        (run / made.parent.name).mkdir(parents=True)
        shutil.copy(made, run / made.parent.name)
        assert main(["inspect", str(run)]) == 0
        page = (run / "report/inspect.html").read_text(encoding="utf-8")
        title = re.search(r"<title>(.*?)</title>", page, re.S)
        assert title and html.unescape(title[1]) == f"{name}: token by token"
