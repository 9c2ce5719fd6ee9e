"""python tests/bucket.py FOLDER --config FILE --workdir bucket://NAME ...: the training verb with buckets of a kind.

What begins with bucket:// lies below FOLDER and behaves as an object store: no appending, no locks, and a rename is a
copy and a removal. Orbax moves its arrays with a library of its own, which opens no registered scheme: `os.fspath` and
`as_posix` give it the file below FOLDER.
"""

import os
import pathlib
import shutil
import sys

from etils import epath

SCHEME = "bucket:"


@epath.register_path_cls("bucket://")
class BucketPath(epath.abstract_path.Path):
    """bucket://name/key; kept as the relative path bucket:/name/key, so that pathlib joins and splits it."""

    root_folder = ""

    def __str__(self):
        return super().__str__().replace(f"{SCHEME}/", f"{SCHEME}//", 1)

    def __fspath__(self):
        return os.path.join(self.root_folder, *self.parts[1:])

    def as_posix(self):  # Orbax, for its arrays
        return os.fspath(self)

    @property
    def local(self):
        return pathlib.Path(os.fspath(self))

    def _found(self, paths):
        start = len(pathlib.Path(self.root_folder).parts)
        return (type(self)(SCHEME, *path.parts[start:]) for path in paths)

    def exists(self):
        return self.local.exists()

    def is_dir(self):
        return self.local.is_dir()

    def iterdir(self):
        return self._found(self.local.iterdir())

    def listdir(self):
        return list(self.iterdir())

    def glob(self, pattern):
        return self._found(self.local.glob(pattern))

    def rglob(self, pattern):
        return self._found(self.local.rglob(pattern))

    def walk(self, *args, **options):
        raise NotImplementedError

    def expanduser(self):
        return self

    def absolute(self):
        return self

    def resolve(self, strict=False):
        return self

    def open(self, mode="r", encoding=None, errors=None, **_):
        if "a" in mode or "+" in mode:
            raise OSError(f"{self}: objects are written whole")
        return self.local.open(mode, encoding=encoding, errors=errors)

    def stat(self):
        return epath.Path(self.local).stat()

    def mkdir(self, mode=0o777, parents=False, exist_ok=False):
        self.local.mkdir(parents=True, exist_ok=exist_ok)

    def rmdir(self):
        self.local.rmdir()

    def rmtree(self, missing_ok=False):
        shutil.rmtree(self.local, ignore_errors=missing_ok)

    def unlink(self, missing_ok=False):
        self.local.unlink(missing_ok)

    def rename(self, target):
        target = epath.Path(target)
        (shutil.copytree if self.is_dir() else shutil.copyfile)(self.local, os.fspath(target))
        (shutil.rmtree if self.is_dir() else os.remove)(self.local)
        return target

    replace = rename

    def copy(self, dst, overwrite=False):
        if not overwrite and epath.Path(dst).exists():
            raise FileExistsError(dst)
        shutil.copyfile(self.local, os.fspath(dst))
        return epath.Path(dst)


if __name__ == "__main__":
    from vlm_jax import cli, train

    BucketPath.root_folder = sys.argv.pop(1)
    cli.main(train.main)
