"""One reconfiguration of a checkpoint without training: what `prunetrain reconfigure` does."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunetrain.channels.slicing import gate, propose_cut
from prunetrain.config import TrainConfig, build_config
from prunetrain.errors import OutputError
from prunetrain.files import write_text
from prunetrain.graph.costs import costs
from prunetrain.graph.parse import parse
from prunetrain.paths import new_run, run_of_checkpoint
from prunetrain.training.events import Change
from prunetrain.training.pairs import read_pair, write_pair
from prunetrain.training.reconfiguration import PhaseTimer, cut_checkpoint
from prunetrain.training.stored_config import stored_config


@dataclass(frozen=True)
class OfflineReconfiguration:
    """The files of an offline reconfiguration, what it changed, and the settings and epoch with which training can continue."""

    change: Change
    network: Path
    checkpoint: Path
    config: TrainConfig
    epoch: int


def reconfigure_checkpoint(path: Path, given: dict[str, Any], granularity: int) -> OfflineReconfiguration:
    """Cut a checkpoint, and write the result as a run of its own: the dense network, the smaller one, the checkpoint.

    A threshold that is given is for this cut alone, like the granularity: training that follows cuts at the run's own, since it would
    otherwise cut what is in use, and a last time after its last epoch.

    Args:
        path: the checkpoint.
        given: settings that differ from those inside it: threshold, criterion, name, output_dir.
        granularity: channel counts are multiples of this.

    Raises:
        PruneTrainError: for a checkpoint or network file that cannot be used, or files that cannot be written.
    """
    timer = PhaseTimer()
    pair = read_pair(path)
    checkpoint, graph = pair.checkpoint, pair.graph
    stored = stored_config(path, checkpoint)
    config = build_config(stored.to_dict(), given)
    pair.build()  # to check that the weights fit
    timer.end_phase("read")
    proposal = propose_cut(graph, checkpoint.model, threshold=config.threshold, criterion=config.criterion)
    plan = proposal.plan(granularity)
    timer.end_phase("select")
    cut = proposal.apply(plan)
    if config.residual == "gating":
        cut = gate(cut, threshold=config.threshold, granularity=granularity)
    smaller = cut_checkpoint(checkpoint, cut)
    timer.end_phase("slice")
    old_run = run_of_checkpoint(path)
    name = given.get("name") or f"{old_run.name}-cut"
    kept = config.to_dict() | {"threshold": stored.threshold}
    dense_source = pair.read_dense_source()
    dense = parse(dense_source, str(old_run.network(0)))
    if checkpoint.progress.epoch == 0 and cut.graph != dense:
        raise OutputError(f"{path} is the run's first checkpoint, which holds the dense network: train at least one epoch first")
    with new_run(Path(given.get("output_dir") or old_run.output_dir), name) as run:
        if checkpoint.progress.epoch > 0:
            write_text(run.network(0), dense_source)
        written = write_pair(run, cut.graph, dense, replace(smaller, config=kept | {"name": run.name}))
        timer.end_phase("write")
        read_pair(written).build()
        timer.end_phase("load")
    change = Change.of(costs(graph), cut, granularity, timer.seconds)
    epoch = checkpoint.progress.epoch
    return OfflineReconfiguration(change, run.network(epoch), written, config, epoch)
