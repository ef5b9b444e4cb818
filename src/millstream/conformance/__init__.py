"""The conformance kit: plays the server's side of the worker protocol against any worker, scenario by scenario."""

from millstream.conformance.rules import RULES, Violation
from millstream.conformance.run import PATIENCE_S, Outcome, detect, play
from millstream.conformance.scenario import ALWAYS, TRANSPORTS, Scenario
from millstream.conformance.scenarios import SCENARIOS

__all__ = [
    "ALWAYS",
    "PATIENCE_S",
    "RULES",
    "SCENARIOS",
    "TRANSPORTS",
    "Outcome",
    "Scenario",
    "Violation",
    "detect",
    "play",
]
