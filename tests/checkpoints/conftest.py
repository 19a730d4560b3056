from tests.tiny_fixtures import *  # noqa: F403 (fixtures)
