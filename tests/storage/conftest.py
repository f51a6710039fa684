"""Databases of both kinds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.places import Place


@pytest.fixture
def sqlite_place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "collector.sqlite")
    yield place
    place.close()


@pytest.fixture
def postgres_place(postgres_url: str) -> Iterator[Place]:
    place = Place(postgres_url)
    yield place
    place.close()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture
def both(sqlite_place: Place, postgres_place: Place) -> list[Place]:
    return [sqlite_place, postgres_place]
