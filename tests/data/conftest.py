import io
import tarfile

import pytest


@pytest.fixture(scope="session")
def save_tar():
    """save(path, [(name, bytes), ...]): a tar with these members in order, whatever their names."""
    def save(path, members):
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return save
