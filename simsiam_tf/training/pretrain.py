"""What `train.py` does, from top to bottom."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import tempfile
import time

import tensorflow as tf
from absl import logging

from simsiam_tf import distribution
from simsiam_tf.data import datasets, pipeline, views
from simsiam_tf.data.quarantine import FILE_NAME, READ_ERRORS, Quarantine
from simsiam_tf.evaluation import features
from simsiam_tf.export import saved_model
from simsiam_tf.methods import build_method
from simsiam_tf.methods.base import Plan
from simsiam_tf.models import resnet
from simsiam_tf.schema import StoppedError, UserError
from simsiam_tf.training import interruption, loop, meter, optimizers, schedules, tensorboard
from simsiam_tf.training.checkpoints import (
    Checkpoints,
    check_workdir,
    write_flags,
    write_whole,
    writing_to,
)
from simsiam_tf.training.monitors import VIEW_PAIRS, KnnMonitor, Monitor, log_file

SUMMARY = "summary.json"
_ENCODE_AT_ONCE = 64


def run(config):
    """Pre-trains an encoder as a `PretrainConfig` says; goes on where an earlier start stopped."""
    check_workdir(config)
    workdir = config.system.workdir
    if os.path.exists(os.path.join(workdir, SUMMARY)) and not config.system.export:
        logging.info("The run in %s is finished; its encoder is %s/encoder", workdir, workdir)
        return

    strategy = distribution.build_strategy(config.system)
    log_path = os.path.join(workdir, "logs", f"{distribution.worker_name(strategy)}.log")
    with contextlib.ExitStack() as stack:
        with writing_to(workdir):
            stack.enter_context(log_file(log_path))
        stack.enter_context(distribution.lost_workers_named(strategy))
        # Only what the chief writes stays.
        is_chief = distribution.is_chief(strategy)
        output = workdir if is_chief else stack.enter_context(tempfile.TemporaryDirectory())
        if config.system.export:
            _export_newest(config, strategy)
        else:
            _train(config, strategy, output)
        distribution.gather_over_workers(strategy, 0)  # none leaves before the chief has written


def _train(config, strategy, output):
    """The run itself. What it writes for people goes to the folder `output`."""
    started = time.perf_counter()
    workdir, seed = config.system.workdir, config.system.seed
    is_chief = distribution.is_chief(strategy)
    with distribution.chief_first(strategy):  # it may download
        data = config.data
        source = datasets.load(data.dataset, data.data_dir, data.train_split)
        knn_sources = _load_knn_sources(config, source) if is_chief else None
    batch_size = config.optimization.batch_size
    _check_batch(config.optimization, source, strategy.num_replicas_in_sync)
    plan = plan_of(config, source)
    steps_per_epoch, last_step = plan.steps_per_epoch, plan.num_steps

    model, optimizer = build_model(config, strategy, plan)
    checkpoints = Checkpoints(
        workdir,
        model,
        optimizer,
        bank=model.bank,
        keep=config.system.keep_checkpoints,
        keep_every=config.system.keep_every_steps,
        writes=is_chief,
    )
    restored_step = checkpoints.restore()
    first_step = restored_step or 0
    _check_agreement(strategy, first_step, workdir)

    list_path = os.path.join(workdir, FILE_NAME)
    quarantine = Quarantine(source, data, path=list_path if is_chief else None)
    make_views = views.build_views(config.views, model.num_views)
    batches_of = functools.partial(
        pipeline.training_batches,
        source,
        make_views,
        seed=seed,
        max_pixels=data.max_image_pixels,
        quarantine=quarantine,
    )

    def batches_from(step):
        def of_worker(context):
            batches = batches_of(
                batch_size=batch_size, first_step=step, last_step=last_step, context=context
            )
            # The loop ends before the data does. Workers would ask each other for its end, by a
            # collective at every step, if it were known to have one.
            endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            return batches.apply(endless)

        return strategy.distribute_datasets_from_function(of_worker)

    peak_flops = meter.measure_peak(strategy)
    with writing_to(workdir):
        if is_chief:
            write_flags(config)
        monitor = Monitor(
            output,
            restored_step=restored_step,
            last_step=last_step,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            log_every_steps=config.monitor.log_every_steps,
            learning_rates=schedules.learning_rates(config.optimization),
            predictor_learning_rates=schedules.predictor_learning_rates(config.optimization),
            peak_flops=peak_flops,
        )
        if restored_step is None:
            tensorboard.describe_run(monitor.summaries, config)
    knn_monitor = KnnMonitor(strategy, model.encoder, *knn_sources, config) if knn_sources else None
    if knn_monitor and restored_step is None:
        _run_knn(knn_monitor, monitor, 0, workdir)  # the random network, for comparison
    if is_chief and restored_step is None:
        _show_views(monitor, make_views, quarantine, seed)

    knn_every = config.monitor.knn_every_epochs * steps_per_epoch
    save_every = config.system.checkpoint_every_steps
    histogram_every = config.monitor.histogram_every_epochs * steps_per_epoch
    replica_batch_size = batch_size // strategy.num_replicas_in_sync
    holder = None
    if model.hold_every:
        holder = loop.TargetHolder(
            strategy,
            model,
            batches_from,
            views.prepare,
            replica_batch_size=replica_batch_size,
            plan=plan,
            first_step=first_step,
        )

    on_accelerators = distribution.on_accelerators(strategy)
    periods = [save_every, knn_every, histogram_every]
    if config.system.steps_per_loop != "auto":
        longest_loop = int(config.system.steps_per_loop)
    elif on_accelerators:
        longest_loop = config.monitor.log_every_steps
        periods.append(longest_loop)  # the host waits for the devices only where a line is due
    else:
        longest_loop = 1

    def loop_end(done):
        """Python is needed to log, to look at the encoder, to save it and to hold targets."""
        due = [(done // period + 1) * period for period in periods if period]
        due += [holder.end(done)] if holder else []
        return min(done + longest_loop, last_step, *due)

    with interruption.noted() as received:
        steps = loop.run_steps(
            strategy,
            model,
            batches_from(first_step),
            views.prepare,
            replica_batch_size=replica_batch_size,
            first_step=first_step,
            loop_end=loop_end,
            before_loop=holder.hold_if_due if holder else None,
            stop_wanted=lambda: received() is not None,
            xla=distribution.uses_xla(config.system, strategy),
        )

        def indices_of(done):
            """The samples of the loop that begins there."""
            loop_steps = range(done, loop_end(done))
            order = functools.partial(pipeline.step_order, source.num_examples, batch_size, seed)
            return tf.concat([order(step) for step in loop_steps], axis=0)

        for step in _read_errors_named(steps, first_step, quarantine, indices_of, strategy):
            with writing_to(workdir):
                quarantine.check()
                monitor.step(step)
            _check_skipped_steps(monitor, step.number, config.system.max_nonfinite_steps)
            last = step.number == last_step
            if knn_monitor and (last or step.number % knn_every == 0):
                _run_knn(knn_monitor, monitor, step.number, workdir)
            if is_chief and histogram_every and step.number % histogram_every == 0:
                with monitor.pause(), writing_to(workdir):
                    tensorboard.write_weights(monitor.summaries, step.number, model)
            stopping = step.stopping and not last
            if last or stopping or step.number % save_every == 0:
                with monitor.pause(), writing_to(workdir):
                    monitor.flush()
                    checkpoints.save(step.number)
            if stopping:
                _stop(strategy, monitor, received(), step.number, last_step, workdir)
    monitor.close()
    if not is_chief:
        return

    _show_features(config, model.encoder, knn_sources[1] if knn_sources else source)
    summary = {
        "steps": last_step,
        "epochs": config.optimization.epochs,
        "images": source.num_examples,
        "bad_images": quarantine.num_bad,
        "loss": monitor.latest("loss"),
        "feature_std": monitor.latest("feature_std"),
        "knn_top1": monitor.latest("knn_top1"),
        "knn_top1_before_training": monitor.first("knn_top1"),
        **monitor.usage(),
        "seconds_of_last_start": time.perf_counter() - started,
        "replicas": strategy.num_replicas_in_sync,
        "versions": saved_model.versions(),
    }
    with writing_to(workdir):
        _export(config, model.encoder, last_step)
        write_whole(os.path.join(workdir, SUMMARY), json.dumps(summary, indent=2))
    logging.info("Finished: %s", json.dumps(summary))
    logging.info("%s", summary["limit"])


def plan_of(config, source):
    """The `Plan` of a run of a `PretrainConfig` on a `datasets.Source`."""
    settings = config.optimization
    return Plan(source.num_examples, len(source.class_names), settings.batch_size, settings.epochs)


def build_model(config, strategy, plan=None):
    """The model of a `PretrainConfig` and its optimizer, both with all their variables.

    Without a `Plan`, as SimSiam can be built, the rate is that of an epoch in each step.
    """
    with strategy.scope():
        encoder = resnet.ResNet(config.encoder, config.system.seed)
        model = build_method(config.method, encoder, config.system.seed, plan)
        model.accumulate_steps = config.optimization.accumulate_steps
        optimizer = _build_optimizer(config.optimization, model, plan)
        model.compile(optimizer=optimizer, auto_scale_loss=False)  # the model scales it itself
    return model, optimizer


def _build_optimizer(settings, model, plan):
    learned = model.learned_variables
    common = {
        "learning_rate": optimizers.EpochRates(
            schedules.learning_rates(settings), plan.steps_per_epoch if plan else 1
        ),
        "momentum": settings.momentum,
        "weight_decay": settings.weight_decay,
        "constant_rate": schedules.initial_learning_rate(settings),
    }
    if settings.fix_predictor_learning_rate:
        common["constant_rate_variables"] = model.predictor_variables
    if settings.exclude_norm_and_bias:
        # Vectors: biases, and the scales and offsets of normalization.
        common["excluded_variables"] = [one for one in learned if len(one.shape) == 1]
    if settings.optimizer == "lars":
        optimizer = optimizers.LARS(trust_coefficient=settings.lars_trust_coefficient, **common)
    else:
        optimizer = optimizers.SGD(**common)
    optimizer.build(learned)
    return optimizer


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


def _check_batch(settings, source, num_replicas):
    batch_size, parts = settings.batch_size, num_replicas * settings.accumulate_steps
    among = f"{num_replicas} replica(s)"
    if settings.accumulate_steps > 1:
        among += f" of --accumulate_steps={settings.accumulate_steps} parts"
    if batch_size % parts:
        raise UserError(
            f"--batch_size must be divisible by {parts}, as it is shared by {among}. "
            f"Received: {batch_size}"
        )
    if batch_size // parts < 2:
        raise UserError(
            f"--batch_size must leave two images or more to each part of it. "
            f"Received: {batch_size} for {among}"
        )
    if batch_size > source.num_examples:
        raise UserError(
            f"--batch_size must be at most the number of images, {source.num_examples} in "
            f"{source.name}. Received: {batch_size}"
        )


def _show_views(monitor, make_views, quarantine, seed):
    """The views of a few images, as the first step has them."""
    few = min(VIEW_PAIRS, quarantine.source.num_examples)
    (batch,) = pipeline.first_steps(
        make_views, batch_size=few, seed=seed, num_steps=1, quarantine=quarantine
    )
    monitor.view_pairs(views.prepare(batch))


def _check_agreement(strategy, first_step, workdir):
    """All workers must go on from the same step, or they would train different things."""
    found = distribution.gather_over_workers(strategy, first_step)
    if len(set(found)) > 1:
        raise UserError(
            "--workdir must be one folder that all workers share: the newest checkpoint that each "
            f"finds there is of step {', '.join(map(str, found))}. Received: {workdir}"
        )


def _read_errors_named(steps, first_step, quarantine, indices_of, strategy):
    """The steps; where images cannot be read, nor others in their place, a `UserError` says so."""
    steps = iter(steps)
    done = first_step
    while True:
        try:
            step = next(steps, None)
        except READ_ERRORS as error:
            if distribution.lost_workers(strategy, error):
                raise
            quarantine.check()
            raise quarantine.explain(error, indices_of(done)) from error
        if step is None:
            return
        done = step.number
        yield step


def _check_skipped_steps(monitor, step, most):
    count = monitor.skipped_in_a_row
    if count >= most:
        monitor.close()
        raise UserError(
            f"The loss or gradient of {count} steps in a row was not finite, of step {step} last. "
            "They changed no weight, and the checkpoints are good. Lower the rate, or look at "
            f"the samples that metrics.jsonl lists. Received: --max_nonfinite_steps={most}"
        )


def _stop(strategy, monitor, received, step, last_step, workdir):
    """Ends a run whose step is saved, or is being saved by the chief."""
    monitor.close()
    distribution.gather_over_workers(strategy, step)
    number = received or signal.SIGTERM
    told = number.name if received else "Another worker was told to stop"
    raise StoppedError(
        f"{told}: saved step {step} of {last_step} in {workdir}; the same command goes on from "
        "there",
        number,
    )


def _run_knn(knn_monitor, monitor, step, workdir):
    with monitor.pause():
        top1 = knn_monitor.top1()
    with writing_to(workdir):
        monitor.knn(step, top1)
        with monitor.pause():
            tensorboard.write_spectrum(monitor.summaries, step, knn_monitor.bank_features)


def _show_features(config, encoder, source):
    """Some images and their features, for TensorBoard's projector."""
    size, ratio = config.views.image_size, config.views.eval_crop_ratio
    served = saved_model.ServedEncoder(encoder, size, ratio)
    found, labels, thumbnails = features.extract_with_thumbnails(
        lambda images: served.features(images)["features"],
        source,
        served.view,
        _ENCODE_AT_ONCE,
        tensorboard.SPRITE_SIZE,
        seed=config.system.seed,
        limit=tensorboard.MOST_POINTS,
        # The run is done: no image that cannot be read shall spoil its end.
        data=dataclasses.replace(config.data, on_bad_image="skip", max_bad_fraction=1.0),
    )
    workdir = config.system.workdir
    with writing_to(workdir):
        folder = os.path.join(workdir, "tensorboard")
        tensorboard.write_projector(folder, found, labels, thumbnails, source.class_names)


def _export(config, encoder, step):
    directory = os.path.join(config.system.workdir, "encoder")
    saved_model.save(encoder, config, directory, {"step": step})
    logging.info("Exported the encoder of step %d to %s", step, directory)


def _export_newest(config, strategy):
    """`--export`: the encoder of the newest checkpoint, without training."""
    with strategy.scope():
        encoder = resnet.ResNet(config.encoder, config.system.seed)
    # The first of a model's weights are its encoder's.
    step = Checkpoints(config.system.workdir, encoder).restore()
    if step is None:
        raise UserError(
            f"--export needs a checkpoint; train first. Received: --workdir={config.system.workdir}"
        )
    if distribution.is_chief(strategy):
        with writing_to(config.system.workdir):
            _export(config, encoder, step)
