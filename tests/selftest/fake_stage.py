"""A stage for the tests of the session: what it does is in its options."""

import os
import subprocess
import sys
import time

from cppo_verl.selftest.setting import StageError
from cppo_verl.selftest.table import at_most, equal, noted


def measure(setting):
    options = setting.options
    counter = setting.out / f"{setting.stage}.count"
    counter.write_text(counter.read_text() + "x" if counter.exists() else "x")
    yield equal("first row", 1, 1, note=f"token {os.environ.get('CANARY_TOKEN', '')} in {os.path.expanduser('~')}/x")
    match options.get("do", "hold"):
        case "fail":
            yield at_most("gap", 0.3, 0.2, 0.1, "m")
        case "stop":
            raise StageError("it has no bread")
        case "raise":
            raise ZeroDivisionError("half of nothing")
        case "die":
            print("last words Error: out of yarn", flush=True)
            os._exit(9)
        case "hang":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            time.sleep(600)
    yield noted("last row", 2)
