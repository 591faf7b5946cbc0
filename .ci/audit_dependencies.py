"""Ask the OSV database, through pip-audit, for known vulnerabilities of what an environment holds.

Fails for one that a newer version mends. One without a mended version, and a database that can't be reached, are said
and fail nothing: neither is a reason to stop every change.

Usage: python .ci/audit_dependencies.py <pip-audit> <site-packages>
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

TIMEOUT_S = 300
_OUT_OF_REACH = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "ServiceError")


def main(pip_audit: str, folder: str, *options: str) -> int:
    """Print what is known; the exit status."""
    command = [pip_audit, "-s", "osv", "--path", folder, "-f", "json", "--progress-spinner", "off", "--skip-editable"]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError:
        return _nothing_audited("pip-audit is not installed")
    except subprocess.TimeoutExpired:
        return _nothing_audited(f"the OSV database took longer than {TIMEOUT_S} s")
    try:
        report = json.loads(done.stdout)
    except ValueError:
        if any(sign in done.stderr for sign in _OUT_OF_REACH):
            return _nothing_audited("the OSV database can't be reached from here")
        print(f"dependency audit: pip-audit failed: {done.stderr[-2000:]}")
        return 1
    lines, num_mended = judge(report)
    print("\n".join(lines))
    return 1 if num_mended else 0


def _nothing_audited(reason: str) -> int:
    print(f"dependency audit: NOTHING WAS AUDITED: {reason}")
    return 0


def judge(report: dict[str, Any]) -> tuple[list[str], int]:
    """Lines to print, and how many vulnerabilities have a version without them."""
    audited = [entry for entry in report["dependencies"] if "vulns" in entry]
    skipped = [entry["name"] for entry in report["dependencies"] if "vulns" not in entry]
    lines, num_mended = [f"dependency audit: {len(audited)} packages audited, {len(skipped)} could not be"], 0
    if skipped:
        lines.append(f"  not audited: {', '.join(sorted(skipped))}")
    for entry in audited:
        for found in entry["vulns"]:
            versions = found["fix_versions"]
            advice = f"upgrade to {' or '.join(versions)}" if versions else "no version without it yet"
            lines.append(f"  {entry['name']} {entry['version']}: {found['id']}, {advice}")
            num_mended += bool(versions)
    return lines, num_mended


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
