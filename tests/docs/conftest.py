from tests.deploy.exports import *  # noqa: F403 (fixtures)
from tests.tiny_fixtures import *  # noqa: F403 (fixtures)
