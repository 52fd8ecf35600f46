"""SimSiam as alternation: the targets η are frozen while the network θ takes steps (section 5)."""

import tensorflow as tf

from simsiam_tf.methods.base import feature_moments
from simsiam_tf.methods.simsiam import SimSiam
from simsiam_tf.models.bank import Bank


class Alternation(SimSiam):
    """L(θ, η) = ½ D(p1, η2) + ½ D(p2, η1).

    Either η are the projections of both views by the network as it was `--inner_steps` ago at most
    (section 5.2, "multi-step alternation"): the pass that computes them takes the very views of the
    steps to come. Frozen targets do not outlast an epoch. With one step it is SimSiam.

    Or η is for each image a moving average over its views, `--eta_momentum` (section 5.2,
    "expectation over augmentations"): η2 = m·η + (1−m)·z2/‖z2‖ and likewise η1, whose mean is kept.
    An image that is seen for the first time has no average yet: m is 0.
    """

    def __init__(self, config, encoder, seed, plan):
        super().__init__(config, encoder, seed)
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

    def compute_views_loss(self, batch):
        z = self.project(batch["views"], self.encoder, self.projector)
        outputs = {"feature_moments": feature_moments(z)}
        if self.eta_momentum:
            eta = self._average(batch, z)
            outputs["eta"] = tf.add_n(eta) / len(eta)
        else:
            step = tf.cast(self.optimizer.iterations, tf.int64) % self.plan.steps_per_epoch
            rows = self._rows(batch, step % self.freeze_every)
            eta = tf.unstack(self.bank.lookup(rows), axis=1)
        return self.loss_against(z, eta), outputs

    def _average(self, batch, z):
        """η with the newest view in it, for each view; `[B, D]` each."""
        old = self.bank.lookup(batch["index"])
        is_old = tf.reduce_any(tf.not_equal(old, 0), axis=1, keepdims=True)
        momentum = self.eta_momentum * tf.cast(is_old, old.dtype)
        unit = [tf.math.l2_normalize(tf.stop_gradient(one), axis=1) for one in z]
        return [momentum * old + (1 - momentum) * one for one in unit]

    def after_update(self, batch, outputs, skipped):
        if self.eta_momentum:
            rows = tf.where(skipped, tf.constant(-1, tf.int64), batch["index"])
            self.bank.update(rows, outputs["eta"])

    def freeze_targets(self, batch, offset):
        before = [tf.identity(variable) for variable in self.statistics]
        batch = self.with_positions(batch)
        z = self.project(batch["views"], self.encoder, self.projector)
        self.bank.update(self._rows(batch, tf.cast(offset, tf.int64)), tf.stack(z, axis=1))
        for variable, old in zip(self.statistics, before, strict=True):
            variable.assign(old)  # the steps move them

    def _rows(self, batch, offset):
        """The bank's rows of a batch that is `offset` steps after the targets were frozen."""
        return offset * self.plan.batch_size + batch["position"]
