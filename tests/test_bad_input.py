"""What a user can do wrong: one line on stderr that says what to do, exit code 2, nothing lost and nothing half-written."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from runs import Recorder, invoke, largest_file, settings, write_images

from prunetrain.graph.load import read_graph
from prunetrain.paths import RunPaths
from prunetrain.training.run import start_run

TOP = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images.npz and the run `x` of one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    start_run(settings(write_images(folder / "images.npz"), folder, epochs=1, name="x"), Recorder())
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be damaged, which is also where commands run."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> RunPaths:
    return RunPaths(folder, "x")


def contents() -> dict[Path, bytes | None]:
    """Every file and folder here."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(Path().rglob("*"))}


def refusal(*args: str | Path) -> str:
    """The line that a command ends with. It writes nothing."""
    before = contents()
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1
    assert contents() == before
    return result.stderr.removeprefix("error: ").rstrip("\n")


def test_no_folder_is_named_as_the_home_folder_is_in_shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave the ~ of --output-dir=~/runs to the program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert invoke("flatten", "lenet-300-100", "--output=~/net.py", "--input-shape=1,8,8").exit_code == 0
    assert sorted(map(str, Path().rglob("*"))) == ["home", "home/net.pt", "home/net.py"]


TRAIN = ("train", "--dataset", "npz", "--data-dir", "images.npz", "--model", "lenet-300-100", "--epochs", "1")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("trian",), "unknown command 'trian': did you mean train? Try prunetrain --help"),
        (
            ("train", "--epoch", "3"),
            "unknown option '--epoch': did you mean --epochs? Try prunetrain train --help",
        ),
        (("train", "--learning-rate", "3"), "unknown option '--learning-rate': did you mean --lr? Try prunetrain train --help"),
        (("train", "--batch_size", "3"), "unknown option '--batch_size': did you mean --batch-size? Try prunetrain train --help"),
        (("predict", "x", "--bs", "3"), "unknown option '--bs': did you mean --batch-size? Try prunetrain predict --help"),
        ((*TRAIN, "--model", "resnet21"), "unknown model 'resnet21': did you mean resnet32 or resnet20 or resnet18?"),
        ((*TRAIN, "--dataset", "cifar11"), "unknown dataset 'cifar11': did you mean cifar10 or cifar100?"),
        ((*TRAIN, "--recipe", "digit"), "unknown recipe 'digit': did you mean digits?"),
        ((*TRAIN, "--lasso-step", "proximate"), "unknown lasso-step 'proximate': did you mean proximal?"),
        ((*TRAIN, "--lr", "fast"), "invalid value for '--lr': 'fast' is not a valid float. Try prunetrain train --help"),
        ((*TRAIN, "--lr", "nan"), "lr must be a finite number of at least 0, not nan"),
        ((*TRAIN, "--epochs", "0"), "epochs must be from 1 to 1000000, not 0"),
        ((*TRAIN, "--round-to", "0"), "round-to must be auto or a whole number from 1, not '0'"),
        ((*TRAIN, "--name", "a/b"), "'a/b' cannot name a run: "),
        ((*TRAIN, "--name", "..", "--resume", "auto"), "'..' cannot name a run: "),
        ((*TRAIN, "-b", "321"), "npz has 320 training images, too few for a batch of 321: pass --batch-size 320 or less"),
        ((*TRAIN, "--model", "alexnet"), "alexnet needs images of at least 15x15 (got 1x8x8): choose "),
        ((*TRAIN, "--model", "resnet18-cifar", "-b", "1"), "--batch-size 1 is too small for resnet18-cifar, "),
        ((*TRAIN, "--device", "gpu"), "device 'gpu' is not on this machine: use auto, cpu, or cuda where there is a GPU"),
        ((*TRAIN, "--device", "meta"), "device 'meta' is not on this machine: "),
        ((*TRAIN, "--device", "cuda:99"), "device 'cuda:99' is not on this machine: "),
        ((*TRAIN, "--device", "cpu", "--amp", "float16"), "--amp float16 needs a GPU: use --amp bfloat16 on a CPU"),
        ((*TRAIN, "--output-dir", "images.npz"), "cannot write images.npz/checkpoints/.lenet-300-100-npz.lock: not a directory"),
        ((*TRAIN, "--data-dir", "none.npz"), "none.npz"),
        (("train", "--dataset", "mnist"), "mnist is not under data (in "),
        (("train", "--dataset", "cifar10", "--data-dir", "/nowhere"), "cifar10 is not under /nowhere: pass --download, "),
        (
            ("train", "--dataset", "folder", "--data-dir", "nowhere"),
            "nowhere (in ",
        ),
        (("train", "--resume", "nowhere.pt"), "nowhere.pt: no such checkpoint"),
        (("train", "--resume", "checkpoints"), "checkpoints is not part of a run: its network files belong in "),
        (("train", "--config", "none.toml"), "none.toml: no such file or directory"),
        (("train", "--config", "images.npz"), "images.npz: a config file ends in .toml or .json"),
        (("evaluate", "nowhere.pt"), "nowhere.pt: no such checkpoint"),
        (("evaluate", "nowhere"), "nowhere is neither a file nor a run here: name a .pt file, or go to the folder that has "),
        (("evaluate", "images.npz"), "images.npz: damaged, or not a checkpoint of prunetrain (it was not written by torch.save)"),
        (("evaluate",), "missing argument 'CHECKPOINT'. Try prunetrain evaluate --help"),
        (("reconfigure", "nowhere.pt"), "nowhere.pt: no such checkpoint"),
        (("reconfigure", "checkpoints/x/last.pt", "--round-to", "auto"), "round-to must be a whole number from 1 here, not 'auto'"),
        (("reconfigure", "checkpoints/x/last.pt", "--threshold", "-1"), "threshold must be a finite number of at least 0, not -1.0"),
        (("reconfigure", "checkpoints/x/last.pt", "--name", "a/b"), "'a/b' cannot name a run: "),
        (
            ("reconfigure", "checkpoints/x/last.pt", "--output-dir", "images.npz"),
            "cannot write images.npz/checkpoints/.x-cut.lock: not",
        ),
        (("inspect", "nowhere"), "nowhere is not a network file (.py), checkpoint (.pt) or run: name one of these, or give --output-dir "),
        (("inspect", "nowhere.py"), "nowhere.py: no such network file"),
        (("inspect", "nowhere.pt"), "nowhere.pt: no such checkpoint"),
        (("inspect", "images.npz"), "images.npz is not a network file"),
        (("inspect", "x", "nowhere.py"), "nowhere.py: no such network file"),
        (("flatten", "resnet20"), "missing option '-o' / '--output'. Try prunetrain flatten --help"),
        (("flatten", "resnet21", "-o", "y.py"), "unknown model 'resnet21': did you mean "),
        (("flatten", "resnet20", "-o", "y.txt"), "y.txt: a network file ends in .py"),
        (("flatten", "resnet20", "-o", "images.npz/y.py", "--input-shape", "1,8,8"), "cannot write images.npz/y.pt: not a directory"),
        (("flatten", "alexnet", "-o", "y.py", "--input-shape", "1,8,8"), "alexnet needs images of at least 15x15"),
        *(
            (
                ("flatten", "resnet20", "-o", "y.py", "--input-shape", shape),
                "--input-shape must be channels,height,width such as 3,224,224, ",
            )
            for shape in ("3,32", "3,32,0", "3,32,-1", "a,b,c", "", "3,32,32,32", "3,32,1000000")
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.usefixtures("folder")
def test_one_line(args: tuple[str, ...], line: str) -> None:
    assert refusal(*args).startswith(line)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.usefixtures("folder")
def test_no_gpu() -> None:
    line = refusal(*TRAIN, "--device", "cuda")
    assert line.startswith("device 'cuda' is not on this machine: use auto, cpu, or cuda where there is a GPU (")
    assert "NVIDIA" in line or "CUDA" in line  # torch's reason
    assert refusal(*TRAIN, "--gpus", "2") == "2 workers need a GPU each, and this machine has 0: use --device cpu"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.toml", "epoch = 3", "a.toml: unknown setting 'epoch': did you mean epochs"),
        ("a.toml", "epochs = 'many'", "a.toml: epochs must be a whole number, not 'many'"),
        ("a.toml", "epochs =", "a.toml: not valid TOML: "),
        ("a.json", "{", "a.json: not valid JSON: "),
        ("a.json", "[1]", "a.json: must hold a table of settings, not a list"),
        ("a.toml", 'model = "resnet21"', "unknown model 'resnet21': did you mean "),
        ("a.toml", 'recipe = "cifar"', "unknown recipe 'cifar': did you mean "),
    ],
)
def test_bad_config_file(folder: Path, name: str, text: str, line: str) -> None:
    (folder / name).write_text(text)
    assert refusal("train", "--config", name).startswith(line)


