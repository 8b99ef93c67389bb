"""`prunetrain.train`: what `prunetrain train` does, from Python.

In: settings. Out: a run with network files, checkpoints and metrics.
"""

from pathlib import Path
from typing import Any

from prunetrain.config import TrainConfig, build_config, check_ignored_settings, check_resume, settings_from
from prunetrain.paths import newest_run
from prunetrain.training import recipes
from prunetrain.training.events import Observer
from prunetrain.training.run import Outcome, continue_run, run_name, start_run


def train(*, recipe: str | None = None, resume: bool = False, observer: Observer | None = None, **settings: Any) -> Outcome:
    """Train a network and prune it on the way: `outcome.network` is its last network file, `outcome.run.last` its last checkpoint.

        outcome = prunetrain.train(model="resnet18", dataset="folder", data_dir="my_images", epochs=30)

    Args:
        recipe: name or file of a recipe, whose settings replace the defaults; by default the data set's own recipe, if it has one.
        resume: continue the newest run of this name, if there is one.
        observer: receives the run's events: epochs, cuts, messages.
        settings: fields of `TrainConfig`, which are the flags of `prunetrain train` with `_` for `-`; they override the recipe.

    Raises:
        PruneTrainError: for unusable settings, data or networks; all are checked before anything is written.
    """
    check_resume(resume)
    given = settings_from(settings)
    name = recipes.default_recipe(given.get("dataset", TrainConfig.dataset)) if recipe is None else recipe
    of_recipe = {} if name is None else recipes.load_recipe(name)
    config = build_config(of_recipe, given)
    listener = observer or Observer()
    run = newest_run(Path(config.output_dir), run_name(config)) if resume else None
    if run is not None:
        asked = {} if recipe is None else settings_from(of_recipe)
        return continue_run(run, config, asked | given, listener)
    check_ignored_settings(given, config)
    return start_run(config, listener)
