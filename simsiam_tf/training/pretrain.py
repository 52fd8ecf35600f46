"""The work of `train.py`, from top to bottom."""

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Sequence

import keras
import tensorflow as tf
from absl import logging

from simsiam_tf import files, storage, terminal
from simsiam_tf.config import PretrainConfig
from simsiam_tf.data.pixels import Pixels
from simsiam_tf.data.quarantine import FILE_NAME
from simsiam_tf.data.source import Source
from simsiam_tf.distribution import devices, workers
from simsiam_tf.export import saved_model
from simsiam_tf.methods.build import build_encoder
from simsiam_tf.models.backbone import Backbone
from simsiam_tf.runs import diagnosis, history, lock, mirror, run_folder
from simsiam_tf.runs.checkpoints import Checkpoints
from simsiam_tf.schema import UserError
from simsiam_tf.training import (
    assembly,
    auto,
    health,
    initial_weights,
    interruption,
    knn,
    loop,
    meter,
    replay,
    tracking,
)
from simsiam_tf.training.callbacks import (
    BadImages,
    Diagnoses,
    Interruption,
    Metrics,
    SaveCheckpoints,
    SkippedSteps,
    UploadRun,
)
from simsiam_tf.training.run_log import RunLog, log_file
from simsiam_tf.training.tensorboard import TensorBoard

# Time to compile a step, for each trained tensor: about 5 s for ResNet-18 on two cores. The factor
# of XLA is a guess.
_SECONDS_A_TENSOR, _XLA_FACTOR = 0.07, 6


def run(config: PretrainConfig, callbacks: Sequence[keras.callbacks.Callback] = ()) -> None:
    """Pre-trains an encoder and exports it; resumes a run that an earlier start began.

    Args:
      config: of the run.
      callbacks: called at each step besides the run's own, on every worker.

    Raises:
      UserError: a mistake that the user can mend; the run can be resumed.
    """
    with terminal.only_warnings(), mirror.local_copy(config) as (local_config, copy):
        _run(local_config, copy, callbacks)


def _run(
    config: PretrainConfig, copy: mirror.Mirror, callbacks: Sequence[keras.callbacks.Callback]
) -> None:
    """As `run`, in the local folder of `copy`."""
    tracking.check(config.monitor.track)
    config = auto.recall(config)
    is_replay = config.system.replay_step > 0
    run_folder.check_workdir(config, copy.workdir, may_extend=not is_replay)
    workdir = config.system.workdir
    if is_replay:
        print(replay.replay(config, devices.build_strategy(config.system)))
        return
    if run_folder.is_finished(config) and not config.system.export:
        name = copy.workdir
        terminal.say(f"The run in {name} is finished; its encoder is {name}/encoder")
        return

    strategy = devices.build_strategy(config.system)
    is_chief = workers.is_chief(strategy)
    with contextlib.ExitStack() as stack:
        if is_chief:
            stack.enter_context(copy.uploaded())
        log_name = f"{workers.worker_name(strategy)}.log"
        stack.enter_context(log_file(os.path.join(workdir, "logs", log_name)))
        stack.enter_context(workers.lost_workers_named(strategy))
        if config.system.export:
            _export_newest(config, strategy)
        else:
            if is_chief and not storage.is_url(copy.workdir):
                stack.enter_context(lock.held(workdir))
            if config.given is not None and not run_folder.read_choices(workdir):
                config = auto.choose(config, strategy)
            # Only the chief's files stay.
            output = workdir if is_chief else stack.enter_context(tempfile.TemporaryDirectory())
            _train(config, strategy, output, copy, callbacks)
        workers.gather_over_workers(strategy, 0)  # no worker leaves before the chief has written