@pytest.mark.parametrize("command", [("evaluate",), ("train", "--resume"), ("inspect",), ("bench",), ("report",)], ids=" ".join)
@pytest.mark.usefixtures("folder")
def test_a_misspelt_run(command: tuple[str, ...]) -> None:
    for run in ("resnet20-folder", "resnet20-folder-2", "vgg16-mnist"):
        network = Path("generated_nets", run, "epoch_000.py")
        network.parent.mkdir(parents=True)
        network.write_text("")
    assert refusal(*command, "resnet20-foler").endswith(": did you mean resnet20-folder or resnet20-folder-2?")


COMMANDS_ON_A_CHECKPOINT = [("train", "--resume"), ("evaluate",), ("reconfigure",), ("inspect",)]
LAST = "checkpoints/x/last.pt"


@pytest.mark.parametrize("command", COMMANDS_ON_A_CHECKPOINT, ids=" ".join)
def test_bad_checkpoint(run: RunPaths, command: tuple[str, ...]) -> None:
    whole = run.last.read_bytes()
    for content in (b"", b"PK\x03\x04", whole[:1000], whole[:-1000], b"not a checkpoint"):
        run.last.write_bytes(content)
        assert refusal(*command, LAST).startswith(f"{LAST}: damaged, or not a checkpoint of prunetrain")
    torch.save({"model": {}}, run.last)
    assert refusal(*command, LAST) == f"{LAST}: not a checkpoint of prunetrain"


