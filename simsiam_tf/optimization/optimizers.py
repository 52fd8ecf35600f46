"""SGD as PyTorch computes it, LARS on top of it, and AdamW of Keras.

Keras decouples weight decay and folds the learning rate into the momentum. The paper's numbers need
both as in the reference.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from simsiam_tf.distribution import collectives


@keras.saving.register_keras_serializable("simsiam_tf")
class EpochRates(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of a step is that of its epoch, from a list."""

    def __init__(self, rates: Sequence[float], steps_per_epoch: int) -> None:
        """Stores the list.

        Args:
          rates: learning rate of each epoch; the last one also applies to all later epochs.
          steps_per_epoch: number of steps in an epoch.
        """
        self.rates = list(rates)
        self.steps_per_epoch = steps_per_epoch

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """Returns the learning rate of a step, a float scalar; the first step is 0."""
        epoch = tf.minimum(tf.cast(step, tf.int32) // self.steps_per_epoch, len(self.rates) - 1)
        return tf.gather(tf.constant(self.rates, keras.config.floatx()), epoch)

    def get_config(self) -> dict[str, Any]:
        return {"rates": self.rates, "steps_per_epoch": self.steps_per_epoch}


@keras.saving.register_keras_serializable("simsiam_tf")
class StepRates(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate rises linearly from 0, then falls along half a cosine, at every step."""

    def __init__(self, full_rate: float, warmup_steps: int, num_steps: int) -> None:
        """Stores the numbers.

        Args:
          full_rate: the learning rate after the warm-up.
          warmup_steps: number of steps in which it rises.
          num_steps: number of all steps; after them, it is 0.
        """
        self.full_rate = full_rate
        self.warmup_steps = warmup_steps
        self.num_steps = num_steps

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """Returns the learning rate of a step, a float scalar; the first step is 0."""
        step = tf.cast(step, keras.config.floatx())
        rising = step / max(self.warmup_steps, 1)
        left = (self.num_steps - step) / max(self.num_steps - self.warmup_steps, 1)
        # Half a cosine as a squared sine of what is left, which float32 keeps precise near zero.
        falling = tf.sin(math.pi / 2 * tf.clip_by_value(left, 0, 1)) ** 2
        return self.full_rate * tf.where(step < self.warmup_steps, rising, falling)

    def get_config(self) -> dict[str, Any]:
        return {
            "full_rate": self.full_rate,
            "warmup_steps": self.warmup_steps,
            "num_steps": self.num_steps,
        }


@keras.saving.register_keras_serializable("simsiam_tf")
class SGD(keras.optimizers.Optimizer):
    """g ← g + λw; v ← μv + g; w ← w − γv, with learning rate γ, momentum μ and L2 penalty λ.

    This is PyTorch's form of momentum, with a coupled L2 penalty. A step whose gradient is not
    finite is skipped: it changes neither weights nor velocities.
    """

    def __init__(
        self,
        learning_rate: EpochRates | StepRates,
        momentum: float,
        weight_decay: float,
        *,
        constant_rate: float | None = None,
        constant_rate_variables: Collection[int] = (),
        excluded_variables: Collection[int] = (),
        name: str = "sgd",
    ) -> None:
        """Configures the optimizer; `build` creates the velocities.

        Args:
          learning_rate: learning rate of each step.
          momentum: μ.
          weight_decay: λ, for every variable that is not excluded.
          constant_rate: learning rate of the following variables in every step.
          constant_rate_variables: indices of variables in the list that `build` takes.
          excluded_variables: indices of the variables without L2 penalty and without the scaling
            of LARS.
          name: name of the optimizer.
        """
        super().__init__(learning_rate, name=name)
        self.schedule = learning_rate
        # Keras broadcasts its step counter from the first replica; here each replica counts itself.
        self._variables.clear()
        self._iterations = self.add_variable((), dtype="int64", name="iteration")
        self.momentum = momentum
        self.l2_penalty = weight_decay
        self.constant_rate = constant_rate
        self.constant_rate_variables = set(constant_rate_variables)
        self.excluded_variables = set(excluded_variables)

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the velocity of each variable, once."""
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def apply(
        self,
        grads: list[tf.Tensor],
        trainable_variables: list[keras.Variable] | None = None,
    ) -> None:
        """Updates the variables by this replica's gradients; call it in replica context.

        Args:
          grads: gradients of this replica; they are summed over all replicas.
          trainable_variables: the variables that `build` takes; None after `build`.
        """
        if trainable_variables is not None:
            self.build(trainable_variables)
        self.update(*sum_over_replicas(grads))

    def update(self, gradients: list[tf.Tensor], finite: tf.Tensor) -> None:
        """Updates the variables by gradients of all replicas; call it in replica context.

        Args:
          gradients: gradient of each variable, summed over replicas.
          finite: bool scalar, whether all gradients are finite; if not, the step is skipped.
        """
        variables = self._trainable_variables
        weights = [tf.convert_to_tensor(variable) for variable in variables]
        directions = self._directions(gradients, weights, finite)
        # A skipped step runs the same update with other numbers: v · 1 + 0 is v, w − 0 · v is w.
        dtype = directions[0].dtype
        momentum = tf.where(finite, tf.constant(self.momentum, dtype), 1)
        learning_rate = tf.where(finite, tf.cast(self.learning_rate, dtype), 0)
        constant_rate = tf.where(finite, tf.constant(self.constant_rate or 0, dtype), 0)
        for index, (variable, velocity, direction) in enumerate(
            zip(variables, self.velocities, directions, strict=True)
        ):
            is_constant = index in self.constant_rate_variables
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.value.handle,
                accum=velocity.value.handle,
                lr=constant_rate if is_constant else learning_rate,
                grad=direction,
                momentum=momentum,
            )
        self._iterations.assign_add(1)

    @tf.function(jit_compile=True, autograph=False)
    def _directions(self, gradients, weights, finite):
        """Returns what is added to each velocity, by one kernel launch; zeros if not `finite`."""
        directions = [
            gradient if index in self.excluded_variables else self.direction(gradient, weight)
            for index, (gradient, weight) in enumerate(zip(gradients, weights, strict=True))
        ]
        return [tf.where(finite, direction, 0) for direction in directions]

    def direction(self, gradient: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        """Returns what is added to a variable's velocity: its gradient plus its L2 penalty.

        Args:
          gradient: gradient of the variable, summed over replicas.
          weight: value of the variable, of the same shape.
        """
        return gradient + self.l2_penalty * weight

    def get_config(self) -> dict[str, Any]:
        rate = keras.saving.serialize_keras_object(self.schedule)
        return {
            "learning_rate": rate,
            "momentum": self.momentum,
            "weight_decay": self.l2_penalty,
            "constant_rate": self.constant_rate,
            "constant_rate_variables": sorted(self.constant_rate_variables),
            "excluded_variables": sorted(self.excluded_variables),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "SGD":
        rate = keras.saving.deserialize_keras_object(config["learning_rate"], custom_objects)
        return cls(**config | {"learning_rate": rate})


@keras.saving.register_keras_serializable("simsiam_tf")
class LARS(SGD):
    """SGD that scales each tensor's step by trust · ‖w‖ / (‖g‖ + λ‖w‖ + 1e-8), without clipping.

    A tensor whose weight or gradient is all zero is not scaled.
    """

    def __init__(
        self,
        learning_rate: EpochRates | StepRates,
        momentum: float,
        weight_decay: float,
        trust_coefficient: float,
        *,
        name: str = "lars",
        **others: Any,
    ) -> None:
        """Configures the optimizer.

        Args:
          learning_rate: as in `SGD`.
          momentum: as in `SGD`.
          weight_decay: as in `SGD`.
          trust_coefficient: ratio of a tensor's step to the tensor itself, at learning rate 1.
          name: name of the optimizer.
          **others: further arguments of `SGD`.
        """
        super().__init__(learning_rate, momentum, weight_decay, name=name, **others)
        self.trust_coefficient = trust_coefficient

    def direction(self, gradient: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        """Returns the scaled direction of `SGD`."""
        weight_norm, gradient_norm = tf.norm(weight), tf.norm(gradient)
        ratio = self.trust_coefficient * weight_norm
        ratio /= gradient_norm + self.l2_penalty * weight_norm + 1e-8
        is_scaled = tf.logical_and(weight_norm > 0, gradient_norm > 0)
        scale = tf.where(is_scaled, ratio, tf.ones_like(ratio))
        return scale * super().direction(gradient, weight)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"trust_coefficient": self.trust_coefficient}


@keras.saving.register_keras_serializable("simsiam_tf")
class AdamW(keras.optimizers.AdamW):
    """Keras' AdamW, which skips a step whose gradient is not finite, as `SGD` does."""

    def __init__(
        self,
        learning_rate: EpochRates | StepRates,
        weight_decay: float,
        *,
        constant_rate: float | None = None,
        constant_rate_variables: Collection[int] = (),
        excluded_variables: Collection[int] = (),
        name: str = "adamw",
    ) -> None:
        """Configures the optimizer; the betas are 0.9 and 0.999, epsilon is 1e-8.

        Args:
          learning_rate: learning rate of each step.
          weight_decay: share of a weight that a step at learning rate 1 subtracts from it.
          constant_rate: as in `SGD`.
          constant_rate_variables: as in `SGD`.
          excluded_variables: indices of the variables without weight decay.
          name: name of the optimizer.
        """
        super().__init__(learning_rate, weight_decay=weight_decay, epsilon=1e-8, name=name)
        self.schedule = learning_rate
        # As in `SGD`, each replica counts its steps itself.
        self._variables.clear()
        self._iterations = self.add_variable((), dtype="int64", name="iteration")
        self.constant_rate = constant_rate
        self.constant_rate_variables = set(constant_rate_variables)
        self.excluded_variables = set(excluded_variables)

    def apply(
        self,
        grads: list[tf.Tensor],
        trainable_variables: list[keras.Variable] | None = None,
    ) -> None:
        """Updates the variables by this replica's gradients, as `SGD.apply` does."""
        if trainable_variables is not None:
            self.build(trainable_variables)
        self.update(*sum_over_replicas(grads))

    def update(self, gradients: list[tf.Tensor], finite: tf.Tensor) -> None:
        """Updates the variables by gradients of all replicas, as `SGD.update` does."""
        variables = self._trainable_variables
        state = [variable.value for variable in (*variables, *self._momentums, *self._velocities)]
        before = [tf.identity(tensor) for tensor in state]
        for index, (variable, gradient) in enumerate(zip(variables, gradients, strict=True)):
            is_constant = index in self.constant_rate_variables
            rate = self.constant_rate if is_constant else self.learning_rate
            rate = tf.cast(rate, gradient.dtype)
            if index not in self.excluded_variables:
                variable.assign_sub(rate * self.weight_decay * variable)
            self.update_step(gradient, variable, rate)
        for tensor, old in zip(state, before, strict=True):
            tensor.assign(tf.where(finite, tensor, old))
        self._iterations.assign_add(1)

    def get_config(self) -> dict[str, Any]:
        return {
            "learning_rate": keras.saving.serialize_keras_object(self.schedule),
            "weight_decay": self.weight_decay,
            "constant_rate": self.constant_rate,
            "constant_rate_variables": sorted(self.constant_rate_variables),
            "excluded_variables": sorted(self.excluded_variables),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "AdamW":
        rate = keras.saving.deserialize_keras_object(config["learning_rate"], custom_objects)
        return cls(**config | {"learning_rate": rate})


def indices(variables: Iterable[keras.Variable], among: Sequence[keras.Variable]) -> list[int]:
    """Returns the indices of some variables in a list of variables."""
    wanted = {id(variable) for variable in variables}
    return [index for index, variable in enumerate(among) if id(variable) in wanted]


def sum_over_replicas(
    gradients: Sequence[tf.Tensor], metrics: Sequence[tf.Tensor] = ()
) -> tuple[Any, ...]:
    """Returns the sums of gradients and metrics over all replicas, by one collective.

    Call it in replica context.

    Args:
      gradients: float tensors.
      metrics: small float tensors.

    Returns:
      The gradients' sums, a list; whether all of them are finite, a bool scalar; and, if there are
      metrics, their sums, a list.
    """
    tensors = [tf.convert_to_tensor(tensor) for tensor in [*gradients, *metrics]]
    summed = collectives.sum_over_replicas(
        tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
    )
    sizes = [tensor.shape.num_elements() for tensor in tensors]
    if collectives.num_replicas() > 1:
        parts = tf.split(summed, sizes)
        tensors = [
            tf.reshape(part, tensor.shape) for part, tensor in zip(parts, tensors, strict=True)
        ]
    count = len(gradients)
    finite = tf.reduce_all(tf.math.is_finite(summed[: sum(sizes[:count])]))
    return tensors[:count], finite, *([tensors[count:]] if metrics else [])
