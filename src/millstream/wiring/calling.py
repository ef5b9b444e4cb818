"""What workers report, and the agents that the server calls itself."""

from millstream.adapters.agents import AgentCaller
from millstream.application.advancing import Advancing
from millstream.application.call_ports import Credential
from millstream.application.calling import Calling
from millstream.application.calls import Calls
from millstream.application.engine.pool import Pool
from millstream.application.reporting import Reporting
from millstream.config import Settings
from millstream.wiring.core import Core


def make_reporting(core: Core, advancing: Advancing) -> Reporting:
    """What takes the reports of workers, and of calls."""
    stores = core.stores
    return Reporting(
        core.engine, core.catalogs, core.referring, stores.maintenance, stores.reads, advancing, core.notes
    )


def make_calling(core: Core, reporting: Reporting) -> Calling:
    """The worker within the server."""
    settings = core.settings
    caller = AgentCaller(core.networks, settings.agent_answer_bytes, _credentials(settings))
    calls = Calls(caller, reporting, core.referring, core.engine.clock, settings.max_payload_bytes)
    pool = Pool(settings.agent_calls, settings.agent_calls_per_tenant)
    registry, worker = core.stores.registry, f"server {core.server}"
    return Calling(core.engine, registry, calls, core.peers, worker, pool, settings.drain_timeout_s)


def _credentials(settings: Settings) -> list[Credential]:
    """What agents are sent to know who calls."""
    return [
        Credential(each.tenant, each.origin, each.header, each.value.get_secret_value())
        for each in settings.agent_credentials
    ]