@pytest.mark.parametrize("command", [("evaluate",), ("reconfigure",), ("prune", "--method", "unit", "--rate", "0.5")], ids=" ".join)
def test_network_file_in_place_of_a_checkpoint(run: RunPaths, command: tuple[str, ...]) -> None:
    network = Path("generated_nets/x/epoch_001.py")
    assert refusal(*command, network) == f"{network} is a network file: name its checkpoint, {run.checkpoint(1)}"
    shutil.copy(network, "A.py")
    assert refusal(*command, "A.py") == "A.py is a network file: name a checkpoint of its run, such as checkpoints/RUN/last.pt"


@pytest.mark.parametrize("command", [("evaluate",), ("reconfigure",), ("export", "-o", "net.csr")], ids=" ".join)
def test_run_without_its_last_checkpoint(run: RunPaths, command: tuple[str, ...]) -> None:
    run.last.unlink()
    assert refusal(*command, "x") == f"{LAST}: no such checkpoint"


@pytest.mark.parametrize("command", COMMANDS_ON_A_CHECKPOINT, ids=" ".join)
def test_bad_network_file_of_a_checkpoint(run: RunPaths, command: tuple[str, ...]) -> None:
    network = run.network(1)
    source = network.read_text()
    network.write_text(source.replace("300", "301"))
    assert re.search(r"epoch_001\.py is not the file that .*last\.pt was written with \(its sha256 differs\)", refusal(*command, LAST))
    network.write_bytes(b"\xff\xfe")
    assert refusal(*command, LAST).endswith("generated_nets/x/epoch_001.py: not a network file: not UTF-8 text")
    network.unlink()
    needed = (
        f"generated_nets/x/epoch_001.py: no such network file, and {LAST} needs it: copy generated_nets/RUN beside checkpoints/RUN as well"
    )
    assert refusal(*command, LAST).endswith(needed)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("from torch import", "import os\nfrom torch import", "a network file may import only torch, not: import os"),
        ("super().__init__()", "super().__init__()\n        print('x')", "__init__ may only define layers, not: print('x')"),
        ("self.fc1 =", "self.a = open('canary', 'w')\n        self.fc1 =", "not a layer that prunetrain knows: open('canary', 'w')"),
        ("return", "open('canary', 'w')\n        return", "forward may only call layers and functions, line by line, not: open("),
        ("class", "open('canary', 'w')\n\n\nclass", "expected the class of the network"),
        ("class", "class class", "not Python: invalid syntax"),
    ],
)
def test_network_file_with_anything_else(folder: Path, run: RunPaths, old: str, new: str, line: str) -> None:
    source = run.network(0).read_text()
    (folder / "mine.py").write_text(source.replace(old, new, 1))
    number = source.partition(old)[0].count("\n") + 1 + new.startswith("super")
    for command in (("inspect", "mine.py"), ("inspect", run.network(0), "mine.py")):
        assert refusal(*command).startswith(f"mine.py:{number}: {line}")
    assert not (folder / "canary").exists()


