"""SGD as PyTorch computes it, and LARS on top of it.

Keras decouples weight decay and folds the rate into the momentum; the numbers of the paper need
both as the reference has them.
"""

import keras
import tensorflow as tf


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

    Weights whose gradient has a NaN in it stay as they are, and so does their velocity.
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

    def update_step(self, gradient, variable, learning_rate):
        velocity = self.velocities[self._get_variable_index(variable)]
        if self._var_key(variable) in self.constant_rate_keys:
            rate = tf.constant(self.constant_rate, variable.dtype)
        else:
            rate = tf.cast(learning_rate, variable.dtype)
        gradient = tf.cast(gradient, variable.dtype)
        if self._var_key(variable) not in self.excluded_keys:
            gradient = self.direction(gradient, variable)
        # By numbers, as it takes fewer passes over memory: v · 1 + 0 is v, and w − 0 · v is w.
        void = tf.math.is_nan(tf.reduce_sum(gradient))
        zero, one = (tf.constant(number, variable.dtype) for number in (0, 1))
        gradient = tf.math.multiply_no_nan(gradient, tf.where(void, zero, one))
        momentum = tf.where(void, one, tf.constant(self.momentum, variable.dtype))
        self.assign(velocity, momentum * velocity + gradient)
        self.assign_sub(variable, tf.where(void, zero, rate) * velocity)

    def direction(self, gradient, variable):
        """What enters the momentum: the gradient with its L2 penalty."""
        return gradient + self.l2_penalty * variable


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

    def direction(self, gradient, variable):
        weight_norm, gradient_norm = tf.norm(variable), tf.norm(gradient)
        ratio = self.trust_coefficient * weight_norm
        ratio /= gradient_norm + self.l2_penalty * weight_norm + 1e-8
        scalable = tf.logical_and(weight_norm > 0, gradient_norm > 0)
        scale = tf.where(scalable, ratio, tf.ones_like(ratio))
        return scale * super().direction(gradient, variable)
