"""Stage ``doctor``: the checks of ``cppo-verl doctor``, a row each; only what a run would not survive fails."""

from collections.abc import Iterator

from cppo_verl.doctor.examine import examine
from cppo_verl.doctor.inputs import ask
from cppo_verl.doctor.verdicts import FAIL
from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.table import Row, equal, noted


def measure(setting: Setting) -> Iterator[Row]:
    """The stage's rows."""
    for finding in examine(ask(setting.model or None, None)):
        said = "; ".join(finding.text.splitlines())
        if finding.verdict in ("ok", FAIL):
            yield equal(finding.title, finding.verdict, "ok", note=said)
        else:
            yield noted(finding.title, finding.verdict, note=said)
