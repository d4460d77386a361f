"""The memory estimate against what real processes take, and what it has to say of parts, precision and devices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from encoders import COMMON
from toys import toy_mlp
from transformers import AutoModel, BertConfig

from leebert.config import TrainConfig
from leebert.errors import ConfigError
from leebert.memory import BEFORE, estimate
from leebert.model import build_model
from leebert.objective import ExitObjective
from leebert.optim.fixed import Fixed
from leebert.runtime import Runtime
from leebert.stages import Stage, exits_only
from tune.machines.footprint import estimate_for_space
from tune.space import SweepSpec

CPU, GPU = Runtime(torch.device("cpu")), Runtime(torch.device("cuda"), torch.bfloat16)

# Trains real encoders for two steps each; prints the peak of resident memory above what was there before, and the
# estimate without its allowance for the process itself.
MEASURE = """
import ctypes, gc, json, sys
import torch
from transformers import AutoModel, BertConfig
from leebert import Runtime, TensorSamples, TrainConfig, build_model, fit
from leebert.memory import BEFORE, estimate

def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))

def measure(layers, hidden, rows, length, **options):
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 65536)  # larger blocks go back to the system when they are freed
    gc.collect()
    libc.malloc_trim(0)
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # forget the earlier peak
    config = TrainConfig(precision="fp32", max_epochs=1, eval_batch_size=rows, **options, batch_size=rows)
    shape = BertConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 32,
                       intermediate_size=4 * hidden, vocab_size=2000)
    model = build_model(AutoModel.from_config(shape), ("a", "b"))
    mask = torch.ones(4 * rows, length, dtype=torch.long)
    mask[::2, -1] = 0
    data = TensorSamples(input_ids=torch.randint(5, 1999, mask.shape), attention_mask=mask,
                      token_type_ids=torch.zeros_like(mask), labels=torch.randint(0, 2, mask.shape[:1]))
    cpu = Runtime(torch.device("cpu"))
    fit(model, data, config, validation=data, runtime=cpu)
    peak = status("VmHWM") - before
    return peak, estimate(model, rows, length, config, runtime=cpu).total - BEFORE["cpu"]

