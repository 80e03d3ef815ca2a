"""What SECURITY.md promises: no pickle, no remote code, no shell, loopback only; by the source, and by attacks."""

import ast
import pickle
from pathlib import Path

import pytest
import torch

from align.commands.serve import serve_reward
from align.data._store import TensorStore, _digest
from align.errors import UserError
from align.policy import adapter_file
from align.training import checkpoint
from align.training.checkpoint import Checkpoints, Damaged
from rewards import RewardError
from rewards._load import read_state
from rewards._unpickle import read_module

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for room in ("align", "rewards", "samplers", "scripts") for path in (ROOT / room).rglob("*.py"))
HOMES = {"torch.load": ("rewards/_load.py", "rewards/_unpickle.py"), "pickle": ("rewards/_unpickle.py",)}
"""Where the two are allowed: by weights_only, and by an unpickler that imports nothing but what makes up a tensor."""
NEVER = {"eval", "exec", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "marshal.loads"}
NEVER |= {"shelve.open", "numpy.load", "np.load", "joblib.load", "dill.load", "shutil.unpack_archive"}


def problems(text: str, name: str) -> list[str]:
    """What a file's source does that is promised not to be done."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"imports {m}" for m in modules if m.split(".")[0] in ("pickle", "cPickle", "dill", "joblib")]
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in NEVER or called.endswith((".extractall", ".extract")):
            found.append(f"calls {called}")
        if "trust_remote_code" in keywords or keywords.get("shell", "False") != "False":
            found.append(f"calls {called} with {keywords}")
        if called == "torch.load" and (
            name not in HOMES["torch.load"] or not {"weights_only", "pickle_module"} & {*keywords}
        ):
            found.append("calls torch.load")
    return [what for what in found if not (what == "imports pickle" and name in HOMES["pickle"])]


def test_no_file_does_what_runs_code():
    found = {p.relative_to(ROOT).as_posix(): problems(p.read_text(), p.relative_to(ROOT).as_posix()) for p in FILES}
    assert not {name: what for name, what in found.items() if what}


BAD = """import pickle
torch.load(f)
eval(x)
run(x, shell=True)
load(x, trust_remote_code=True)
yaml.load(x)
archive.extractall(x)
np.load(x, allow_pickle=True)"""


@pytest.mark.parametrize("text", BAD.splitlines())
def test_the_look_at_the_sources_can_fail(text):
    assert problems(text, "align/x.py")


def test_what_listens_listens_to_this_machine():
    """A server that comes anew says here where it listens."""
    servers = [path.relative_to(ROOT).as_posix() for path in FILES if "HTTPServer" in path.read_text()]
    assert servers == ["align/evaluation/serve.py", "align/figures/local.py"]
    assert "super().__init__((LOOPBACK, port), handler)" in (ROOT / servers[1]).read_text()
    with pytest.raises(UserError, match=r"--host 0\.0\.0\.0: others could ask too. Give --key"):
        serve_reward("clip", host="0.0.0.0")


class Attack:
    """Runs when it is unpickled."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __reduce__(self):
        return Path.touch, (self.sign,)


@pytest.fixture
def attack(tmp_path):
    """(the bytes of pickles, the file that they would make)."""
    sign = tmp_path / "it-ran"
    torch.save({"weight": Attack(sign)}, tmp_path / "attack.pt")
    pickles = [pickle.dumps(Attack(sign)), (tmp_path / "attack.pt").read_bytes()]
    pickle.loads(pickles[0])
    assert sign.exists(), "the attack is one"
    sign.unlink()
    return pickles, sign


def refused(sign, kinds, read, *arguments):
    with pytest.raises(kinds):
        read(*arguments)
    assert not sign.exists()


def test_a_malicious_adapter(attack, tmp_path):
    for number, data in enumerate(attack[0]):
        for name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors"):
            file = tmp_path / str(number) / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)
            refused(attack[1], UserError, adapter_file.read, file)


def test_a_malicious_checkpoint_with_a_manifest_that_fits(attack, tmp_path):
    for number, data in enumerate(attack[0]):
        path = Checkpoints(tmp_path / str(number)).save(1, {"trainable": {"a": torch.ones(2)}}, {})
        (path / "trainable.safetensors").write_bytes(data)
        sums = {f.name: checkpoint._sha256(f) for f in path.iterdir() if f.name != checkpoint.MANIFEST}
        (path / checkpoint.MANIFEST).write_text(str(sums).replace("'", '"'))
        checkpoint.verify(path)
        refused(attack[1], Damaged, checkpoint.load, path)


def test_a_malicious_cache_under_its_own_checksum(attack, tmp_path):
    said = []
    for data in attack[0]:
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache" / f"{_digest(data)}.safetensors").write_bytes(data)
    store = TensorStore(tmp_path / "cache")
    store.scan(verify=True, say=said.append)
    assert len(store) == 0 and len(said) == 2 and not attack[1].exists()


@pytest.mark.parametrize("name", ["head.pt", "head.pth", "head.bin", "head.safetensors"])
def test_a_malicious_head_of_a_reward(attack, tmp_path, name):
    for data in attack[0]:
        (tmp_path / name).write_bytes(data)
        for read in (read_state, read_module):
            refused(attack[1], RewardError, read, tmp_path / name)


def test_a_manifest_that_names_files_elsewhere(tmp_path):
    path = Checkpoints(tmp_path).save(1, {"a": {"n": 1}}, {})
    (path / checkpoint.MANIFEST).write_text('{"../../etc/passwd": "0"}')
    with pytest.raises(Damaged, match="no file of the folder"):
        checkpoint.verify(path)
