"""SGD as PyTorch computes it, and LARS on top of it.

Keras decouples weight decay and folds the rate into the momentum; the numbers of the paper need
both as the reference has them.
"""

import keras
import tensorflow as tf

from simsiam_tf.distribution import collectives


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
          grads: gradients of this replica; they are summed over all replicas.
          trainable_variables: as `build` had them; None will do.
        """
        if trainable_variables is not None:
            self.build(trainable_variables)
        self.update(*sum_over_replicas(grads))

    def update(self, gradients, finite):
        """Takes a step, in replica context.

        Args:
          gradients: of each variable, summed over replicas.
          finite: bool tensor, whether all of them are; if not, the step is skipped.
        """
        variables = self._trainable_variables
        weights = [tf.convert_to_tensor(variable) for variable in variables]
        directions = self._directions(gradients, weights, finite)
        # A skipped step by numbers: v · 1 + 0 is v, and w − 0 · v is w.
        dtype = directions[0].dtype
        momentum = tf.where(finite, tf.constant(self.momentum, dtype), 1)
        rate = tf.where(finite, tf.cast(self.learning_rate, dtype), 0)
        constant_rate = tf.where(finite, tf.constant(self.constant_rate or 0, dtype), 0)
        for variable, velocity, direction in zip(
            variables, self.velocities, directions, strict=True
        ):
            is_constant = self._var_key(variable) in self.constant_rate_keys
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.value.handle,
                accum=velocity.value.handle,
                lr=constant_rate if is_constant else rate,
                grad=direction,
                momentum=momentum,
            )
        self._iterations.assign_add(1)

    @tf.function(jit_compile=True, autograph=False)
    def _directions(self, gradients, weights, finite):
        """The update of each variable's momentum; zeros if not `finite`. One launch for all."""
        excluded = [self._var_key(one) in self.excluded_keys for one in self._trainable_variables]
        return [
            tf.where(finite, gradient if alone else self.direction(gradient, weight), 0)
            for gradient, weight, alone in zip(gradients, weights, excluded, strict=True)
        ]

    def direction(self, gradient, weight):
        """The update of a variable's momentum: its gradient with its L2 penalty."""
        return gradient + self.l2_penalty * weight


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

    def direction(self, gradient, weight):
        weight_norm, gradient_norm = tf.norm(weight), tf.norm(gradient)
        ratio = self.trust_coefficient * weight_norm
        ratio /= gradient_norm + self.l2_penalty * weight_norm + 1e-8
        scalable = tf.logical_and(weight_norm > 0, gradient_norm > 0)
        scale = tf.where(scalable, ratio, tf.ones_like(ratio))
        return scale * super().direction(gradient, weight)


def sum_over_replicas(gradients, metrics=()):
    """The sums of gradients and metrics over all replicas, by one collective, in replica context.

    Args:
      gradients: a list of tensors.
      metrics: likewise, small ones.

    Returns:
      The gradients' sums; whether all of them are finite, a bool tensor; the metrics' sums.
    """
    tensors = [tf.convert_to_tensor(tensor) for tensor in [*gradients, *metrics]]
    numbers = collectives.sum_over_replicas(
        tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
    )
    sizes = [tensor.shape.num_elements() for tensor in tensors]
    if collectives.num_replicas() > 1:
        parts = tf.split(numbers, sizes)
        tensors = [tf.reshape(part, one.shape) for part, one in zip(parts, tensors, strict=True)]
    count = len(gradients)
    finite = tf.reduce_all(tf.math.is_finite(numbers[: sum(sizes[:count])]))
    return tensors[:count], finite, *([tensors[count:]] if metrics else [])
