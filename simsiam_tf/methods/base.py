"""The one training step. A method supplies its loss and nothing else."""

import dataclasses

import keras
import tensorflow as tf

from simsiam_tf import objectives
from simsiam_tf.distribution import collectives
from simsiam_tf.optimization import optimizers

_STEPS_TO_DOUBLE = 2000


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a method may need to know of the run that it is trained in."""

    num_examples: int
    num_classes: int  # 0: there are no labels
    batch_size: int  # global
    epochs: int

    @property
    def steps_per_epoch(self):
        return self.num_examples // self.batch_size

    @property
    def num_steps(self):
        return self.steps_per_epoch * self.epochs


class SelfSupervisedModel(keras.Model):
    """An encoder and a method's heads, trained on several views of each image.

    A method writes `compute_views_loss`; one with a momentum encoder or a queue also writes
    `learned_variables` and `after_update`.
    """

    num_views = 2  # of each image, that the loss takes
    accumulate_steps = 1  # parts that a replica's share is passed through in
    freeze_every = 0  # steps of an epoch from one call of `freeze_targets` to the next; 0: none
    bank = None  # a `Bank` that checkpoints keep besides the weights

    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.loss_scale = LossScale() if self.compute_dtype == "float16" else None

    def call(self, images, training=False):
        """Normalised images `[B, H, W, 3]` → features `[B, F]`."""
        return self.encoder(images, training=training)

    def compute_views_loss(self, batch):
        """The loss of one replica's share of a batch.

        Args:
          batch: {"views": a list of `num_views` `[B, H, W, 3]`, normalised, the views of the same B
            images; "label" int32, "index" int64 (in the data set) and "position" int64 (in the
            global batch) `[B]`}.

        Returns:
          The loss, a scalar, and {name: tensor}: "feature_moments" of `feature_moments`, scalars to
          watch, and what `after_update` needs, tensors `[B, ...]`.
        """
        raise NotImplementedError

    def project(self, views, encoder, projector):
        """z of each view, a list of `[B, D]`.

        All views go in one pass: normalization keeps their statistics apart.
        """
        how = {"training": True, "num_views": len(views)}
        z = projector(encoder(tf.concat(views, axis=0), **how), **how)
        return tf.split(z, len(views))

    @property
    def learned_variables(self):
        """The variables that the gradient reaches."""
        return self.trainable_variables

    @property
    def predictor_variables(self):
        """Those of them whose rate `--fix_predictor_learning_rate` holds; none by default."""
        return []

    def after_update(self, batch, outputs, skipped):
        """What follows the optimizer's step: a momentum update, a queue. Nothing by default.

        Args:
          batch: the replica's share, as `compute_views_loss` has it.
          outputs: what that returned, {name: tensor}.
          skipped: bool tensor, whether the step must change nothing.
        """
        return

    def freeze_targets(self, batch, offset):
        """Computes and keeps the targets of the batch that is `offset` steps ahead."""
        raise NotImplementedError

    @property
    def statistics(self):
        """The variables that the forward pass moves: running means and variances."""
        return [
            variable
            for variable in self.non_trainable_variables
            if variable.name in ("running_mean", "running_variance")
        ]

    def train_step(self, data):
        """One step on one replica's share, in replica context.

        The optimizer takes gradients summed over replicas and the loss is a mean, so it is divided
        by their number. One collective carries the gradients and all metrics. A step whose loss or
        gradient is not finite on any replica is skipped: it changes no weight and no statistic.

        Args:
          data: {"views": a tuple of `[B, H, W, 3]`, and what else `compute_views_loss` takes};
            "stop", a scalar, is 1 if this worker was told to stop; 0 by default.

        Returns:
          {"loss": scalar, ..., "feature_std": scalar, "stop": more than 0 if any worker was told to
          stop, "skipped": 1 if the step was skipped, else 0}, each over all replicas.
        """
        before = [tf.identity(variable) for variable in self.statistics]
        data = dict(data)
        stop = data.pop("stop", tf.zeros([]))
        batch = self.with_positions(data)
        gradients, outputs = self._accumulate_gradients(batch)
        averaged = {name: value for name, value in outputs.items() if _is_averaged(name, value)}
        averaged["stop"] = tf.cast(stop, outputs["loss"].dtype)
        gradients, finite, sums = optimizers.sum_over_replicas(gradients, list(averaged.values()))
        num_replicas = collectives.num_replicas()
        means = {name: total / num_replicas for name, total in zip(averaged, sums, strict=True)}
        finite = tf.logical_and(finite, tf.math.is_finite(means["loss"]))
        skipped = tf.logical_not(finite)
        self.optimizer.update(gradients, finite)
        statistics = _kept_if(skipped, before, [tf.identity(one) for one in self.statistics])
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

    def with_positions(self, data):
        """A replica's share with the positions of its images in the global batch."""
        size = data["views"][0].shape[0]
        first = tf.cast(collectives.replica_id(), tf.int64) * size
        return data | {"position": first + tf.range(size, dtype=tf.int64)}

    def _accumulate_gradients(self, batch):
        """The gradient of this replica's share and its outputs, over its parts.

        Metrics are averaged, the loss among them; other outputs are joined.
        """
        count = self.accumulate_steps
        parts = [batch]
        if count > 1:
            pieces = [tf.split(rows, count) for rows in tf.nest.flatten(batch)]
            parts = [tf.nest.pack_sequence_as(batch, part) for part in zip(*pieces, strict=True)]
        scale = self.loss_scale.value if self.loss_scale else 1
        gradients, found = None, []
        for part in parts:
            if gradients:  # one part after the other: that is what saves memory
                with tf.control_dependencies(gradients):
                    part = tf.nest.map_structure(tf.identity, part)
            with tf.GradientTape() as tape:
                loss, outputs = self.compute_views_loss(part)
                scaled_loss = loss * scale / (collectives.num_replicas() * count)
            of_part = tape.gradient(scaled_loss, self.learned_variables)
            gradients = (
                [a + b for a, b in zip(gradients, of_part, strict=True)] if gradients else of_part
            )
            found.append({"loss": loss} | outputs)
        if self.loss_scale:
            gradients = [gradient / scale for gradient in gradients]
        joined = {name: _join(name, [values[name] for values in found]) for name in found[0]}
        return gradients, joined


