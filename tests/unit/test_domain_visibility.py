"""Visibility: the matrix of who sees what, and when."""

import pytest

from millstream.domain.artifacts import Reader, Visibility, delay_us, foreign_tenant, settled, visible

NOBODY = Reader("t")
AGENT = Reader("t", "a")
CLEARED = Reader("t", "", frozenset({"x", "y", "z"}))
HALF = Reader("t", "a", frozenset({"x"}))
STRANGER = Reader("u", "a", frozenset({"x", "y"}))

PUBLIC = Visibility()
PRIVATE = Visibility("Private", agents=("a", "b"))
NO_ONE = Visibility("Private")
LABELLED = Visibility("Labelled", required_labels=("x", "y"))
UNLABELLED = Visibility("Labelled")
OURS = Visibility("Tenant")
THEIRS = Visibility("Tenant", tenant_id="u")

READERS = {"nobody": NOBODY, "agent": AGENT, "cleared": CLEARED, "half": HALF, "stranger": STRANGER}


@pytest.mark.parametrize(
    ("visibility", "who"),
    [
        (PUBLIC, {"nobody", "agent", "cleared", "half", "stranger"}),
        (PRIVATE, {"agent", "half", "stranger"}),
        (NO_ONE, set()),
        (LABELLED, {"cleared", "stranger"}),
        (UNLABELLED, {"nobody", "agent", "cleared", "half", "stranger"}),
        (OURS, {"nobody", "agent", "cleared", "half"}),
        (THEIRS, {"stranger"}),
        (Visibility("Unheard-of"), set()),
    ],
)
def test_the_matrix(visibility: Visibility, who: set[str]) -> None:
    """FL-6: each kind for each reader; what is not known is not shown."""
    assert {name for name, reader in READERS.items() if visible(visibility, reader, "t", 0)} == who


@pytest.mark.parametrize(("age_us", "expected"), [(0, False), (9, False), (10, True), (10**15, True)])
def test_after_hides_for_its_time(age_us: int, expected: bool) -> None:
    """FL-6, rule 13: from the very microsecond on."""
    assert visible(Visibility("After", ttl_us=10), NOBODY, "t", age_us) is expected


@pytest.mark.parametrize(("age_us", "who"), [(0, set()), (29, set()), (30, {"agent", "half", "stranger"})])
def test_one_after_follows_another(age_us: int, who: set[str]) -> None:
    """Rule 13: their times add up, then what stays decides."""
    nested = Visibility("After", ttl_us=10, then=Visibility("After", ttl_us=20, then=PRIVATE))
    assert {name for name, reader in READERS.items() if visible(nested, reader, "t", age_us)} == who
    assert delay_us(nested) == 30
    assert settled(nested) == PRIVATE


def test_after_without_more_becomes_public() -> None:
    """FL-6: `then` is Public by default."""
    assert settled(Visibility("After", ttl_us=1)) == PUBLIC
    assert delay_us(PUBLIC) == 0


def test_a_visibility_for_another_tenant_is_told_from_one_for_the_own() -> None:
    """FL-6: an artifact goes to no other tenant, so whoever names one is told where."""
    later = Visibility("After", ttl_us=1, then=Visibility("After", ttl_us=1, then=THEIRS))
    assert foreign_tenant(THEIRS, "t") == "tenant_id"
    assert foreign_tenant(later, "t") == "then.then.tenant_id"
    for own in (Visibility(), OURS, Visibility("After", ttl_us=1), later):
        assert foreign_tenant(own, "u") == ""
