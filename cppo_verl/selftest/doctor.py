"""Stage ``doctor``: the checks of ``cppo-verl doctor``, a row each."""

from collections.abc import Iterator

from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.table import Row, equal


def measure(setting: Setting) -> Iterator[Row]:
    """The stage's rows."""
    from cppo_verl.cli import doctor

    for title, check in doctor.CHECKS.items():
        try:
            verdict, lines = "ok", list(check())
        except Exception as error:  # noqa: BLE001 - every failure is a finding
            verdict, lines = (
                "FAIL",
                [f"{'' if isinstance(error, doctor.Trouble) else type(error).__name__ + ': '}{error}"],
            )
        yield equal(title, verdict, "ok", note="; ".join(lines))
