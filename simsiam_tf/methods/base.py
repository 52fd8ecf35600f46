"""The one training step. A method supplies its loss and nothing else."""

import keras
import tensorflow as tf

from simsiam_tf import distribution, objectives

_STEPS_TO_DOUBLE = 2000


class SelfSupervisedModel(keras.Model):
    """An encoder and a method's heads, trained on several views of each image.

    A method writes `compute_views_loss`; one with a momentum encoder or a queue also writes
    `learned_variables` and `after_update`.
    """

    accumulate_steps = 1  # parts that a replica's share is passed through in

    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.loss_scale = LossScale() if self.compute_dtype == "float16" else None

    def call(self, images, training=False):
        """Normalised images `[B, H, W, 3]` → features `[B, F]`."""
        return self.encoder(images, training=training)

    def compute_views_loss(self, views):
        """The loss of one replica's share of a batch.

        Args:
          views: a list of `[B, H, W, 3]`, normalised, the views of the same B images.

        Returns:
          The loss, a scalar, and more scalars to watch: {name: scalar}.
        """
        raise NotImplementedError

    @property
    def learned_variables(self):
        """The variables that the gradient reaches."""
        return self.trainable_variables

    @property
    def predictor_variables(self):
        """Those of them whose rate `--fix_predictor_learning_rate` holds; none by default."""
        return []

    def after_update(self):
        """What follows the optimizer's step: a momentum update, a queue. Nothing by default."""
        return

    @property
    def statistics(self):
        """The variables that the forward pass moves: running means and variances."""
        return [
            variable
            for variable in self.non_trainable_variables
            if variable.aggregation == "only_first_replica"
        ]

    def train_step(self, data):
        """One step on one replica's share, in replica context.

        The optimizer sums gradients over replicas and the loss is a mean, so it is divided by
        their number. A step whose loss or gradient is not finite on any replica is void: it
        changes no weight and no statistic.

        Args:
          data: {"views": a tuple of `[B, H, W, 3]`}.

        Returns:
          {"loss": scalar, ..., "void": 0 or more than 0}, each the mean over all replicas.
        """
        before = [tf.identity(variable) for variable in self.statistics]
        gradients, scalars = self._accumulate_gradients(data["views"])
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
        self.after_update()
        return metrics

    def _accumulate_gradients(self, views):
        """The gradient of this replica's share and its scalars, the means over its parts."""
        parts = list(zip(*[tf.split(view, self.accumulate_steps) for view in views], strict=True))
        scale = self.loss_scale.value if self.loss_scale else 1
        gradients, scalars = None, []
        for part in parts:
            if gradients:  # one part after the other: that is what saves memory
                with tf.control_dependencies(gradients):
                    part = [tf.identity(view) for view in part]
            with tf.GradientTape() as tape:
                loss, others = self.compute_views_loss(list(part))
                scaled_loss = loss * scale / (distribution.num_replicas() * len(parts))
            found = tape.gradient(scaled_loss, self.learned_variables)
            gradients = (
                [a + b for a, b in zip(gradients, found, strict=True)] if gradients else found
            )
            scalars.append({"loss": loss} | others)
        if self.loss_scale:
            gradients = [gradient / scale for gradient in gradients]
        means = {
            name: tf.add_n([values[name] for values in scalars]) / len(parts) for name in scalars[0]
        }
        return gradients, means


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


def feature_std(z):
    """`objectives.feature_std` of the global batch, from this replica's z `[B, D]`."""
    unit = tf.math.l2_normalize(tf.stop_gradient(z), axis=1)
    moments = tf.stack([tf.reduce_mean(unit, axis=0), tf.reduce_mean(tf.square(unit), axis=0)])
    return objectives.feature_std(*tf.unstack(distribution.mean_over_replicas(moments)))
