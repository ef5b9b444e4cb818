"""The conformance kit: plays the server's side of the worker protocol against any worker, scenario by scenario."""

from millstream.conformance.rules import RULES, Violation
from millstream.conformance.run import PATIENCE_S, Outcome, play
from millstream.conformance.scenario import ALWAYS, Scenario
from millstream.conformance.scenarios import SCENARIOS

__all__ = ["ALWAYS", "PATIENCE_S", "RULES", "SCENARIOS", "Outcome", "Scenario", "Violation", "play"]
