"""The public names: complete, sorted, and imported on first use only."""

import ast
import inspect
import pydoc
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import prunetrain
from prunetrain.errors import PruneTrainError
from prunetrain.graph import layergraph, load, parse, render, trace
from prunetrain.library import prune, pruner, train
from prunetrain.training import events, prediction, run

TOP = Path(__file__).parent.parent
HOMES = {
    "Guess": prediction.Guess,
    "LayerGraph": layergraph.LayerGraph,
    "Observer": events.Observer,
    "Outcome": run.Outcome,
    "Prediction": prediction.Prediction,
    "PruneTrain": pruner.PruneTrain,
    "PruneTrainError": PruneTrainError,
    "Reconfigured": pruner.Reconfigured,
    "load_network": load.load_network,
    "parse": parse.parse,
    "predict": prediction.predict,
    "prune": prune.prune,
    "render": render.render,
    "trace": trace.trace,
    "train": train.train,
}


def test_all_is_complete_and_sorted() -> None:
    assert prunetrain.__all__ == sorted(HOMES)
    for name, value in HOMES.items():
        assert getattr(prunetrain, name) is value
    assert dir(prunetrain) == sorted([*prunetrain.__all__, "__doc__", "__version__"])


def test_all_has_what_a_type_checker_sees() -> None:
    (guarded,) = (node for node in ast.parse(Path(prunetrain.__file__).read_text()).body if isinstance(node, ast.If))
    seen = [name.name for node in guarded.body if isinstance(node, ast.ImportFrom) for name in node.names]
    assert ast.unparse(guarded.test) == "TYPE_CHECKING"
    assert sorted(seen) == prunetrain.__all__


@pytest.mark.parametrize("name", prunetrain.__all__)
def test_help_reads_well(name: str) -> None:
    """A public name says what it is, what its arguments mean and what can go wrong; so do a class's own public methods."""
    value = getattr(prunetrain, name)
    assert (value.__doc__ or "").strip()
    functions = [value] if inspect.isfunction(value) else [one for key, one in vars(value).items() if key[0] != "_" and callable(one)]
    for function in functions:
        text = inspect.getdoc(function) or ""
        assert text.partition("\n")[0].endswith((".", ":")), function.__qualname__
        if "raise " in inspect.getsource(function):
            assert "Raises:" in text, function.__qualname__
    assert name in pydoc.render_doc(value)


def test_star_import() -> None:
    names: dict[str, object] = {}
    exec("from prunetrain import *", names)
    assert set(names) - {"__builtins__"} == set(HOMES)


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="module 'prunetrain' has no attribute 'nothing'"):
        _ = prunetrain.nothing


def test_version_is_that_of_the_project() -> None:
    assert prunetrain.__version__ == tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize(
    "code",
    [
        "import prunetrain; prunetrain.parse; prunetrain.render; prunetrain.load_network; prunetrain.LayerGraph",
        "from prunetrain.methods import names; names()",
        "from prunetrain.commands import main; main(['--help'], standalone_mode=False)",
        "from prunetrain.commands import main; main(['train', '--help'], standalone_mode=False)",
        "from prunetrain.commands import main; main(['flatten', '--help'], standalone_mode=False)",
        "from prunetrain.commands import main; main(['inspect', NET, NET, '--json'], standalone_mode=False)",
        "from prunetrain.commands import main; main(['report', '--help'], standalone_mode=False)",
        "from prunetrain.commands import main; main(['study', '--help'], standalone_mode=False)",
        "import prunetrain.report.page",
    ],
)
def test_no_torch_until_it_is_needed(code: str, tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        '"""Input 1x2x2."""\n\nfrom torch import Tensor, nn\nfrom torch.nn import functional as F\n\n\nclass Net(nn.Module):\n'
        "    def __init__(self) -> None:\n        super().__init__()\n        self.conv1 = nn.Conv2d(1, 2, kernel_size=1)\n\n"
        "    def forward(self, x: Tensor) -> Tensor:\n        return F.relu(self.conv1(x))\n"
    )
    program = f"import sys; NET = {str(net)!r}\n{code}\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], cwd=TOP, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
