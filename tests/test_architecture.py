"""Rules of docs/architecture.md: which module may import which, and where some lines live."""

import ast
import itertools
import re

import pytest
from conftest import ROOT

PACKAGE = ROOT / "simsiam_tf"

# The table of docs/architecture.md, from the top down: a module may import from its own row and
# from those above it.
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text()
LAYERS = [
    re.findall(r"`([\w.]+)`", row)
    for row in re.findall(r"^\| \d+ \| ([^|]+) \|", DOCUMENT, re.MULTILINE)
]
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py" or path.parent.name == "methods"
)


def layer_of(module):
    layers = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    names = [name for name in layers if module == name or module.startswith(f"{name}.")]
    assert names, f"{module} is in no layer of docs/architecture.md"
    return layers[max(names, key=len)]


def source_of(module):
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text()


def imports_of(module):
    """The modules of the package that a module imports, anywhere in it. Not the package itself."""
    found = set()
    for node in ast.walk(ast.parse(source_of(module))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("simsiam_tf"):
            base = node.module.removeprefix("simsiam_tf").strip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".strip(".")
                found.add(name if (name in MODULES or f"{name}.__init__" in MODULES) else base)
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("simsiam_tf.")
                for alias in node.names
                if alias.name.startswith("simsiam_tf.")
            }
    return found - {""}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_own_layer_and_those_above(module):
    for imported in imports_of(module):
        assert layer_of(imported) <= layer_of(module), f"{module} imports {imported}"


def test_no_modules_import_each_other_in_a_circle():
    left = {module: imports_of(module) & set(MODULES) for module in MODULES}
    while ready := [module for module, needed in left.items() if not needed & left.keys()]:
        for module in ready:
            del left[module]
    assert not left, f"in a circle, or above one: {sorted(left)}"


def test_the_layers_of_the_document_exist():
    assert len(LAYERS) > 5
    for name in itertools.chain(*LAYERS):
        path = PACKAGE / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), name


def test_the_rule_sees_imports():
    assert "schema" in imports_of("flags")
    assert {"runs.checkpoints", "methods.build"} <= imports_of("training.pretrain")


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name.startswith(("data", "models"))]
)
def test_data_and_models_do_not_know_each_other(module):
    other = "models" if module.startswith("data") else "data"
    assert not [name for name in imports_of(module) if name.split(".")[0] == other]


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("evaluation")])
def test_evaluation_takes_an_encoder_never_a_method(module):
    assert not [name for name in imports_of(module) if name.startswith("methods")]


@pytest.mark.parametrize("module", ["export.formats", "export.saved_model"])
def test_export_takes_an_encoder_and_knows_no_training(module):
    assert not [name for name in imports_of(module) if name.startswith(("methods", "training"))]


def test_flags_imports_only_the_schema_the_recipes_and_the_terminal():
    assert imports_of("flags") == {"recipes", "schema", "terminal"}


LIGHT = ["schema", "network_names", "config", "recipes", "paper.scales", "paper.tables"]


@pytest.mark.parametrize("module", LIGHT)
def test_settings_and_tables_need_nothing_but_the_standard_library(module):
    roots = set()
    for node in ast.walk(ast.parse(source_of(module))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(node.module.split(".")[0])
    standard = {"ast", "collections", "dataclasses", "enum", "math", "os", "re", "typing"}
    assert roots <= standard | {"simsiam_tf"}
    assert imports_of(module) <= set(LIGHT)


@pytest.mark.parametrize(
    ("pattern", "modules"),
    [
        (r"\bFLAGS\b", {"flags"}),
        (r"MirroredStrategy\(", {"distribution.devices"}),
        (r"all_gather\(", {"distribution.workers"}),
        (r"all_reduce\(", {"distribution.collectives"}),
        (r"tfds\.builder", {"data.tfds_sets"}),
        (r"read_file", {"data.folders", "data.lists", "detection.voc"}),
        (r"GradientTape", {"methods.base", "evaluation.linear", "evaluation.finetune"}),
        (r"/ 256$", {"optimization.schedules"}),
        # What TensorFlow and Keras keep to themselves may vanish in any release.
        (r"tensorflow\.python|keras\.src|__internal__|_var_key", {"distribution.process_state"}),
    ],
)
def test_a_line_lives_in_its_module(pattern, modules):
    found = {module for module in MODULES if re.search(pattern, source_of(module), re.MULTILINE)}
    assert found == modules


def test_only_methods_stop_gradients():
    found = [module for module in MODULES if "stop_gradient(" in source_of(module)]
    assert {module.split(".")[0] for module in found} == {"methods"}


def unannotated(tree):
    """The public functions and methods of a module that lack a type, `__init__` included."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    bodies = [("", tree.body)] + [
        (f"{node.name}.", node.body) for node in classes if not node.name.startswith("_")
    ]
    for prefix, body in bodies:
        for node in body:
            if not isinstance(node, ast.FunctionDef):
                continue
            if node.name.startswith("_") and node.name != "__init__":
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments = [one for one in arguments if one.arg not in ("self", "cls")]
            is_typed = all(one.annotation for one in arguments) and node.returns is not None
            if not is_typed:
                yield f"{prefix}{node.name}"


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_and_methods_have_types(module):
    assert list(unannotated(ast.parse(source_of(module)))) == []


def test_the_rule_sees_what_lacks_a_type():
    source = "class A:\n def f(self, x): ...\n def _g(self, x): ...\n def h(self) -> int: ...\n"
    assert list(unannotated(ast.parse(source))) == ["A.f"]
