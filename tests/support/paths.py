"""Where the tests find the files of the checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
NETWORKS = FIXTURES / "networks"
PEERS = FIXTURES / "peers"
RULES = ROOT / "rules"
