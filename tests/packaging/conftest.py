import tarfile

import pytest

from tests.packaging import builds


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    """The source distribution of a fresh copy of the working tree."""
    folder = tmp_path_factory.mktemp("sdist")
    source = builds.copy_sources(tmp_path_factory.mktemp("clone") / "clone")
    return builds.made(builds.hook("build_sdist", source, folder), folder)


@pytest.fixture
def source(sdist, tmp_path):
    """The sdist unpacked: all that the builds below have."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (folder,) = (tmp_path / "source").iterdir()
    return folder