def _is_averaged(name, value):
    """Whether an output is a metric, not a row for each image."""
    return value.shape.rank == 0 or name == "feature_moments"


def _join(name, values):
    is_averaged = _is_averaged(name, values[0])
    return tf.add_n(values) / len(values) if is_averaged else tf.concat(values, axis=0)


@tf.function(jit_compile=True, autograph=False)
def _kept_if(skipped, old, new):
    """The old tensors if the step was skipped, else the new ones: one launch for all of them."""
    return [tf.where(skipped, before, after) for before, after in zip(old, new, strict=True)]


class LossScale(keras.layers.Layer):
    """The factor that keeps gradients above float16's smallest numbers.

    It is halved with each skipped step, and doubled after 2,000 others in a row.
    """

    def __init__(self, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        variable = {"shape": (), "trainable": False}
        self.value = self.add_weight(
            name="value", initializer=keras.initializers.Constant(2.0**15), **variable
        )
        self.good_steps = self.add_weight(name="good_steps", initializer="zeros", **variable)
        self.built = True

    def update(self, skipped):
        """Takes note of a step: a bool, whether it was skipped."""
        good_steps = tf.where(skipped, 0.0, self.good_steps + 1)
        grown = good_steps >= _STEPS_TO_DOUBLE
        factor = tf.where(skipped, 0.5, tf.where(grown, 2.0, 1.0))
        self.value.assign(tf.maximum(self.value * factor, 1))
        self.good_steps.assign(tf.where(grown, 0.0, good_steps))


def feature_moments(views_z):
    """The moments that `objectives.feature_std` takes, of this replica's z `[B, D]` of each view.

    Returns:
      `[V, 2, D]`: for each view the mean of z/‖z‖ and of its square, without gradient.
    """
    units = [tf.math.l2_normalize(tf.stop_gradient(z), axis=1) for z in views_z]
    return tf.stack(
        [tf.stack([tf.reduce_mean(x, axis=0), tf.reduce_mean(tf.square(x), axis=0)]) for x in units]
    )
