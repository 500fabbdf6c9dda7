"""Looks up the packages of a lock in the OSV database of vulnerabilities, by pip-audit of this environment.

Exit 0: none is known, or the database cannot be reached, which one line says. Exit 1: one is known, or the lock cannot
be read. Usage: audit.py LOCK [options of pip-audit]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Names of requests' errors, and statuses of proxies that let nothing through.
UNREACHABLE = re.compile(
    r"(Connection|Proxy|SSL|\w*Timeout)Error|\w+Timeout\b|\b(403|407|429|50[234])\b[^\n]*\bfor url"
)


def main(lock: str, *options: str) -> int:
    """Audits the lock and prints a line for each vulnerability, or one line if there is none to print."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        words = ["-r", lock, "--no-deps", "--disable-pip", "--progress-spinner", "off", "-s", "osv", "--timeout", "20"]
        words += ["--format", "json", "--output", str(report), *options]
        done = subprocess.run([sys.executable, "-m", "pip_audit", *words], text=True, capture_output=True)
        if report.exists():
            found = json.loads(report.read_text())["dependencies"]
            return _report(lock, [package for package in found if "vulns" in package])
    reason = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
    if UNREACHABLE.search(done.stderr):
        print(f"audit skipped: the database of vulnerabilities cannot be reached from here ({reason[:200]})")
        return 0
    print(f"audit failed: {reason}", file=sys.stderr)
    return 1


def _report(lock: str, packages: list[dict]) -> int:
    faulty = [package for package in packages if package["vulns"]]
    for package in faulty:
        for fault in package["vulns"]:
            fixed = f"fixed in {', '.join(fault['fix_versions'])}" if fault["fix_versions"] else "not fixed yet"
            print(f"{package['name']} {package['version']}: {fault['id']}, {fixed}", file=sys.stderr)
    if faulty:
        return 1
    print(f"No known vulnerability in the {len(packages)} packages of {lock}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