measure(2, 64, 2, 16)  # what libraries load and keep
print(json.dumps([measure(*shape, **options) for shape, options in json.loads(sys.argv[1])]))
"""


MEASURED = [
    ((2, 256, 8, 96), {"algorithm": "clo-v1"}),  # mostly activations
    ((6, 256, 6, 48), {"algorithm": "blo", "accumulate": 3}),
    ((2, 512, 2, 32), {"algorithm": "uniform"}),  # mostly weights
    ((2, 512, 2, 32), {"algorithm": "hyper-v2", "cycle_length": 1}),  # vectors of the size of the weights
]


@pytest.fixture(scope="module")
def measuring():
    """The process that measures, while other tests run."""
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURE, json.dumps(MEASURED)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def on_meta(layers=2, **shape):
    with torch.device("meta"):
        encoder = AutoModel.from_config(BertConfig(**{**COMMON, "num_hidden_layers": layers, **shape}))
        return build_model(encoder, ("no", "yes"))


def features(rows, _):
    return {"features": torch.zeros(rows, 6), "labels": torch.zeros(rows, dtype=torch.long)}


@pytest.mark.slow
def test_weights_gradients_and_moments_are_counted_to_the_byte_and_the_model_is_left_alone():
    model = toy_mlp()
    before = {name: (t.clone(), t.requires_grad) for name, t in model.state_dict(keep_vars=True).items()}
    found = estimate(model, 16, 0, TrainConfig(precision="fp32"), runtime=CPU, batch=features)
    size = 4 * sum(p.numel() for p in model.parameters())
    assert (found.parameters, found.gradients) == (size, size)
    # Adam keeps two numbers per parameter, a step count for each tensor of them; ω and its Adam are 9 numbers.
    assert 2 * size < found.moments < 2 * size + 4 * len(before) + 500
    assert found.activations > 0
    assert found.total == found.tensors + found.allowance > BEFORE["cpu"]
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.requires_grad == before[name][1]
        assert tensor.grad is None


def test_what_is_frozen_has_no_gradient_and_no_moments():
    settings = TrainConfig(algorithm="uniform", precision="fp32")
    objective = ExitObjective.of(settings, 3)
    stages = (
        Stage("all", objective, Fixed()),
        Stage("exits", objective, Fixed(), trains=exits_only),
    )
    both, whole, exits = (
        estimate(toy_mlp(), 8, 0, settings, runtime=CPU, batch=features, stages=s)
        for s in (stages, stages[:1], stages[1:])
    )
    assert exits.parameters == whole.parameters
    assert exits.gradients == 4 * 3 * (12 * 2 + 2)
    assert exits.moments < whole.moments / 2
    assert both == whole  # the stage that needs more


@pytest.mark.slow
@pytest.mark.usefixtures("measuring")
def test_parts_divide_the_activations():
    model = on_meta(hidden_size=64)
    whole, parts = (estimate(model, 64, 64, TrainConfig(accumulate=n, eval_batch_size=1), runtime=GPU) for n in (1, 4))
    assert parts.activations == pytest.approx(whole.activations / 4, rel=0.1)
    assert parts.gradients == whole.gradients


@pytest.mark.slow
def test_rows_length_precision_and_device_count():
    model, settings = on_meta(hidden_size=64), TrainConfig(eval_batch_size=8)
    gpu32 = Runtime(torch.device("cuda"))
    base, wide, long, full, on_cpu = (
        estimate(model, rows, length, settings, runtime=runtime).activations
        for rows, length, runtime in [(16, 32, GPU), (32, 32, GPU), (16, 64, GPU), (16, 32, gpu32), (16, 32, CPU)]
    )
    assert wide == pytest.approx(2 * base, rel=0.2)
    assert long == pytest.approx(2 * base, rel=0.2)  # no L × L matrix is kept per head
    assert 1.1 * base < full < 2.1 * base
    assert on_cpu > full
    small, large = (estimate(model, 2, 32, TrainConfig(eval_batch_size=n), runtime=GPU).evaluation for n in (8, 64))
    assert large > 5 * small


def spec_of(folder: Path, shape, **keys) -> SweepSpec:
    BertConfig(**shape).save_pretrained(folder)
    space = {"batch_size": [128, 16], "lr_theta": {"log_range": [1e-5, 1e-4]}, "teachers": ["lae", "last"]}
    return SweepSpec.model_validate(
        {"task": "mrpc", "backbone": str(folder), "algorithms": ["blo"], "space": space,
         "searcher": {"name": "random", "configurations": 3}, "resources": {"gpus": 1}, **keys}
    )  # fmt: skip


@pytest.mark.slow
def test_the_largest_configuration_of_a_space_is_estimated_from_a_config_alone(tmp_path):
    """BERT-large at 128 × 512, whose activations would fill a large GPU."""
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    values, found = estimate_for_space(spec_of(tmp_path, large, max_length=512))
    assert values["batch_size"] == 128
    assert 335e6 * 4 < found.parameters < 336e6 * 4 + 4096
    assert 50e9 < found.activations < 100e9


@pytest.mark.slow
def test_a_space_that_takes_batches_in_parts_or_runs_on_a_cpu_is_distinguished(tmp_path):
    shape = {**COMMON, "num_hidden_layers": 2, "hidden_size": 64, "max_position_embeddings": 128}
    whole, parts, cpu = (
        estimate_for_space(spec_of(tmp_path, shape, **keys))[1]
        for keys in ({}, {"training": {"accumulate": 8}}, {"resources": {"gpus": 0}, "training": {"precision": "fp32"}})
    )
    assert parts.activations < whole.activations / 6
    assert cpu.activations > whole.activations
    assert whole.allowance > BEFORE["cuda"]
    assert cpu.allowance > BEFORE["cpu"]
    with pytest.raises(ConfigError, match="max_length 256.*at most 128"):
        estimate_for_space(spec_of(tmp_path, shape, max_length=256))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs the peak of resident memory from /proc")
def test_the_estimate_is_at_least_what_a_process_takes_and_at_most_a_quarter_more(measuring):
    out, err = measuring.communicate(timeout=300)
    assert measuring.returncode == 0, err
    for run, (measured, estimated) in zip(MEASURED, json.loads(out), strict=True):
        assert measured <= estimated <= 1.25 * measured, run
