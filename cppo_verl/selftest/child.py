"""``python -m cppo_verl.selftest.child MODULE SETTING ROWS``: one stage in a process of its own.

ROWS is written anew after every row, so that a stage that is killed leaves what it had measured. The exit status is 0
whenever the stage came to its end, good or bad.
"""

import importlib
import json
import sys
import traceback
from pathlib import Path

from cppo_verl import atomic
from cppo_verl.selftest.setting import Setting, StageError
from cppo_verl.selftest.table import Row, judged

UNFINISHED = "the stage did not come to its end"


def main(arguments: list[str]) -> int:
    """Measure and leave the rows."""
    module, text, path = arguments
    setting, rows, reason = Setting.loads(text), [], ""
    try:
        for row in importlib.import_module(module).measure(setting):
            rows.append(row)
            print(row, flush=True)
            save(Path(path), setting.stage, rows, UNFINISHED)
    except StageError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is belongs on the page
        traceback.print_exc(file=sys.stdout)
        reason = f"{type(error).__name__}: {error}"
    save(Path(path), setting.stage, rows, reason)
    return 0


def save(path: Path, stage: str, rows: list[Row], reason: str) -> None:
    """The file is always whole."""
    atomic.write(path, json.dumps(judged(stage, rows, reason=reason).to_json()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
