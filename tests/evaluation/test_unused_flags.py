"""Flags of `evaluate.py` that the chosen protocol does not use."""

import pytest

from simsiam_tf import flags, schema
from simsiam_tf.evaluation.config import EvaluationConfig

PROTOCOLS = ("knn", "probe", "linear", "finetune", "spectrum", "features")
LABELLED = {"knn", "probe", "linear", "finetune"}
CROPPING = {"linear", "finetune", "spectrum"}
# A value other than the default for every setting that not all protocols use, and its users.
USERS = {
    "train_split=train[:9]": LABELLED,
    "knn_k=7": {"knn"},
    "knn_temperature=0.5": {"knn"},
    "batch_size=8": {"linear"},
    "epochs=3": {"linear"},
    "base_learning_rate=0.5": {"linear"},
    "momentum=0.5": {"linear"},
    "weight_decay=0.5": {"linear"},
    "lars_trust_coefficient=0.5": {"linear"},
    "probe_epochs=5": {"probe"},
    "probe_batch_size=8": {"probe"},
    "probe_held_out=0.5": {"probe"},
    "label_fraction=0.5": {"finetune"},
    "finetune_epochs=5": {"finetune"},
    "finetune_batch_size=8": {"finetune"},
    "finetune_learning_rate=0.5": {"finetune"},
    "finetune_head_learning_rate=0.5": {"finetune"},
    "finetune_weight_decay=0.5": {"finetune"},
    "crop_min_area=0.5": CROPPING,
    "flip_probability=0.25": CROPPING,
    "feature_cache=cache": set(PROTOCOLS) - {"finetune"},
}
USED_BY_ALL = {
    "dataset", "data_dir", "eval_split", "on_bad_image", "max_bad_fraction", "max_image_pixels",
    "strategy", "tpu", "cpu_replicas", "deterministic", "tf32",
    "encoder", "protocol", "image_size", "eval_crop_ratio", "feature_batch_size", "seed", "output",
}  # fmt: skip


def read(protocol, *more):
    arguments = ["--encoder=x", "--output=x.npz", f"--protocol={protocol}", *more]
    return schema.flatten(flags.read(arguments, EvaluationConfig))


def test_the_users_of_every_setting_are_tested():
    names = {setting.split("=")[0] for setting in USERS}
    assert names | USED_BY_ALL == schema.defaults(EvaluationConfig).keys()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("setting", USERS)
def test_a_protocol_takes_only_the_flags_that_it_uses(setting, protocol):
    name, value = setting.split("=")
    if protocol in USERS[setting]:
        assert str(read(protocol, f"--{setting}")[name]) == value
        return
    users = " or ".join(user for user in PROTOCOLS if user in USERS[setting])
    with pytest.raises(schema.UserError) as error:
        read(protocol, f"--{setting}")
    assert str(error.value) == (
        f"--{name} is for --protocol={users}. Received: {value} with --protocol={protocol}"
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_default_that_is_written_out_is_taken_by_every_protocol(protocol):
    defaults = schema.defaults(EvaluationConfig)
    names = [setting.split("=")[0] for setting in USERS]
    found = read(protocol, *(f"--{name}={defaults[name]}" for name in names))
    assert {name: found[name] for name in names} == {name: defaults[name] for name in names}


def test_a_flagfiles_line_that_the_protocol_does_not_use_is_refused(tmp_path):
    (tmp_path / "mine.cfg").write_text("--encoder=x\n--knn_k=20\n")
    arguments = [f"--flagfile={tmp_path / 'mine.cfg'}"]
    assert flags.read(arguments, EvaluationConfig).knn.knn_k == 20
    with pytest.raises(schema.UserError, match=r"--knn_k is for --protocol=knn\. Received: 20"):
        flags.read([*arguments, "--protocol=probe"], EvaluationConfig)


def test_a_flag_that_the_protocol_does_not_use_ends_with_one_line_and_status_2(program):
    finished = program("evaluate.py", "--encoder=x", "--protocol=knn", "--probe_epochs=5")
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    assert line == (
        "evaluate.py: --probe_epochs is for --protocol=probe. Received: 5 with --protocol=knn"
    )
