"""Workflows, defined and as code, and what moves their runs."""

import functools
from dataclasses import dataclass

from millstream.adapters.values import CelExpressions
from millstream.application.advancing import Advancing
from millstream.application.agents import online_kinds
from millstream.application.children import Children
from millstream.application.code_runs import CodeRuns
from millstream.application.code_workflows import CodeWorkflows
from millstream.application.defining import Defining
from millstream.application.results import Results
from millstream.application.step_values import Evaluator
from millstream.application.workflow_runs import WorkflowRuns
from millstream.application.workflows import Workflows
from millstream.wiring.core import Core


@dataclass(frozen=True, slots=True)
class WorkflowParts:
    """The use cases of workflows and their runs, and the attendant of runs."""

    workflows: Workflows
    code_workflows: CodeWorkflows
    advancing: Advancing
    workflow_runs: WorkflowRuns
    code_runs: CodeRuns


def make_workflows(core: Core) -> WorkflowParts:
    """Have the engine's runs attended."""
    stores, engine, catalogs, ttl_us = core.stores, core.engine, core.catalogs, core.key_ttl_us
    served = functools.partial(online_kinds, engine, catalogs)
    defining = Defining(catalogs, stores.workflows, CelExpressions(), core.peers, served, ttl_us)
    workflows = Workflows(catalogs, defining, stores.workflows, engine.clock.now_us)
    code_workflows = CodeWorkflows(stores.journal, catalogs)
    advancing = Advancing(engine, workflows, stores.reads, Evaluator(CelExpressions(), core.sandbox))
    engine.attend = advancing.look
    results = Results(engine, stores.reads)
    workflow_runs = WorkflowRuns(engine, workflows, code_workflows, advancing, results, ttl_us)
    code_runs = CodeRuns(engine, results, stores.journal, code_workflows, ttl_us)
    advancing.others.append(
        Children(workflows, workflow_runs, catalogs, core.referring, stores.reads, code_runs, engine.limits.max_depth),
    )
    return WorkflowParts(workflows, code_workflows, advancing, workflow_runs, code_runs)
