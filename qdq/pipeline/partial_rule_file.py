"""The rule file of a budget: the layers that it left in float, with the measured gains."""

from __future__ import annotations

from qdq.pipeline.leave_float_file import LeaveFloatRule, format_leave_float_rule
from qdq.rules.rule import RuleSet
from qdq.sensitivity.partial_result import PartialResult

#: The suffix of the rule file, in the place of the model's suffix.
SENSITIVE_FILE_SUFFIX = ".sensitive.yaml"


def sensitive_yaml(name: str, model: str, result: PartialResult, rules: RuleSet) -> str:
    """Return the rule file that leaves in float the layers of a search's result.

    Passed to --rules with the same sets, and with --guard off, it makes the same plan.
    """
    gains = [f"{layer.node}: {layer.gain_db:.2f} dB" for layer in result.sensitive]
    evidence = (
        f"{result.goal}, measured over {result.samples} samples: {result.int8_snr_db:.2f} dB at "
        f"the outputs with all in INT8, {result.snr_db:.2f} dB with these in float, "
        f"{result.work:.2%} of the multiply-accumulates. Gains: {'; '.join(gains)}."
    )
    rule = LeaveFloatRule(
        name=name,
        says=f"Leave in float what makes most of the error of INT8 in {model}.",
        because="In float, each of these raises the signal-to-noise ratio at the outputs.",
        see="qdq quantize --min-snr, --max-drop or --keep-float",
        evidence=evidence,
        nodes=tuple(layer.node for layer in result.sensitive),
    )
    return format_leave_float_rule(rule, rules)