def test_image_folder_without_classes(folder: Path) -> None:
    train = ("train", "--dataset", "folder", "--data-dir", "images", "--image-size", "8")
    for half in ("train", "val"):
        (folder / "images" / half).mkdir(parents=True)
    assert refusal(*train).startswith("images/train has no class folders: put the images of each class into a folder of their own, ")
    for half in ("train", "val"):
        (folder / "images" / half / "cat").mkdir()
    assert refusal(*train) == "images/train has only the class cat: training needs two classes or more"
    for name in ("cat", "dog"):
        (folder / "images" / "train" / name).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / "images" / "train" / name / "1.png")
    assert refusal(*train).startswith("images/val")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"x_train": np.zeros((320,), np.uint8)}, "x_train has the shape (320,)"),
        ({"x_test": np.zeros((80, 9, 9), np.uint8)}, "images of x_train are (8, 8), of x_test (9, 9)"),
        ({"x_train": np.full((320, 8, 8), 0.5)}, "x_train"),
        ({"y_train": np.zeros(7, np.int64)}, "y_train has 7 labels for 320 images"),
        ({"y_train": np.full(320, -1)}, "y_train holds the label -1"),
        ({"y_test": np.full(80, 0.5)}, "y_test"),
        ({"x_test": None}, "lacks x_test"),
    ],
)
def test_npz_with_wrong_shapes_or_labels(folder: Path, changes: dict[str, "np.ndarray | None"], line: str) -> None:
    arrays = dict(np.load(folder / "images.npz")) | changes
    np.savez(folder / "images.npz", **{name: array for name, array in arrays.items() if array is not None})
    assert line in refusal(*TRAIN)


