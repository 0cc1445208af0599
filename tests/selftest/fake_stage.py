"""A stage for the tests of the session: what it does is in its options."""

import os
import subprocess
import sys
import time


def test_stage(setting, table):
    table.equal("first row", 1, 1)
    match setting.options["do"]:
        case "raise":
            table.at_most("gap", 0.3, 0.2, 0.1, unit="m")
            raise ZeroDivisionError("half of nothing")
        case "die":
            print("last words Error: out of yarn", flush=True)
            os._exit(9)
        case "hang":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            time.sleep(600)
