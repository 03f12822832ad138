"""The examples of the README's section "In your own loop" run as they stand."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(
    r"```python\n(.*?)```", README.read_text().split("\n## In your own loop\n")[1].split("\n## ")[0], re.S
)
ALONE = [block for block in BLOCKS if "init_process_group" not in block]
TOGETHER = [block for block in BLOCKS if "init_process_group" in block]


def accuracy(model):
    model.eval()
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(1))
    return (model(x).argmax(1) == x[:, :3].argmax(1)).double().mean().item()


def test_the_section_is_what_it_was_when_this_was_written():
    assert (len(ALONE), len(TOGETHER)) == (3, 1)
    assert all(sum(map(bool, map(str.strip, block.splitlines()))) <= 20 for block in BLOCKS)


@pytest.mark.parametrize("block", ALONE, ids=["closures", "scaler", "learned"])
def test_an_example_trains(block, capsys):
    torch.manual_seed(0)
    names = {}
    exec(compile(block, str(README), "exec"), names)
    model = names["model"].cpu()
    assert accuracy(model) > 0.8
    assert int(model[1].num_batches_tracked) == 100  # the first pass of every step, and nothing else
    if "scheduler" in names:
        assert names["opt"].param_groups[0]["lr"] == pytest.approx(0.0)
    if "lets" in names:
        learned = float(re.search(r"tensor\((.*?)\)", capsys.readouterr().out)[1])
        assert abs(learned / 0.1 - 1) > 0.01


# past the interpreter's end, where gloo's threads abort a process in some 3 % of the cases (pytorch/pytorch#179291)
SAVED = """
import os
torch.save(model.module.state_dict(), os.environ["RANK"] + ".pt")
os._exit(0)
"""


def test_the_distributed_example_trains_one_model_on_two_processes(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TOGETHER[0] + SAVED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, script], cwd=tmp_path, env={**os.environ, **shared, "RANK": rank})
        for rank in "01"
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(*pair) for pair in zip(*(state.values() for state in states), strict=True))
    model = nn.Linear(8, 3)
    model.load_state_dict(states[0])
    assert accuracy(model) > 0.8
