"""SimSiam as alternating optimization: the targets η are frozen while θ takes steps (section 5)."""

import tensorflow as tf

from simsiam_tf.config import MethodConfig
from simsiam_tf.methods.base import Batch, Plan, feature_moments
from simsiam_tf.methods.simsiam import SimSiam
from simsiam_tf.models.backbone import Backbone
from simsiam_tf.models.bank import Bank


class Alternation(SimSiam):
    """L(θ, η) = ½ D(p1, η2) + ½ D(p2, η1).

    By default the targets are frozen for `--inner_steps` (section 5.2, "multi-step alternation"). η
    are then the projections of both views by the network at the start of these steps. The pass that
    computes them uses the same views as the steps. Frozen targets do not outlast an epoch. With one
    inner step the method is SimSiam.

    With `--eta_momentum` m, each image has a moving average η over its views (section 5.2,
    "expectation over augmentations"). η2 = m·η + (1−m)·z2/‖z2‖, and likewise η1; the mean of η1 and
    η2 is the new η. An image that is seen for the first time has no average yet, so m is 0.
    """

    bank: Bank

    def __init__(self, config: MethodConfig, encoder: Backbone, seed: int, plan: Plan) -> None:
        super().__init__(config, encoder, seed, plan)
        self.plan = plan
        self.eta_momentum = config.eta_momentum
        dim, dtype = config.projection_dim, self.variable_dtype
        if self.eta_momentum:
            self.bank = Bank(plan.num_examples, [dim], dtype)
        else:
            epoch = plan.steps_per_epoch
            is_epoch = config.inner_steps == "epoch"
            self.freeze_every = epoch if is_epoch else min(int(config.inner_steps), epoch)
            self.bank = Bank(self.freeze_every * plan.batch_size, [self.num_views, dim], dtype)

    def compute_views_loss(self, batch: Batch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        z = self.project(batch["views"], self.encoder, self.projector)
        outputs = {"feature_moments": feature_moments(z)}
        if self.eta_momentum:
            eta = self._average(batch, z)
            outputs["eta"] = tf.add_n(eta) / len(eta)
        else:
            step = tf.cast(self.optimizer.iterations, tf.int64) % self.plan.steps_per_epoch
            indices = self._bank_indices(batch, step % self.freeze_every)
            eta = tf.unstack(self.bank.lookup(indices), axis=1)
        return self.loss_against(z, eta), outputs

    def _average(self, batch: Batch, z: list[tf.Tensor]) -> list[tf.Tensor]:
        """Returns η1 and η2, the averages updated by each view of z; `[B, D]` each."""
        old = self.bank.lookup(batch["index"])
        is_seen = tf.reduce_any(tf.not_equal(old, 0), axis=1, keepdims=True)
        momentum = self.eta_momentum * tf.cast(is_seen, old.dtype)
        units = [tf.math.l2_normalize(tf.stop_gradient(view_z), axis=1) for view_z in z]
        return [momentum * old + (1 - momentum) * unit for unit in units]

    def after_update(self, batch: Batch, outputs: dict[str, tf.Tensor], skipped: tf.Tensor) -> None:
        if self.eta_momentum:
            indices = tf.where(skipped, tf.constant(-1, tf.int64), batch["index"])
            self.bank.update(indices, outputs["eta"])

    def freeze_targets(self, batch: Batch, offset: tf.Tensor | int) -> None:
        before = [tf.identity(variable) for variable in self.statistics]
        batch = self.with_positions(batch)
        z = self.project(batch["views"], self.encoder, self.projector)
        indices = self._bank_indices(batch, tf.cast(offset, tf.int64))
        self.bank.update(indices, tf.stack(z, axis=1))
        for variable, old in zip(self.statistics, before, strict=True):
            variable.assign(old)  # only the steps update the running statistics

    def _bank_indices(self, batch: Batch, offset: tf.Tensor) -> tf.Tensor:
        """Returns the bank indices of a batch `offset` steps after the targets were frozen."""
        return offset * self.plan.batch_size + batch["position"]
