"""Stage ``doctor``: the checks of ``cppo-verl doctor``, a row each; only what a run would not survive fails."""

from cppo_verl.doctor.examine import examine
from cppo_verl.doctor.inputs import ask
from cppo_verl.doctor.verdicts import FAIL


def test_machine(setting, table):
    for finding in examine(ask(None, None)):
        said = "; ".join(finding.text.splitlines())
        if finding.verdict in ("ok", FAIL):
            table.equal(finding.title, finding.verdict, "ok", note=said)
        else:
            table.noted(finding.title, finding.verdict, note=said)
