"""The records that commands print as JSON or write as JSON files."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from qdq.calibration.scales import Scales
from qdq.cli import (
    check_codes,
    check_printers,
    check_statistics,
    explain,
    facts,
    fleet,
    probe,
    test,
)
from qdq.cli.rule_details import RuleDetails
from qdq.pipeline.float_sensitivity import FloatSensitivity
from qdq.pipeline.sensitivity_analysis import Sensitivity
from qdq.planning.decisions import Plan
from qdq.planning.plan_diff import PlanDiff
from qdq.quantized.inspection import Inspection
from qdq.quantized.pair_diff import PairDiff
from qdq.reports.report import Report
from qdq.rules.rule import RuleSet

#: The record of each command's JSON.
JSON_RECORDS: Mapping[str, type[msgspec.Struct]] = {
    "qdq quantize": Report,
    "qdq quantize --out-dir": fleet.FleetAnswer,
    "qdq validate": Report,
    "qdq plan": Plan,
    "qdq plan --diff": PlanDiff,
    "qdq calibrate -o FILE": Scales,
    "qdq explain": explain.ExplainAnswer,
    "qdq check": check_printers.CheckAnswer,
    "qdq check --statistics": check_statistics.CheckStatistics,
    "qdq check --codes": check_codes.Codes,
    "qdq inspect": Inspection,
    "qdq diff": PairDiff,
    "qdq sensitivity": Sensitivity,
    "qdq sensitivity --float": FloatSensitivity,
    "qdq probe": probe.ProbeAnswer,
    "qdq test": test.TestAnswer,
    "qdq facts": facts.FactsAnswer,
    "qdq rules": RuleSet,
    "qdq rules show": RuleDetails,
}
