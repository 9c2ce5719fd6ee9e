"""The laws of the house, read from the source without running it.

Who may import whom is the table in `ROOMS`; a room that wants more must change the table, in the open. The checker
works on source text, so that the first tests here can show it a violation and see it caught.
"""
import ast
import importlib
import pathlib
import re
import tomllib
import types
import warnings

from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parents[1]

# room -> what it may import from vlm_jax, besides itself
ROOMS = {
    "models": [],
    "data": ["models.tokens"],
    "objectives": ["models"],
    "weights": ["models", "data"],
    "training": ["models", "objectives", "data", "weights"],
    "inference": ["models", "data", "weights"],
    "evals": ["models", "data", "weights", "inference"],
    "reports": [],
}
OUTSIDE = {"configs", "experiments", "tests"}  # stand on vlm_jax; it never stands on them
# A model file knows no trainer, no config library and no data library.
NOT_IN_MODELS = {"optax", "orbax", "ml_collections", "absl", "grain", "tensorflow_datasets", "tensorflow", "PIL", "tokenizers"}
# Token counts are plain integers: the data side computes them without JAX.
NOT_IN_TOKENS = NOT_IN_MODELS | {"jax", "jaxlib", "flax"}

# Names that old code and old tutorials use. Some still work today; the others are found missing by
# `test_every_jax_name_exists_in_the_installed_version`, which this list serves as examples.
LEGACY = [
    "jax.pmap", "jax.tree_map", "jax.tree_multimap", "jax.xla_computation", "jax.device_put_sharded",
    "jax.device_put_replicated", "jax.experimental.shard_map", "jax.experimental.pjit", "jax.experimental.maps",
    "jax.experimental.host_callback", "jax.interpreters", "jax.linear_util", "jax.config.config", "jax.random.KeyArray",
    "jax._src", "flax.optim", "flax.training.checkpoints",
]


def imports(source: str, module: str, is_package: bool = False) -> list[tuple[int, str]]:
    """Every (line, absolute dotted name) that `source` imports, wherever in the file, as the module called `module`.

    `from a.b import c` gives `a.b.c`, since c may be a module; relative imports are made absolute:

        >>> imports("from ..models import vit", "vlm_jax.weights.tables")
        [(1, 'vlm_jax.models.vit')]
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(above + [node.module] * bool(node.module))
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def within(name: str, parents) -> bool:
    """Whether the dotted `name` is one of `parents` or lies inside one."""
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def forbidden_imports(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports of a file in a room that the table does not allow, one sentence each."""
    room = module.split(".")[1]
    allowed = [f"vlm_jax.{name}" for name in [room, *ROOMS[room]]]
    if within(module, ["vlm_jax.models.tokens"]):
        foreign = NOT_IN_TOKENS
    else:
        foreign = NOT_IN_MODELS if room == "models" else set()
    return [
        f"{module}, line {line}, imports {name}"
        for line, name in imports(source, module, is_package)
        if within(name, OUTSIDE | foreign) or (within(name, ["vlm_jax"]) and not within(name, allowed))
    ]


