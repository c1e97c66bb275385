import pytest

from navprune.simulator import cache


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory):
    """One scene cache for all tests and the processes they start, and none of it the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.FOLDER, str(tmp_path_factory.mktemp("scenes")))
        patch.delenv(cache.LIMIT, raising=False)
        yield
