"""The files of paddle.fluid 1.8.5: its own load, and ours have its format."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from fluid_model import GOLDEN, Network, batches, optimizer, train_static

from diptych import fluid
from diptych.errors import FileFormatError
from diptych.fluid import dygraph, framework
from diptych.fluid.core import EnforceNotMet

pytestmark = pytest.mark.usefixtures("fluid_process")


@pytest.mark.parametrize("name", ["apart", "together"])
def test_an_inference_model_of_1_8_5_loads(name):
    more = {"params_filename": "weights"} if name == "together" else {}
    executor = fluid.Executor()
    program, feeds, fetches = fluid.io.load_inference_model(GOLDEN / name, executor, **more)
    assert feeds == ["image"]
    *_, (x, _) = batches()
    (out,) = executor.run(program, feed={"image": x}, fetch_list=fetches)
    assert np.abs(out - np.load(GOLDEN / "output.npy")).max() < 1e-6


@pytest.mark.parametrize("together", [None, "weights"])
def test_inference_models_come_back(together):
    train_static("sgd_0.1")
    predict = fluid.default_main_program().var("fc_1.tmp_2")
    executor = fluid.Executor()
    names = fluid.io.save_inference_model(
        "model", ["image"], [predict], executor, params_filename=together
    )
    assert names == ["save_infer_model/scale_0.tmp_0"]
    assert Path("model/__model__").exists()
    for n in ("fc_0.b_0", "fc_1.w_0"):
        same = (GOLDEN / "apart" / n).stat().st_size
        assert together or Path("model", n).stat().st_size == same
    *_, (x, y) = batches()
    (before,) = executor.run(
        fluid.default_main_program().clone(for_test=True), {"image": x, "label": y}, [predict]
    )
    framework.SCOPE.parameters.clear()
    program, feeds, fetches = fluid.io.load_inference_model("model", executor, None, together)
    (after,) = executor.run(program, feed={feeds[0]: x}, fetch_list=fetches)
    assert after.tobytes() == before.tobytes()


def test_broken_inference_models():
    executor = fluid.Executor()
    with pytest.raises(ValueError, match="no directory"):
        fluid.io.load_inference_model("nothing", executor)
    whole = {p.name: p.read_bytes() for p in (GOLDEN / "apart").iterdir()}
    Path("m").mkdir()
    for name in ("__model__", "fc_0.w_0"):
        for cut in (0, 7, 20, len(whole[name]) - 3):
            for n, data in whole.items():
                Path("m", n).write_bytes(data[:cut] if n == name else data)
            with pytest.raises((FileFormatError, EnforceNotMet)):
                fluid.io.load_inference_model("m", executor)


def test_dygraph_weights_of_1_8_5_load_and_ours_have_its_format():
    weights, state = fluid.load_dygraph(str(GOLDEN / "network"))
    expected = np.load(GOLDEN / "network.npz")
    assert state is None and set(weights) == set(expected)
    assert all(weights[n].tobytes() == expected[n].tobytes() for n in weights)
    with fluid.dygraph.guard():
        model = Network()
        model.set_dict(weights)
        assert model.hidden.weight.numpy().tobytes() == expected["hidden.weight"].tobytes()
        fluid.save_dygraph(model.state_dict(), "network")
    ours, theirs = Path("network.pdparams").read_bytes(), GOLDEN / "network.pdparams"
    assert ours[:2] == theirs.read_bytes()[:2] == b"\x80\x02"
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in ours and b"_core" not in ours
    again, _ = fluid.load_dygraph("network.pdparams", keep_name_table=True)
    names = again.pop("StructuredToParameterName@@")
    assert names["hidden.weight"] == "linear_0.w_0"
    assert all(again[n].tobytes() == weights[n].tobytes() for n in weights)
    with pytest.raises(RuntimeError, match="not exists"):
        fluid.load_dygraph("missing")


@pytest.mark.parametrize("name", ["momentum_0.01_0.9", "adam_0.001", "sgd_0.1"])
def test_training_goes_on_from_saved_files(name):
    """Weights and accumulators, under 1.8.5's names, lead on to the same bits."""

    def steps(model, update, some):
        for x, y in some:
            predict = model(dygraph.to_variable(x))
            cost = fluid.layers.cross_entropy(predict, dygraph.to_variable(y))
            fluid.layers.mean(cost).backward()
            update.minimize(cost)
            model.clear_gradients()
        return [p.numpy().tobytes() for p in model.parameters()]

    data = list(batches())
    with fluid.dygraph.guard():
        model = Network()
        update = optimizer(name, parameter_list=model.parameters())
        assert update.state_dict() == {}
        steps(model, update, data[:5])
        state = update.state_dict()
        fluid.save_dygraph(model.state_dict(), "network")
        if state:
            fluid.save_dygraph(state, "network")
        end = steps(model, update, data[5:])
    kinds = {"adam": {"beta1_pow_acc", "beta2_pow_acc", "moment1", "moment2"},
             "momentum": {"velocity"}, "sgd": set()}[name.partition("_")[0]]  # fmt: skip
    assert set(state) == {f"linear_{n}.{p}_0_{k}_0" for n in (0, 1) for p in "wb" for k in kinds}
    if name.startswith("adam"):  # as 1.8.5 has it after five steps
        assert abs(state["linear_1.b_0_beta1_pow_acc_0"] - 0.9**6) < 1e-6
    with fluid.dygraph.guard():
        model = Network()
        update = optimizer(name, parameter_list=model.parameters())
        weights, state = fluid.load_dygraph("network")
        model.set_dict(weights)
        if state:
            update.set_dict(state)
            state.pop("linear_0.w_0_velocity_0", None)
            state.pop("linear_0.w_0_moment1_0", None)
            with pytest.raises(RuntimeError, match="not found"):
                optimizer(name, parameter_list=model.parameters()).set_dict(state)
        assert steps(model, update, data[5:]) == end


class Harm:
    def __reduce__(self):
        return os.system, ("echo harm > harm.txt",)


def test_loading_runs_no_code():
    for content in ({"a": Harm()}, [1, 2], {"a": {1, 2}}, {"a": np.array([{}], object)}):
        Path("w.pdparams").write_bytes(pickle.dumps(content, 2))
        with pytest.raises(FileFormatError):
            fluid.load_dygraph("w")
    Path("w.pdparams").write_bytes(b"\x80\x02}q\x00")
    with pytest.raises(FileFormatError):
        fluid.load_dygraph("w")
    assert not Path("harm.txt").exists()


# ---- what users meet ---------------------------------------------------------------------------