def used_names(source: str) -> set[str]:
    """The dotted library names that a file imports or reaches through its imports: `jnp.where` -> `jax.numpy.where`."""
    tree = ast.parse(source)
    names, meaning = {name for _, name in imports(source, "here.here") if not name.endswith("*")}, {}
    for node in ast.walk(tree):
        for alias in getattr(node, "names", []) if isinstance(node, (ast.Import, ast.ImportFrom)) else []:
            if isinstance(node, ast.Import):
                meaning[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else alias.name.split(".")[0]
            elif node.level == 0:
                meaning[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        attributes = []
        while isinstance(node, ast.Attribute):
            attributes.insert(0, node.attr)
            node = node.value
        if attributes and isinstance(node, ast.Name) and node.id in meaning:
            names.add(".".join([meaning[node.id], *attributes]))
    return names


def python_files(*folders: str) -> list[pathlib.Path]:
    folders = folders or ("vlm_jax", "configs", "experiments", "tests", "colab")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def why_missing(name: str) -> str | None:
    """Why a dotted `jax` name cannot be relied on in the installed version: absent or deprecated. None if it can.

    Stops where modules end: what a class or a function carries is not looked at.
    """
    parts = name.split(".")
    here = importlib.import_module(parts[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        for end, part in enumerate(parts[1:], start=2):
            if not isinstance(here, types.ModuleType):
                return None
            try:
                here = getattr(here, part) if hasattr(here, part) else importlib.import_module(".".join(parts[:end]))
            except (ImportError, DeprecationWarning) as error:
                return str(error)
    return None


# --- the checker, shown what it must catch


def test_relative_and_nested_imports_are_resolved():
    source = "from . import attention\nfrom ..data import records as r\ndef f():\n    import vlm_jax.weights.loader\n"
    assert imports(source, "vlm_jax.models.vit") == [
        (1, "vlm_jax.models.attention"), (2, "vlm_jax.data.records"), (4, "vlm_jax.weights.loader")]
    assert imports("from . import attention", "vlm_jax.models", is_package=True) == [(1, "vlm_jax.models.attention")]


def test_the_checker_catches_each_kind_of_violation():
    def caught(source, module="vlm_jax.data.pipeline"):
        return [line.rsplit(" ", 1)[1] for line in forbidden_imports(source, module)]

    allowed = "import jax\nfrom . import records\nfrom ..models.tokens import count\nfrom vlm_jax.models import tokens\n"
    assert caught(allowed) == []
    assert caught("from vlm_jax.models import vit, tokens") == ["vlm_jax.models.vit"]
    assert caught("from ..models import vit") == ["vlm_jax.models.vit"]
    assert caught("from .. import models") == ["vlm_jax.models"]
    assert caught("from vlm_jax.models import *") == ["vlm_jax.models.*"]
    assert caught("def f():\n    from vlm_jax import train") == ["vlm_jax.train"]
    assert caught("import vlm_jax") == ["vlm_jax"]
    assert caught("from configs import quickstart") == ["configs.quickstart"]
    assert caught("import vlm_jax.models_extra") == ["vlm_jax.models_extra"]

    assert caught("import flax.linen as nn, optax", "vlm_jax.models.vit") == ["optax"]
    assert caught("from ml_collections import ConfigDict", "vlm_jax.models.vit") == ["ml_collections.ConfigDict"]
    assert caught("import math\nimport jax.numpy as jnp", "vlm_jax.models.tokens") == ["jax.numpy"]
    assert caught("from vlm_jax.models import vit", "vlm_jax.reports.html") == ["vlm_jax.models.vit"]
    assert caught("from vlm_jax import evals", "vlm_jax.training.loop") == ["vlm_jax.evals"]


def test_names_are_followed_through_their_aliases():
    source = "import jax.numpy as jnp, os\nfrom jax import tree_map as tm\njnp.where(1).at[0]\nos.path.join\n"
    assert used_names(source) == {"jax.numpy", "os", "jax.tree_map", "jax.numpy.where", "os.path", "os.path.join"}


def test_removed_and_deprecated_names_are_noticed():
    for name in ["jax.tree_map", "jax.experimental.maps", "jax.experimental.pjit.pjit", "jax.numpy.DeviceArray.x"]:
        assert why_missing(name), name
    for name in ["jax.tree.map", "jax.numpy.float32", "jax.config.update", "jax.experimental.multihost_utils"]:
        assert why_missing(name) is None, name


# --- the house


def test_rooms_import_only_what_the_table_allows():
    wrong = []
    for room in ROOMS:
        for path in python_files(f"vlm_jax/{room}"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            wrong += forbidden_imports(path.read_text(), ".".join(parts[:-1] if is_package else parts), is_package)
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_the_table():
    rooms = {path.parent.name for path in (ROOT / "vlm_jax").glob("*/__init__.py")}
    assert rooms <= set(ROOMS), f"not in the table: {sorted(rooms - set(ROOMS))}"


def test_the_package_never_stands_on_what_stands_on_it():
    wrong = [f"{path.name}, line {line}, imports {name}" for path in (ROOT / "vlm_jax").glob("*.py")
             for line, name in imports(path.read_text(), f"vlm_jax.{path.stem}") if within(name, OUTSIDE)]
    assert not wrong, "\n".join(wrong)


def test_every_file_compiles_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in python_files():
            compile(path.read_text(), str(path), "exec")


def test_every_file_is_under_400_lines():
    long = {str(path.relative_to(ROOT)): n for path in python_files() if (n := len(path.read_text().splitlines())) >= 400}
    assert not long, long


def test_no_legacy_names():
    wrong = [f"{path.relative_to(ROOT)} uses {name}" for path in python_files()
             for name in sorted(used_names(path.read_text())) if within(name, LEGACY)]
    assert not wrong, "\n".join(wrong)


def test_every_jax_name_exists_in_the_installed_version():
    used = {name: path for path in python_files() for name in used_names(path.read_text()) if within(name, ["jax"])}
    wrong = [f"{used[name].relative_to(ROOT)} uses {name}: {why}" for name in sorted(used) if (why := why_missing(name))]
    assert not wrong, "\n".join(wrong)


# --- the packaging


def requirements(lines) -> list[Requirement]:
    return [Requirement(line) for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_dependencies_are_read_from_requirements_txt():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "dependencies" in pyproject["project"]["dynamic"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}


def test_every_requirement_is_pinned_to_a_version_it_allows():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = requirements((ROOT / "requirements.txt").read_text().splitlines() + extras["test"] + extras["peer"])
    pins = requirements((ROOT / "constraints.txt").read_text().splitlines())
    for python in ["3.11", "3.12", "3.13"]:
        pinned = {canonical(pin.name): pin for pin in pins if not pin.marker or pin.marker.evaluate({"python_version": python})}
        for want in wanted:
            version = next(iter(pinned[canonical(want.name)].specifier)).version
            assert want.specifier.contains(version), f"{want} on Python {python}, pinned to {version}"


def test_the_makefile_knows_the_extras():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    known = re.search(r"^KNOWN := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    assert sorted(known + ["test"]) == sorted(extras)
