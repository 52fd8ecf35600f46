"""SGD as PyTorch computes it, and LARS on top of it.

Keras decouples weight decay and folds the rate into the momentum; the numbers of the paper need
both as the reference has them.
"""

import math

import keras
import tensorflow as tf

from simsiam_tf import distribution


class EpochRates(keras.optimizers.schedules.LearningRateSchedule):
    """The rate of a step: that of its epoch, looked up in a list."""

    def __init__(self, rates, steps_per_epoch):
        """Args:
        rates: a float for each epoch; the last holds for whatever follows.
        steps_per_epoch: an int.
        """
        self.rates = rates
        self.steps_per_epoch = steps_per_epoch

    def __call__(self, step):
        epoch = tf.minimum(tf.cast(step, tf.int32) // self.steps_per_epoch, len(self.rates) - 1)
        return tf.gather(tf.constant(self.rates, keras.config.floatx()), epoch)


class SGD(keras.optimizers.Optimizer):
    """g ← g + λw; v ← μv + g; w ← w − rate·v (PyTorch's form of momentum, coupled L2).

    A step whose gradient is not finite is skipped: weights and velocities stay as they are.
    """

    def __init__(
        self,
        learning_rate,
        momentum,
        weight_decay,
        *,
        constant_rate_variables=(),
        constant_rate=None,
        excluded_variables=(),
        name="sgd",
    ):
        """Args:
        learning_rate: an `EpochRates`.
        momentum: μ.
        weight_decay: λ, on every variable that is not excluded.
        constant_rate_variables: those that keep one rate throughout.
        constant_rate: that rate.
        excluded_variables: those that only the gradient moves: no L2, and no scaling by LARS.
        name: of the optimizer.
        """
        super().__init__(learning_rate, name=name)
        # Keras broadcasts its counter from the first replica; here each replica counts for itself.
        self._variables.clear()
        self._iterations = self.add_variable((), dtype="int64", name="iteration")
        self.momentum = momentum
        self.l2_penalty = weight_decay
        self.constant_rate = constant_rate
        self.constant_rate_keys = {self._var_key(variable) for variable in constant_rate_variables}
        self.excluded_keys = {self._var_key(variable) for variable in excluded_variables}

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def apply(self, grads, trainable_variables=None):
        """Takes a step, in replica context.

        Args:
          grads: gradients of this replica, which are summed over all replicas.
          trainable_variables: as `build` had them; None will do.
        """
        if trainable_variables is not None:
            self.build(trainable_variables)
        gradient = distribution.sum_over_replicas(flatten(grads))
        self.update(gradient, tf.reduce_all(tf.math.is_finite(gradient)))

    def update(self, gradient, finite):
        """Takes a step, in replica context.

        All numbers go through one tensor, so that a step outside XLA is a kernel for each variable
        instead of a dozen.

        Args:
          gradient: of all variables one after the other, summed over all replicas, `[N]`.
          finite: bool tensor; if false, the step is skipped.
        """
        variables = self._trainable_variables
        sizes = [math.prod(variable.shape) for variable in variables]
        direction = self.directions(gradient, sizes)
        # A skipped step by numbers: v · 1 + 0 is v, and w − 0 · v is w.
        direction = tf.where(finite, direction, tf.zeros_like(direction))
        dtype = direction.dtype
        momentum = tf.where(finite, tf.constant(self.momentum, dtype), 1)
        rate = tf.where(finite, tf.cast(self.learning_rate, dtype), 0)
        constant_rate = tf.where(finite, tf.constant(self.constant_rate or 0, dtype), 0)
        parts = tf.split(direction, sizes)
        for variable, velocity, part in zip(variables, self.velocities, parts, strict=True):
            is_constant = self._var_key(variable) in self.constant_rate_keys
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.value.handle,
                accum=velocity.value.handle,
                lr=constant_rate if is_constant else rate,
                grad=tf.reshape(part, variable.shape),
                momentum=momentum,
            )
        self._iterations.assign_add(1)

    def directions(self, gradient, sizes):
        """What enters the momentum, `[N]`: the gradient with its L2 penalty."""
        if not self.l2_penalty:
            return gradient
        return gradient + self.l2_penalty * flatten(
            tf.zeros(variable.shape, variable.dtype) if self._is_excluded(variable) else variable
            for variable in self._trainable_variables
        )

    def _is_excluded(self, variable):
        return self._var_key(variable) in self.excluded_keys


class LARS(SGD):
    """SGD whose step is scaled for each tensor: trust · ‖w‖ / (‖g‖ + λ‖w‖ + 1e-8), no clipping.

    A tensor whose weight or gradient is all zero is left unscaled.
    """

    def __init__(
        self, learning_rate, momentum, weight_decay, trust_coefficient, *, name="lars", **others
    ):
        """Args:
        trust_coefficient: the step of a tensor over the tensor itself, at rate 1.
        others: as `SGD` has them.
        """
        super().__init__(learning_rate, momentum, weight_decay, name=name, **others)
        self.trust_coefficient = trust_coefficient

    def directions(self, gradient, sizes):
        excluded = [self._is_excluded(variable) for variable in self._trainable_variables]
        weight_norms = _norms(self._trainable_variables)
        gradient_norms = _norms(tf.split(gradient, sizes))
        ratios = self.trust_coefficient * weight_norms
        ratios /= gradient_norms + self.l2_penalty * weight_norms + 1e-8
        scalable = (weight_norms > 0) & (gradient_norms > 0) & tf.logical_not(excluded)
        scales = tf.unstack(tf.where(scalable, ratios, tf.ones_like(ratios)))
        parts = tf.split(super().directions(gradient, sizes), sizes)
        return tf.concat([scale * part for scale, part in zip(scales, parts, strict=True)], axis=0)


def flatten(tensors):
    """Tensors or variables of any shapes → all their numbers, `[N]`."""
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)


def _norms(tensors):
    """The Euclidean norm of each tensor, `[count]`."""
    return tf.sqrt(2 * tf.stack([tf.nn.l2_loss(tf.convert_to_tensor(one)) for one in tensors]))
