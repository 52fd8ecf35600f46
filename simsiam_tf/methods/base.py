"""The training step that all methods share. A method supplies only its loss."""

import dataclasses
from typing import Any, Self

import keras
import tensorflow as tf

from simsiam_tf import objectives
from simsiam_tf.config import MethodConfig
from simsiam_tf.distribution import collectives
from simsiam_tf.models import precision
from simsiam_tf.models.backbone import Backbone, is_statistic
from simsiam_tf.models.bank import Bank
from simsiam_tf.optimization import optimizers

# One replica's share of a batch, {name: tensors}; `compute_views_loss` lists the names.
Batch = dict[str, Any]

_STEPS_TO_DOUBLE = 2000


@dataclasses.dataclass(frozen=True)
class Plan:
    """Size and length of a run, as far as a method may depend on them."""

    num_examples: int
    num_classes: int  # 0: the data set has no labels
    batch_size: int  # number of images in the global batch, over all replicas
    epochs: int
    channels: int = 3  # of the images

    @property
    def steps_per_epoch(self) -> int:
        """The number of whole batches in an epoch."""
        return self.num_examples // self.batch_size

    @property
    def num_steps(self) -> int:
        """The number of steps in the whole run."""
        return self.steps_per_epoch * self.epochs


class SelfSupervisedModel(keras.Model):
    """An encoder and a method's heads, trained on several views of each image.

    A method overrides `compute_views_loss`. A method with a momentum encoder or a queue also
    overrides `learned_variables` and `after_update`.

    Attributes:
      num_views: number of views of each image in the loss.
      accumulate_steps: number of parts of a replica's share; the train step processes them one
        after another.
      freeze_every: number of steps of an epoch from one call of `freeze_targets` to the next;
        0: the method does not freeze targets.
      bank: targets that checkpoints save besides the weights; None: the method has none.
      loss_scale: the loss scale of float16; None with any other number format.
    """

    num_views: int = 2
    accumulate_steps: int = 1
    freeze_every: int = 0
    bank: Bank | None = None

    def __init__(
        self, config: MethodConfig, encoder: Backbone, seed: int, plan: Plan | None = None
    ) -> None:
        """Wraps an encoder. Every method takes these arguments.

        Args:
          config: the method's settings.
          encoder: network that maps normalised images to features.
          seed: seed of the heads' initial weights.
          plan: size and length of the run; a method may not need it.
        """
        super().__init__(name=config.method)
        self.arguments = (config, seed, plan)
        self.encoder = encoder
        self.built = True  # a method's constructor creates every weight
        self.loss_scale = LossScale() if self.compute_dtype == "float16" else None

    def get_config(self) -> dict[str, Any]:
        config, seed, plan = self.arguments
        return {
            "config": dataclasses.asdict(config),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "seed": seed,
            "plan": dataclasses.asdict(plan) if plan else None,
            "accumulate_steps": self.accumulate_steps,
            "precision": self.dtype_policy.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        plan = Plan(**config["plan"]) if config["plan"] else None
        with precision.of_new_layers(config["precision"]):
            encoder = keras.saving.deserialize_keras_object(config["encoder"], custom_objects)
            model = cls(MethodConfig(**config["config"]), encoder, config["seed"], plan)
        model.accumulate_steps = config["accumulate_steps"]
        return model

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer | str = "rmsprop",
        *,
        jit_compile: bool = False,
        **options: Any,
    ) -> None:
        """Configures `fit`, as `keras.Model.compile` does; the loss is the method's own.

        Args:
          optimizer: one of `optimization.optimizers`, which skips a step that is not finite, or any
            of Keras, which then sees gradients of zero.
          jit_compile: whether XLA compiles the whole step. It cannot on several CPU replicas.
          **options: further arguments of `keras.Model.compile`.
        """
        # The train step scales the loss of float16 itself.
        options = {"auto_scale_loss": False} | options
        super().compile(optimizer, jit_compile=jit_compile, **options)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model, and builds the optimizer for the learned variables."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.learned_variables)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the features `[B, F]` of normalised images `[B, H, W, 3]`."""
        return self.encoder(images, training=training)

    def compute_views_loss(self, batch: Batch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the loss of one replica's share of a batch, and further tensors.

        Args:
          batch: {"views": a list of `num_views` tensors `[B, H, W, 3]`, normalised, the views of
            the same B images; "label": `[B] int32`; "index": `[B] int64`, the images' indices in
            the data set; "position": `[B] int64`, their indices in the global batch}.

        Returns:
          The loss, a scalar, and {name: tensor}. The latter has "feature_moments", the result of
          `feature_moments`. It may also have scalars, which become metrics, and tensors `[B, ...]`
          that `after_update` needs.
        """
        raise NotImplementedError

    def project(
        self, views: list[tf.Tensor], encoder: Backbone, projector: keras.layers.Layer
    ) -> list[tf.Tensor]:
        """Returns the projection z of each view, `[B, D]` each.

        One pass computes all views; batch normalization keeps their statistics separate.

        Args:
          views: normalised images, `[B, H, W, 3]` each.
          encoder: encoder of f or of the momentum encoder f'.
          projector: projector of the same network.
        """
        options = {"training": True, "num_views": len(views)}
        z = projector(encoder(tf.concat(views, axis=0), **options), **options)
        return tf.split(z, len(views))

    @property
    def learned_variables(self) -> list[keras.Variable]:
        """The variables that the gradient reaches."""
        return self.trainable_variables

    @property
    def predictor_variables(self) -> list[keras.Variable]:
        """The learned variables that `--fix_predictor_learning_rate` concerns; none by default."""
        return []

    def after_update(self, batch: Batch, outputs: dict[str, tf.Tensor], skipped: tf.Tensor) -> None:
        """Runs after the optimizer's step: a momentum update, a queue. By default it does nothing.

        Args:
          batch: the replica's share, as in `compute_views_loss`.
          outputs: tensors that `compute_views_loss` returned, {name: tensor}.
          skipped: bool scalar, whether the step is skipped; then nothing may change.
        """
        return

    def restart_targets(self) -> None:
        """Runs after `--init_from` has set the weights: a momentum encoder takes them too."""
        return

    def freeze_targets(self, batch: Batch, offset: tf.Tensor | int) -> None:
        """Computes and stores the targets of a batch of one of the next steps.

        Args:
          batch: the replica's share, as in `compute_views_loss`, but without "position".
          offset: number of steps from now to the step that uses the batch.
        """
        raise NotImplementedError

    @property
    def statistics(self) -> list[keras.Variable]:
        """The variables that the forward pass updates: running means and variances."""
        return [variable for variable in self.non_trainable_variables if is_statistic(variable)]

    def train_step(self, data: Batch | tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """Trains one step on one replica's share and returns metrics; call it in replica context.

        The loss is a mean, and the optimizer sums the gradients over replicas. So the loss is
        divided by the number of replicas. One collective carries the gradients and all metrics. A
        step is skipped if its loss or gradient is not finite on any replica: it changes no weight
        and no statistic.

        Args:
          data: {"views": a tuple of `[B, H, W, 3]`, and the other entries that `compute_views_loss`
            takes, except "position"}, or only the tuple of views. An optional scalar "stop" is 1 if
            this worker was told to stop, else 0.

        Returns:
          {"loss": scalar, ..., "feature_std": scalar, "skipped": 1 if the step was skipped, else
          0}, each over all replicas. With "stop" in `data` also "stop": above 0 if any worker was
          told to stop.
        """
        before = [tf.identity(variable) for variable in self.statistics]
        data = dict(data) if isinstance(data, dict) else {"views": data}
        stop = data.pop("stop", None)
        batch = self.with_positions(data)
        gradients, outputs = self.compute_gradients(batch)
        averaged = {name: value for name, value in outputs.items() if _is_averaged(name, value)}
        if stop is not None:
            averaged["stop"] = tf.cast(stop, outputs["loss"].dtype)
        local_gradients = gradients
        gradients, finite, sums = optimizers.sum_over_replicas(gradients, list(averaged.values()))
        num_replicas = collectives.num_replicas()
        means = {name: total / num_replicas for name, total in zip(averaged, sums, strict=True)}
        finite = tf.logical_and(finite, tf.math.is_finite(means["loss"]))
        skipped = tf.logical_not(finite)
        if isinstance(self.optimizer, (optimizers.SGD, optimizers.AdamW)):
            self.optimizer.update(gradients, finite)
        else:  # an optimizer of Keras sums the gradients over replicas itself
            masked = [tf.where(finite, gradient, 0) for gradient in local_gradients]
            self.optimizer.apply(masked, self.learned_variables)
        after = [tf.identity(variable) for variable in self.statistics]
        statistics = _select(skipped, before, after)
        for variable, value in zip(self.statistics, statistics, strict=True):
            variable.assign(value)
        if self.loss_scale:
            self.loss_scale.update(skipped)
        self.after_update(batch, outputs, skipped)
        views_moments = tf.unstack(means.pop("feature_moments"))
        views_std = [objectives.feature_std(*tf.unstack(moments)) for moments in views_moments]
        means["feature_std"] = tf.add_n(views_std) / len(views_std)
        means["skipped"] = tf.cast(skipped, means["loss"].dtype)
        return means

    def with_positions(self, data: Batch) -> Batch:
        """Returns a replica's share with "position", its images' indices in the global batch."""
        size = data["views"][0].shape[0]
        first = tf.cast(collectives.replica_id(), tf.int64) * size
        return data | {"position": first + tf.range(size, dtype=tf.int64)}

    def compute_gradients(self, batch: Batch) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Returns the gradients and the outputs of this replica's share, over all its parts.

        Args:
          batch: the replica's share, as in `compute_views_loss`.

        Returns:
          The gradients of `learned_variables`, which sum over the replicas to that of the loss, and
          {name: tensor} with "loss" and what `compute_views_loss` returns besides. Metrics,
          including the loss, are averaged over the parts; other outputs are concatenated.
        """
        count = self.accumulate_steps
        parts = [batch]
        if count > 1:
            splits = [tf.split(tensor, count) for tensor in tf.nest.flatten(batch)]
            parts = [tf.nest.pack_sequence_as(batch, part) for part in zip(*splits, strict=True)]
        scale = self.loss_scale.value if self.loss_scale else 1
        gradients: list[tf.Tensor] = []
        parts_outputs = []
        for part in parts:
            if gradients:  # each part waits for the one before, which saves memory
                with tf.control_dependencies(gradients):
                    part = tf.nest.map_structure(tf.identity, part)
            with tf.GradientTape() as tape:
                loss, outputs = self.compute_views_loss(part)
                scaled_loss = loss * scale / (collectives.num_replicas() * count)
            part_gradients = tape.gradient(scaled_loss, self.learned_variables)
            gradients = (
                [total + added for total, added in zip(gradients, part_gradients, strict=True)]
                if gradients
                else part_gradients
            )
            parts_outputs.append({"loss": loss} | outputs)
        if self.loss_scale:
            gradients = [gradient / scale for gradient in gradients]
        joined = {
            name: _join(name, [values[name] for values in parts_outputs])
            for name in parts_outputs[0]
        }
        return gradients, joined


def _is_averaged(name: str, value: tf.Tensor) -> bool:
    """Returns whether an output is a metric, rather than a tensor with one row per image."""
    return value.shape.rank == 0 or name == "feature_moments"


def _join(name: str, values: list[tf.Tensor]) -> tf.Tensor:
    """Returns an output of the whole share from the outputs of its parts."""
    is_averaged = _is_averaged(name, values[0])
    return tf.add_n(values) / len(values) if is_averaged else tf.concat(values, axis=0)


@tf.function(jit_compile=True, autograph=False)
def _select(skipped, old, new):
    """Returns the old tensors if the step is skipped, else the new ones, by one kernel launch."""
    return [tf.where(skipped, before, after) for before, after in zip(old, new, strict=True)]


class LossScale(keras.layers.Layer):
    """The factor of the loss that keeps gradients above float16's smallest numbers.

    Each skipped step halves it; 2,000 other steps in a row double it.
    """

    def __init__(self, **kwargs: object) -> None:
        """Starts with the factor 2¹⁵.

        Args:
          **kwargs: arguments of `keras.layers.Layer`.
        """
        super().__init__(dtype="float32", **kwargs)
        variable = {"shape": (), "trainable": False}
        self.value = self.add_weight(
            name="value", initializer=keras.initializers.Constant(2.0**15), **variable
        )
        self.good_steps = self.add_weight(name="good_steps", initializer="zeros", **variable)
        self.built = True

    def update(self, skipped: tf.Tensor) -> None:
        """Adjusts the factor after a step.

        Args:
          skipped: bool scalar, whether the step was skipped.
        """
        good_steps = tf.where(skipped, 0.0, self.good_steps + 1)
        grown = good_steps >= _STEPS_TO_DOUBLE
        factor = tf.where(skipped, 0.5, tf.where(grown, 2.0, 1.0))
        self.value.assign(tf.maximum(self.value * factor, 1))
        self.good_steps.assign(tf.where(grown, 0.0, good_steps))


def feature_moments(views_z: list[tf.Tensor]) -> tf.Tensor:
    """Returns the moments of this replica's projections that `objectives.feature_std` takes.

    Args:
      views_z: projection z of each of V views, `[B, D]` each.

    Returns:
      `[V, 2, D]`: for each view the mean of z/‖z‖ and the mean of its square. No gradient flows.
    """
    units = [tf.math.l2_normalize(tf.stop_gradient(z), axis=1) for z in views_z]
    return tf.stack(
        [tf.stack([tf.reduce_mean(x, axis=0), tf.reduce_mean(tf.square(x), axis=0)]) for x in units]
    )
