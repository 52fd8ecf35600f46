"""What `train.py` does, from top to bottom."""

import json
import os
import time

from absl import logging

from simsiam_tf import distribution, export
from simsiam_tf.data import datasets, pipeline, views
from simsiam_tf.methods import build_method
from simsiam_tf.models import resnet
from simsiam_tf.schema import StoppedError, UserError
from simsiam_tf.training import interruption, loop, optimizers, schedules
from simsiam_tf.training.checkpoints import Checkpoints, check_workdir, write_flags, write_whole
from simsiam_tf.training.monitors import KnnMonitor, Monitor

SUMMARY = "summary.json"


def run(config):
    """Pre-trains an encoder as a `PretrainConfig` says; goes on where an earlier start stopped."""
    started = time.perf_counter()
    check_workdir(config)
    workdir, seed = config.system.workdir, config.system.seed
    summary_path = os.path.join(workdir, SUMMARY)
    if os.path.exists(summary_path) and not config.system.export:
        logging.info("The run in %s is finished; its encoder is %s/encoder", workdir, workdir)
        return

    strategy = distribution.build_strategy(config.system)
    if config.system.export:
        _export_newest(config, strategy)
        return

    source = datasets.load(config.data.dataset, config.data.data_dir, config.data.train_split)
    knn_sources = _load_knn_sources(config, source)
    batch_size = config.optimization.batch_size
    _check_batch(batch_size, source, strategy.num_replicas_in_sync)
    steps_per_epoch = source.num_examples // batch_size
    last_step = steps_per_epoch * config.optimization.epochs

    model, optimizer = build_model(config, strategy, steps_per_epoch)
    checkpoints = Checkpoints(workdir, model, optimizer)
    restored_step = checkpoints.restore()
    first_step = restored_step or 0
    write_flags(config)

    monitor = Monitor(
        workdir,
        restored_step=restored_step,
        last_step=last_step,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        log_every_steps=config.monitor.log_every_steps,
        learning_rates=schedules.learning_rates(config.optimization),
        predictor_learning_rates=schedules.predictor_learning_rates(config.optimization),
    )
    knn_monitor = KnnMonitor(model.encoder, *knn_sources, config) if knn_sources else None
    if knn_monitor and restored_step is None:
        _run_knn(knn_monitor, monitor, step=0)  # the random network, for comparison

    build_views = views.build_views(config.views)
    batches = strategy.distribute_datasets_from_function(
        lambda context: pipeline.training_batches(
            source,
            build_views,
            batch_size=batch_size,
            seed=seed,
            first_step=first_step,
            last_step=last_step,
            context=context,
        )
    )

    def indices_of(position):
        return pipeline.step_order(source.num_examples, batch_size, seed, first_step + position)

    batches = pipeline.iterate(batches, source, indices_of)
    with interruption.noted() as received:
        for step in loop.run_steps(strategy, model, batches, first_step):
            monitor.step(step)
            last = step.number == last_step
            if knn_monitor and (last or knn_monitor.is_due(step.number, steps_per_epoch)):
                _run_knn(knn_monitor, monitor, step.number)
            stopping = received() is not None and not last
            if step.number % config.system.checkpoint_every_steps == 0 or last or stopping:
                with monitor.pause():
                    monitor.flush()
                    checkpoints.save(step.number)
            if stopping:
                monitor.close()
                raise StoppedError(
                    f"{received().name}: saved step {step.number} of {last_step} in {workdir}; the "
                    "same command goes on from there",
                    received(),
                )
    monitor.close()

    _export(config, model, last_step)
    summary = {
        "steps": last_step,
        "epochs": config.optimization.epochs,
        "images": source.num_examples,
        "loss": monitor.latest("loss"),
        "feature_std": monitor.latest("feature_std"),
        "knn_top1": monitor.latest("knn_top1"),
        "knn_top1_before_training": monitor.first("knn_top1"),
        "images_per_second": monitor.latest("images_per_second"),
        "seconds_of_last_start": time.perf_counter() - started,
        "replicas": strategy.num_replicas_in_sync,
        "versions": export.versions(),
    }
    write_whole(summary_path, json.dumps(summary, indent=2))
    logging.info("Finished: %s", json.dumps(summary))


def build_model(config, strategy, steps_per_epoch):
    """The model of a `PretrainConfig` and its optimizer, both with all their variables."""
    with strategy.scope():
        encoder = resnet.ResNet(config.encoder, config.system.seed)
        model = build_method(config.method, encoder, config.system.seed)
        settings = config.optimization
        fixed = model.predictor_variables if settings.fix_predictor_learning_rate else ()
        optimizer = optimizers.SGD(
            optimizers.EpochRates(schedules.learning_rates(settings), steps_per_epoch),
            settings.momentum,
            settings.weight_decay,
            constant_rate_variables=fixed,
            constant_rate=schedules.initial_learning_rate(settings),
        )
        optimizer.build(model.learned_variables)
        model.compile(optimizer=optimizer)
    return model, optimizer


def _load_knn_sources(config, train):
    """The bank and the queries of the kNN monitor; None where there are none, said once."""
    if config.monitor.knn_every_epochs == 0:
        return None
    data = config.data
    if config.monitor.knn_dataset:
        name, folder = config.monitor.knn_dataset, config.monitor.knn_data_dir
        bank = datasets.load(name, folder, data.train_split)
        queries = datasets.load(name, folder, data.eval_split)
        if not (bank.labelled and queries.labelled):
            raise UserError(f"--knn_dataset must have labels. Received: {name} {folder}".strip())
        return bank, queries
    if not train.labelled:
        logging.info("No kNN monitor: %s has no labels; --knn_dataset may name another", train.name)
        return None
    try:
        return train, datasets.load(data.dataset, data.data_dir, data.eval_split)
    except UserError as error:
        if data.dataset != "folder":
            raise
        logging.info("No kNN monitor: %s", error)  # images to train on are all that a run needs
        return None


def _check_batch(batch_size, source, num_replicas):
    if batch_size % num_replicas:
        raise UserError(
            f"--batch_size must be divisible by the number of replicas, {num_replicas}. "
            f"Received: {batch_size}"
        )
    if batch_size // num_replicas < 2:
        raise UserError(
            "--batch_size must leave two images or more to each replica. "
            f"Received: {batch_size} for {num_replicas} replicas"
        )
    if batch_size > source.num_examples:
        raise UserError(
            f"--batch_size must be at most the number of images, {source.num_examples} in "
            f"{source.name}. Received: {batch_size}"
        )


def _run_knn(knn_monitor, monitor, step):
    with monitor.pause():
        top1 = knn_monitor.top1()
    monitor.knn(step, top1)


def _export(config, model, step):
    directory = os.path.join(config.system.workdir, "encoder")
    export.save(model.encoder, config, directory, {"step": step})
    logging.info("Exported the encoder of step %d to %s", step, directory)


def _export_newest(config, strategy):
    """`--export`: the encoder of the newest checkpoint, without training."""
    model, optimizer = build_model(config, strategy, steps_per_epoch=1)
    step = Checkpoints(config.system.workdir, model, optimizer).restore()
    if step is None:
        raise UserError(
            f"--export needs a checkpoint; train first. Received: --workdir={config.system.workdir}"
        )
    _export(config, model, step)