def _train(
    config: PretrainConfig,
    strategy: tf.distribute.Strategy,
    output: str,
    copy: mirror.Mirror,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """Trains from the newest checkpoint on, and exports; metrics go to the folder `output`."""
    started = time.perf_counter()
    workdir, is_chief = config.system.workdir, workers.is_chief(strategy)
    initial_weights.check(config.start.init_from)
    with workers.chief_first(strategy):  # it may download
        source = assembly.load_source(config)
        knn_sources = knn.load_sources(config, source) if is_chief else None
    quarantine_file = os.path.join(workdir, FILE_NAME) if is_chief else None
    parts = assembly.assemble(config, strategy, source, quarantine_file)
    plan, model, quarantine = parts.plan, parts.model, parts.quarantine
    model.encoder.describe()
    xla = devices.uses_xla(config.system, strategy)
    checkpoints = Checkpoints(
        workdir,
        model,
        parts.optimizer,
        bank=model.bank,
        keep=config.system.keep_checkpoints,
        keep_every=config.system.keep_every_steps,
        writes=is_chief,
    )
    restored_step = checkpoints.restore()
    first_step = restored_step or 0
    if restored_step is None and config.start.init_from:
        initial_weights.load(model, config.start.init_from)
    _check_agreement(strategy, first_step, copy.workdir)
    if restored_step is not None:
        run_folder.check_images(workdir, source)
    elif os.path.exists(os.path.join(workdir, run_folder.SUMMARY)):
        raise UserError(
            f"--epochs={plan.epochs} needs a checkpoint of the shorter run that is finished in "
            f"--workdir. Take another --workdir. Received: {copy.workdir}, without checkpoints"
        )

    terminal.say(_opening(config, source, strategy, first_step))
    peak_flops = meter.measure_peak(strategy)
    if is_chief:
        with files.writing_to(workdir):
            run_folder.write_flags(config, first_step, copy.workdir)
            run_folder.write_images(workdir, source)
            files.remove(os.path.join(workdir, run_folder.SUMMARY))  # of a shorter run
            device, replicas = devices.device_name(strategy), strategy.num_replicas_in_sync
            history.note_start(workdir, first_step, device, replicas)
        shorter_plans = run_folder.read_shorter_plans(workdir)
        for epochs, step in shorter_plans:
            logging.info(
                "Up to step %d the learning rates are those of a run of %d epochs, so the result "
                "differs from that of %d epochs from the start",
                step,
                epochs,
                plan.epochs,
            )
    with RunLog(output, plan, restored_step) as log, interruption.noted() as received:
        metrics = Metrics(log, config.optimization, config.monitor.log_every_steps, peak_flops)
        saves = SaveCheckpoints(checkpoints, log, config.system.checkpoint_every_steps)
        diagnoses = Diagnoses(log, config)
        on_chief: list[keras.callbacks.Callback] = []
        if is_chief and config.monitor.health_every_epochs:
            sample = health.Sample(parts, health.load_heldout(config, source))
            every = config.monitor.health_every_epochs
            on_chief.append(health.Health(log, sample, every))
        if knn_sources:
            on_chief.append(knn.Knn(log, strategy, model.encoder, *knn_sources, config))
        if is_chief:
            evaluated = knn_sources[1] if knn_sources else source
            on_chief.append(TensorBoard(log, config, parts.make_views, quarantine, evaluated))
        tracker = (
            [tracking.Tracker(log, config)] if is_chief and config.monitor.track != "none" else []
        )
        steps = parts.steps(
            first_step,
            stop_wanted=lambda: received() is not None or model.stop_training,
            xla=xla,
        )
        log.progress.show(_compiling(model, xla), "")
        loop.call_back(
            steps,
            [
                BadImages(quarantine),
                metrics,
                SkippedSteps(log, config.system.max_nonfinite_steps),
                *on_chief,
                diagnoses,
                *callbacks,
                saves,
                *tracker,
                *([UploadRun(copy, saves)] if is_chief else []),
                Interruption(strategy, log, copy.workdir, received, diagnoses),
            ],
            model,
            plan.steps_per_epoch,
        )
    if is_chief:
        _export(config, model.encoder, plan.num_steps, source.pixels)
        rates = metrics.rates()
        summary = {
            "steps": plan.num_steps,
            "epochs": plan.epochs,
            "shorter_plans": shorter_plans,
            "images": plan.num_examples,
            "bad_images": quarantine.num_bad,
            "loss": log.latest("loss"),
            "feature_std": log.latest("feature_std"),
            "knn_top1": log.latest("knn_top1"),
            "knn_top1_before_training": log.first("knn_top1"),
            "knn_images": knn_sources[1].num_examples if knn_sources else None,
            "findings": [
                dataclasses.asdict(finding) for finding in diagnosis.diagnose(log.lines, config)
            ],
            **rates,
            "limit": meter.what_limits(
                rates,
                peak_flops,
                on_cpu=not devices.on_accelerators(strategy),
                augment_on=config.views.augment_on,
            ),
            "seconds_of_last_start": time.perf_counter() - started,
            "replicas": strategy.num_replicas_in_sync,
            "versions": saved_model.versions(),
        }
        with files.writing_to(workdir):
            text = json.dumps(summary, indent=2)
            files.write_text(os.path.join(workdir, run_folder.SUMMARY), text)
        _report(config, copy.workdir, summary, log)


def _check_agreement(strategy: tf.distribute.Strategy, first_step: int, workdir: str) -> None:
    """Checks that all workers resume from the same step."""
    found = workers.gather_over_workers(strategy, first_step)
    if len(set(found)) > 1:
        raise UserError(
            "--workdir must be one folder that all workers share: the newest checkpoint that each "
            f"finds there is of step {', '.join(map(str, found))}. Received: {workdir}"
        )


def _export_newest(config: PretrainConfig, strategy: tf.distribute.Strategy) -> None:
    """`--export`: exports the encoder of the newest checkpoint, without training."""
    with strategy.scope():
        pixels = run_folder.read_pixels(config.system.workdir)
        encoder = build_encoder(config, pixels.channels)
    # The first of a model's weights are its encoder's.
    step = Checkpoints(config.system.workdir, encoder).restore()
    if step is None:
        raise UserError(
            f"--export needs a checkpoint; train first. Received: --workdir={config.system.workdir}"
        )
    if workers.is_chief(strategy):
        _export(config, encoder, step, pixels)
        terminal.say(f"The encoder of step {step} is in {config.system.workdir}/encoder")


def _export(config: PretrainConfig, encoder: Backbone, step: int, pixels: Pixels) -> None:
    directory = os.path.join(config.system.workdir, run_folder.ENCODER)
    with files.writing_to(config.system.workdir):
        saved_model.save(encoder, config, directory, {"step": step}, pixels)
    logging.info("Exported the encoder of step %d to %s", step, directory)


def _opening(
    config: PretrainConfig, source: Source, strategy: tf.distribute.Strategy, first_step: int
) -> str:
    """Returns what a run is, in a line."""
    count, device = strategy.num_replicas_in_sync, devices.device_type(strategy)
    resumed = f", from step {first_step} on" if first_step else ""
    return (
        f"{config.method.method}, {config.encoder.backbone} on {source.name}: "
        f"{source.num_examples:,} images, {config.optimization.epochs} epochs, "
        f"{count} {device}{'s' * (count > 1)}{resumed}"
    )


def _compiling(model: keras.Model, xla: bool) -> str:
    """Returns about how long the first step will be compiled, as it was on two CPU cores."""
    seconds = (_XLA_FACTOR if xla else 1) * _SECONDS_A_TENSOR * len(model.learned_variables)
    return f"compiling the step, about {max(5, 5 * round(seconds / 5))} s"


def _report(config: PretrainConfig, workdir: str, summary: dict, log: RunLog) -> None:
    """Says what a finished run reached, and what to do next."""
    forms = {
        "loss": "loss {:.3f}",
        "feature_std": "std of the features {:.2f} (1 is healthy)",
        "knn_top1": "kNN top-1 {:.1f} %",
        "knn_top1_before_training": "random network {:.1f} %",
    }
    found = [
        form.format(summary[name]) for name, form in forms.items() if summary[name] is not None
    ]
    seconds = terminal.format_seconds(summary["seconds_of_last_start"])
    logging.info(
        "Finished %d epoch(s) of %d images, %s in this start. %s",
        summary["epochs"],
        summary["images"],
        seconds,
        ", ".join(found),
    )
    findings = [f"{diagnosis.Finding(**finding)}" for finding in summary["findings"]]
    for text in (*findings, summary["limit"]):
        logging.info("%s", text)
    folder = "FOLDER, a copy of it on a disk" if storage.is_url(workdir) else workdir
    report = f"python -m simsiam_tf.report {folder}"
    logging.info(
        "The encoder is in %s/encoder, these numbers in %s/%s. To look at the run: %s",
        workdir,
        workdir,
        run_folder.SUMMARY,
        report,
    )
    rows = {
        "kNN top-1": _change(log, "knn_top1", "{:.1f} %"),
        "effective rank": _change(log, "effective_rank", "{:.1f}"),
        "loss": f"{summary['loss']:.3f}" if summary["loss"] is not None else "",
        "std": f"{summary['feature_std']:.2f}, 1 is healthy" if summary["feature_std"] else "",
        "found": "\n".join(findings),
        "time": f"{seconds}, {summary['images_per_second']:.0f} images/s",
        "speed": summary["limit"],
        "encoder": f"{workdir}/{run_folder.ENCODER}",
    }
    terminal.show_table(
        f"Finished: {summary['epochs']} epochs of {summary['images']:,} images",
        {name: text for name, text in rows.items() if text},
        [report, run_folder.evaluation_command(config, config.system.workdir, folder)],
    )


def _change(log: RunLog, metric: str, form: str) -> str:
    """Returns a metric before training and now; an empty text if it was not measured."""
    first, latest = log.first(metric), log.latest(metric)
    return "" if first is None else f"{form.format(first)} → {form.format(latest)}"