def test_truncated_npz(folder: Path) -> None:
    content = (folder / "images.npz").read_bytes()
    (folder / "images.npz").write_bytes(content[: len(content) // 2])
    assert refusal(*TRAIN).startswith("images.npz")


@pytest.mark.usefixtures("folder")
def test_download_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def unreachable(*args: object, **named: object) -> NoReturn:
        raise OSError("network is unreachable")

    monkeypatch.setattr(datasets, "CIFAR10", unreachable)
    assert refusal("train", "--dataset", "cifar10", "--download").startswith(
        "cifar10 cannot be downloaded to data (network is unreachable): check the connection"
    )


def disk_full(*args: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "command",
    [
        TRAIN,
        ("reconfigure", LAST),
        ("flatten", "lenet-300-100", "-o", "y.py", "--input-shape", "1,8,8"),
        (*TRAIN[:-1], "2", "--resume", LAST),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.usefixtures("folder")
def test_full_disk(monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    monkeypatch.setattr(os, "fsync", disk_full)
    assert re.fullmatch(r"cannot write \S+: the disk is full; free some space and run again", refusal(*command))


@pytest.mark.parametrize("size", [500, 100_000, 230_000])
def test_disk_fills_up_at_some_file(folder: Path, size: int) -> None:
    """Below 1 KB not even the network file fits; below 209 KB not the first checkpoint; the second, with momentum, takes 410 KB."""
    with largest_file(size):
        result = invoke(*TRAIN, "--name", "y")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert re.fullmatch(r"error: cannot write \S+: file too large\n", result.stderr)
    other = RunPaths(folder, "y")
    assert [path for path in folder.rglob("*") if path.name.endswith(".tmp")] == []
    if size < 209_000:
        assert not other.exists()
    else:
        assert [path.name for path in other.checkpoints.iterdir()] == ["epoch_000.pt"]
        assert invoke(*TRAIN, "--name", "y", "--resume", "auto").exit_code == 0  # with room again it goes on
        assert (other.last.exists(), len(other.metrics.read_text().splitlines())) == (True, 1)


def test_full_disk_in_the_middle_of_a_run_loses_nothing(run: RunPaths) -> None:
    before = contents()
    with largest_file(300_000):
        result = invoke(*TRAIN[:-1], "3", "--resume", LAST)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    after = contents()
    assert {path: after.pop(path) for path in before} == before
    assert list(after) == [Path("generated_nets/x/epoch_002.py")]  # whole, and written again when the run goes on
    assert read_graph(run.network(2)) == read_graph(run.network(1))
    assert invoke(*TRAIN[:-1], "3", "--resume", LAST).exit_code == 0


@pytest.mark.usefixtures("folder")
def test_threshold_over_everything_works_and_says_so() -> None:
    result = invoke(*TRAIN, "--threshold", "1e9", "--name", "y")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "  every channel of fc1, fc2 was dead; the strongest stays\n" in result.stdout
    assert [layer["out_features"] for layer in read_graph(Path("generated_nets/y/epoch_001.py")).layers] != [300, 100, 4]


@pytest.mark.parametrize("line", ['{"epoch": 2, "tra', "null", "[1]", "\udcff"])
def test_damaged_metrics(run: RunPaths, line: str) -> None:
    run.metrics.write_bytes(run.metrics.read_bytes() + line.encode("utf-8", "surrogateescape"))
    assert refusal("inspect", "x") == "checkpoints/x/metrics.jsonl:2: not a line of metrics"


@pytest.mark.usefixtures("folder")
def test_fixed_setting_on_resume() -> None:
    message = "--lr cannot change when a run is resumed: leave it out, or start a new run with --name"
    assert refusal("train", "--resume", LAST, "--lr", "0.3") == message


def in_a_process(folder: Path, *args: str, **named: object) -> tuple[int, str]:
    """Exit code and stderr of a real process, with whatever C++ writes there too."""
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    done = subprocess.run(
        [sys.executable, "-m", "prunetrain", *args], cwd=folder, env=environment, capture_output=True, text=True, check=False, **named
    )
    return done.returncode, done.stderr


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_foreign_checkpoint_in_a_real_process(folder: Path, run: RunPaths) -> None:
    torch.jit.script(torch.nn.Linear(2, 3)).save(run.last)
    code, text = in_a_process(folder, "evaluate", LAST)
    assert code == 2
    assert re.fullmatch(rf"error: {LAST}: damaged, or not a checkpoint of prunetrain \(its part '\S+' is compressed or encrypted\)\n", text)


def test_full_disk_in_a_real_process(folder: Path) -> None:
    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    code, text = in_a_process(folder, *TRAIN, "--name", "y", preexec_fn=limit)
    assert (code, text) == (2, "error: cannot write checkpoints/y/epoch_000.pt: file too large\n")
    assert not RunPaths(folder, "y").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(folder: Path) -> None:
    locked = folder / "locked"
    locked.mkdir(mode=0o500)
    assert refusal(*TRAIN, "--output-dir", "locked") == "cannot write locked/checkpoints/.lenet-300-100-npz.lock: permission denied"


def test_links_that_go_in_a_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for link in ("checkpoints/x/last.pt", "net.py", "images"):
        (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / link).symlink_to(Path(link).name)
    (tmp_path / "generated_nets" / "x").mkdir(parents=True)
    for command in (
        "train --resume checkpoints/x/last.pt",
        "train --resume x",
        "train --model net.py:Net",
        "train --dataset folder --data-dir images",
        "evaluate x",
        "export checkpoints/x/last.pt -o net.safetensors",
        "reconfigure x",
        "prune x --method fpgm --rate 0.3",
        "inspect net.py",
        "flatten net.py:Net -o flat.py",
    ):
        result = invoke(*command.split())
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), command
        assert result.stderr.startswith("error: "), command
