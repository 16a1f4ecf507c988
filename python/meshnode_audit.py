"""Audits a transparency log: python3 python/meshnode_audit.py [--genesis FILE] [--json] DIR.

What it does is in the package of the same name, which Python finds before this file."""

import sys

from meshnode_audit.cli import main

if __name__ == "__main__":
    sys.exit(main())
