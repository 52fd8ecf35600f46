"""The one training step. A method supplies its loss and nothing else."""

import dataclasses

import keras
import tensorflow as tf

from simsiam_tf import distribution, objectives

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
    hold_every = 0  # steps of an epoch from one call of `hold_targets` to the next; 0: none
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
          The loss, a scalar, and {name: tensor}: scalars to watch, "feature_std" for one, and what
          `after_update` needs, tensors `[B, ...]`.
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

    def after_update(self, batch, outputs, void):
        """What follows the optimizer's step: a momentum update, a queue. Nothing by default.

        Args:
          batch: the replica's share, as `compute_views_loss` has it.
          outputs: what that returned beside scalars, {name: `[B, ...]`}.
          void: bool tensor, whether the step must change nothing.
        """
        return

    def hold_targets(self, batch, place):
        """Keeps the targets of a batch that is `place` steps ahead, before these steps."""
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

        The optimizer sums gradients over replicas and the loss is a mean, so it is divided by
        their number. A step whose loss or gradient is not finite on any replica is void: it
        changes no weight and no statistic.

        Args:
          data: {"views": a tuple of `[B, H, W, 3]`, and what else `compute_views_loss` takes}.

        Returns:
          {"loss": scalar, ..., "void": 0 or more than 0}, each the mean over all replicas.
        """
        before = [tf.identity(variable) for variable in self.statistics]
        batch = self.with_positions(data)
        gradients, outputs = self._accumulate_gradients(batch)
        scalars = {name: value for name, value in outputs.items() if value.shape.rank == 0}
        finite = tf.reduce_all(
            [tf.reduce_all(tf.math.is_finite(value)) for value in [scalars["loss"], *gradients]]
        )
        # NaN everywhere is what the optimizer leaves out, and summing carries it to every replica.
        poison = tf.where(finite, 0.0, float("nan"))
        gradients = [gradient + tf.cast(poison, gradient.dtype) for gradient in gradients]
        self.optimizer.apply(gradients, self.learned_variables)

        scalars["void"] = tf.cast(tf.logical_not(finite), scalars["loss"].dtype)
        means = tf.unstack(distribution.mean_over_replicas(tf.stack(list(scalars.values()))))
        metrics = dict(zip(scalars, means, strict=True))
        void = metrics["void"] > 0
        for variable, old in zip(self.statistics, before, strict=True):
            variable.assign(tf.where(void, old, variable))
        if self.loss_scale:
            self.loss_scale.update(void)
        self.after_update(batch, outputs, void)
        return metrics

    def with_positions(self, data):
        """A replica's share with the positions of its images in the global batch."""
        size = data["views"][0].shape[0]
        first = tf.cast(distribution.replica_id(), tf.int64) * size
        return data | {"position": first + tf.range(size, dtype=tf.int64)}

    def _accumulate_gradients(self, batch):
        """The gradient of this replica's share and its outputs, over its parts.

        Scalars are the means over the parts, the loss among them; other outputs are joined.
        """
        count = self.accumulate_steps
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
                scaled_loss = loss * scale / (distribution.num_replicas() * count)
            of_part = tape.gradient(scaled_loss, self.learned_variables)
            gradients = (
                [a + b for a, b in zip(gradients, of_part, strict=True)] if gradients else of_part
            )
            found.append({"loss": loss} | outputs)
        if self.loss_scale:
            gradients = [gradient / scale for gradient in gradients]
        return gradients, {name: _join([values[name] for values in found]) for name in found[0]}


def _join(values):
    return tf.concat(values, axis=0) if values[0].shape.rank else tf.add_n(values) / len(values)


class LossScale(keras.layers.Layer):
    """The factor that keeps gradients above float16's smallest numbers.

    It is halved with each void step, and doubled after 2,000 others in a row.
    """

    def __init__(self, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        variable = {"shape": (), "trainable": False, "aggregation": "only_first_replica"}
        self.value = self.add_weight(
            name="value", initializer=keras.initializers.Constant(2.0**15), **variable
        )
        self.good_steps = self.add_weight(name="good_steps", initializer="zeros", **variable)
        self.built = True

    def update(self, void):
        """Takes note of a step: a bool, whether it was void."""
        good_steps = tf.where(void, 0.0, self.good_steps + 1)
        grown = good_steps >= _STEPS_TO_DOUBLE
        factor = tf.where(void, 0.5, tf.where(grown, 2.0, 1.0))
        self.value.assign(tf.maximum(self.value * factor, 1))
        self.good_steps.assign(tf.where(grown, 0.0, good_steps))


def feature_std(views_z):
    """`objectives.feature_std` of the global batch, from this replica's z `[B, D]` of each view."""
    return tf.add_n([_feature_std(z) for z in views_z]) / len(views_z)


def _feature_std(z):
    unit = tf.math.l2_normalize(tf.stop_gradient(z), axis=1)
    moments = tf.stack([tf.reduce_mean(unit, axis=0), tf.reduce_mean(tf.square(unit), axis=0)])
    return objectives.feature_std(*tf.unstack(distribution.mean_over_replicas(moments)))
