"""The campaigns of kills and of bad input, in their short form; the long ones are `make campaigns`."""

import subprocess
import sys
from pathlib import Path

from benchmarks import bad_input

ROOT = Path(__file__).parent.parent


def test_campaign_of_bad_input_has_no_fault(tmp_path: Path) -> None:
    tally = bad_input.campaign(tmp_path, 150, seed=1)
    assert tally.inputs == 150 and not tally.faults
    assert tally.endings["2"] > 100


def test_campaign_of_damaged_runs_has_no_fault(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    cases = [case for case in bad_input.run_cases(tmp_path / "cases", trained / "opd") if case.command[0] == "summary"]
    tally = bad_input.Tally()
    for case in cases[::4]:
        bad_input.meet(case, tally)
    assert tally.inputs > 40 and not tally.faults


def test_campaign_of_kills_ends_as_undisturbed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "kills", "--kills", "8", "--only", "calls", "--keep", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 runs resumed and compared, 0 faults" in done.stdout
