"""The two ways through the committer write the same."""

import itertools

from hypothesis import HealthCheck, Phase, given, settings
from tests.engine.database import Postgres
from tests.engine.script import SCRIPTS, Step, stored, world
from tests.engine.world import check_all

_NUMBERS = itertools.count()


@settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(SCRIPTS)
async def test_owner_path_and_locked_path_store_the_same(postgres: Postgres, script: list[Step]) -> None:
    """Architecture: whatever callers and workers do on two servers, in any order, rows and answers are the same."""
    told, rows = [], []
    for owner_path in (True, False):
        async with world(postgres, f"paths_{next(_NUMBERS)}", owner_path) as played:
            await played.play(script)
            await check_all(played.database)
            told.append(played.told)
            rows.append(await stored(played))
    assert told[0] == told[1]
    for table, found in rows[0].items():
        assert found == rows[1][table], table
