"""The choice of a level: what is built, what runs, what is forced, and what the flags imply."""

import json
import platform
import shutil
import subprocess
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace

import pytest

import fastvq
from fastvq import _kernels
from fastvq._kernels import _cpu
from fastvq._kernels._levels import LEVELS, levels_of

PACKAGE = Path(_kernels.__file__).parent
LEVEL_NAMES = [level.name for level in LEVELS]
V3 = next(level for level in LEVELS if level.name == "x86_64_v3")

REPORT = """
import json, sys, fastvq
from fastvq import _kernels
for kernel in {kernels}:
    _kernels.load(kernel)
loaded = [name.split(".")[2] for name in sys.modules if name.startswith("fastvq._kernels.")]
print(json.dumps([fastvq.show_config("dict"), [name for name in loaded if name in {levels}]]))
"""


def kernels_of(level):
    return sorted(path.name.split(".")[0] for path in (PACKAGE / level).glob("*.so"))


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_forced_level(level, run_python):
    code = REPORT.format(kernels=kernels_of(level), levels=LEVEL_NAMES)
    result = run_python(code, check=False, FASTVQ_LEVEL=level)
    if level in _kernels.levels_runnable():
        config, loaded = json.loads(result.stdout)
        assert config["level_active"] == level
        assert set(loaded) == {level}
    else:
        assert result.returncode == 1, "an ImportError, not a signal"
        last_line = result.stderr.strip().splitlines()[-1]
        assert last_line.startswith(f"ImportError: FASTVQ_LEVEL='{level}'")
        expected = "missing here" if level in _kernels.levels_built() else "not built"
        assert expected in last_line
        assert all(choice in last_line for choice in _kernels.levels_runnable())


def test_unknown_level(run_python):
    result = run_python("import fastvq", check=False, FASTVQ_LEVEL="x86_64_v9")
    last_line = result.stderr.strip().splitlines()[-1]
    assert "ImportError: FASTVQ_LEVEL='x86_64_v9' is not the name of a level" in last_line
    assert all(choice in last_line for choice in _kernels.levels_runnable())


def test_without_being_forced_the_best_runnable_level_is_taken(run_python):
    best = _kernels.levels_runnable()[-1]
    kernels = kernels_of(best)
    assert kernels, "no kernels are built"
    code = REPORT.format(kernels=kernels, levels=LEVEL_NAMES)
    for unset in (None, ""):
        config, loaded = json.loads(run_python(code, FASTVQ_LEVEL=unset).stdout)
        assert config["level_active"] == best
        # Loading a module of a level that does not run here would end the process.
        assert set(loaded) == {best}


def test_all_built_levels_have_the_same_kernels():
    kernels = {level: kernels_of(level) for level in _kernels.levels_built()}
    assert len({tuple(names) for names in kernels.values()}) == 1, kernels


def test_baseline_of_this_machine_is_built():
    assert levels_of(_cpu.machine())[0].name in _kernels.levels_runnable()


def test_missing_kernel_is_an_import_error():
    with pytest.raises(ImportError, match=f"'no_such_kernel'.*{_kernels.active_level()}"):
        _kernels.load("no_such_kernel")


def test_level_that_is_not_installed(run_python, tmp_path):
    """With a level's folder gone, the next one is chosen, and forcing it says why it cannot be."""
    copy = tmp_path / "fastvq"
    shutil.copytree(PACKAGE.parent, copy)
    best = _kernels.levels_runnable()[-1]
    shutil.rmtree(copy / "_kernels" / best)
    code = "import fastvq._kernels as k; print(k.__file__, k.active_level())"

    forced = run_python(code, check=False, PYTHONPATH=str(tmp_path), FASTVQ_LEVEL=best)
    assert f"ImportError: FASTVQ_LEVEL='{best}' is not built" in forced.stderr

    free = run_python(code, check=False, PYTHONPATH=str(tmp_path), FASTVQ_LEVEL=None)
    if len(_kernels.levels_runnable()) > 1:
        assert free.stdout.split() == [
            str(copy / "_kernels" / "__init__.py"),
            _kernels.levels_runnable()[-2],
        ]
    else:
        assert "ImportError" in free.stderr


def test_modules_of_another_python_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(_kernels, "_HERE", tmp_path)
    for level in LEVELS:
        (tmp_path / level.name).mkdir()
        (tmp_path / level.name / "assign.cpython-36m-x86_64-linux-gnu.so").touch()
    assert _kernels.levels_built() == ()
    (tmp_path / LEVELS[0].name / f"assign{EXTENSION_SUFFIXES[0]}").touch()
    assert _kernels.levels_built() == (LEVELS[0].name,)


def test_source_tree_without_kernels_says_what_to_do(run_python, tmp_path):
    shutil.copytree(
        PACKAGE.parent, tmp_path / "fastvq", ignore=shutil.ignore_patterns("*.so", "_build.json")
    )
    result = run_python("import fastvq", check=False, PYTHONPATH=str(tmp_path))
    assert "ImportError: fastvq's kernels are not built" in result.stderr
    assert "pip install" in result.stderr


@pytest.mark.parametrize("missing", V3.features)
def test_one_missing_feature_rules_a_level_out(missing, monkeypatch):
    features = set(LEVELS[2].features) - {missing}
    monkeypatch.setattr(
        _kernels, "_cpu", SimpleNamespace(machine=lambda: "x86_64", features=lambda: features)
    )
    monkeypatch.setattr(_kernels, "_is_built", lambda level: True)
    assert _kernels.levels_runnable() == ("x86_64_v1",)


def test_levels_of_another_machine_are_never_runnable(monkeypatch):
    everything = {feature for level in LEVELS for feature in level.features}
    monkeypatch.setattr(_kernels, "_is_built", lambda level: True)
    for machine in ("x86_64", "aarch64"):
        cpu = SimpleNamespace(machine=lambda machine=machine: machine, features=lambda: everything)
        monkeypatch.setattr(_kernels, "_cpu", cpu)
        assert _kernels.levels_runnable() == tuple(level.name for level in levels_of(machine))


def test_no_runnable_level_is_an_import_error(monkeypatch):
    monkeypatch.setattr(_kernels, "levels_runnable", lambda: ())
    with pytest.raises(ImportError, match="without a level that this CPU runs"):
        _kernels._choose(None)


# --- The CPU, the operating system and the compiler against the table ---------------------------


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux lists the features there")
def test_detected_features_are_those_that_the_os_lists():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    listing = next(line for line in lines if line.lower().startswith(("flags", "features")))
    listed = set(listing.split(":")[1].split())
    assert _cpu.features() == _cpu.known_features() & listed


def test_detection_knows_every_feature_that_a_level_needs():
    for level in levels_of(_cpu.machine()):
        assert _cpu.known_features().issuperset(level.features)


def test_levels_of_a_machine_ascend():
    for machine in {level.machine for level in LEVELS}:
        baseline, *others = levels_of(machine)
        assert baseline.features == ()
        for lower, higher in zip([baseline, *others], others, strict=False):
            assert set(lower.features) < set(higher.features)


# What a compiler defines when it may use a feature: those in the table and their neighbours, so
# that flags which imply more than the table says are found.
MACROS = {
    "x86_64": {
        **{f"__{name.upper()}__": name for name in ("ssse3", "sse4_1", "sse4_2", "popcnt")},
        **{f"__{name.upper()}__": name for name in ("movbe", "xsave", "avx", "avx2", "bmi2")},
        **{f"__{name.upper()}__": name for name in ("f16c", "fma", "aes", "adx", "gfni", "vaes")},
        **{f"__AVX512{part}__": f"avx512{part.lower()}" for part in ("F", "BW", "CD", "DQ", "VL")},
        **{f"__AVX512{part}__": f"avx512{part.lower()}" for part in ("IFMA", "VBMI")},
        **{f"__AVX512{part}__": f"avx512_{part.lower()}" for part in ("VNNI", "BITALG", "BF16")},
        **{f"__AVX512{part}__": f"avx512_{part.lower()}" for part in ("VBMI2", "FP16")},
        "__AVX512VPOPCNTDQ__": "avx512_vpopcntdq",
        "__AVXVNNI__": "avx_vnni",
        "__BMI__": "bmi1",
        "__GCC_HAVE_SYNC_COMPARE_AND_SWAP_16": "cx16",
        "__LAHF_SAHF__": "lahf_lm",
        "__LZCNT__": "abm",
        "__PCLMUL__": "pclmulqdq",
        "__RDRND__": "rdrand",
        "__RDSEED__": "rdseed",
        "__SHA__": "sha_ni",
        "__SSE3__": "pni",
        "__SSE4A__": "sse4a",
        "__XOP__": "xop",
    },
    "aarch64": {
        "__ARM_FEATURE_AES": "aes",
        "__ARM_FEATURE_ATOMICS": "atomics",
        "__ARM_FEATURE_BF16": "bf16",
        "__ARM_FEATURE_COMPLEX": "fcma",
        "__ARM_FEATURE_CRC32": "crc32",
        "__ARM_FEATURE_DOTPROD": "asimddp",
        "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC": "asimdhp",
        "__ARM_FEATURE_MATMUL_INT8": "i8mm",
        "__ARM_FEATURE_QRDMX": "asimdrdm",
        "__ARM_FEATURE_SHA2": "sha2",
        "__ARM_FEATURE_SVE": "sve",
    },
}


def compilers_for(machine):
    native = platform.machine().replace("arm64", "aarch64") == machine
    commands = [["gcc"], ["clang"]] if native else [[f"{machine}-linux-gnu-gcc"]]
    if not native:
        commands.append(["clang", f"--target={machine}-linux-gnu"])
    return [command for command in commands if shutil.which(command[0])]


@pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)
def test_flags_imply_exactly_the_features_of_the_table(level):
    compilers = compilers_for(level.machine)
    if not compilers:
        pytest.skip(f"needs gcc or clang for {level.machine}")
    for compiler in compilers:
        command = [*compiler, *level.flags, "-dM", "-E", "-x", "c", "/dev/null"]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        defined = {line.split()[1] for line in listing.splitlines()}
        implied = {feature for macro, feature in MACROS[level.machine].items() if macro in defined}
        assert implied == set(level.features), compiler


# --- show_config --------------------------------------------------------------------------------


def test_show_config_dict():
    config = fastvq.show_config("dict")
    assert config["version"] == fastvq.__version__
    assert config["levels_built"] == list(_kernels.levels_built())
    assert config["levels_runnable"] == list(_kernels.levels_runnable())
    active = next(level for level in LEVELS if level.name == config["level_active"])
    assert set(active.flags) <= set(config["flags"].split())
    assert config["compiler"]
    assert config["threads"] >= 1
    json.dumps(config)


def test_show_config_prints_every_entry(capsys):
    assert fastvq.show_config() is None
    printed = capsys.readouterr().out
    for key, value in fastvq.show_config("dict").items():
        line = next(line for line in printed.splitlines() if line.startswith(key.replace("_", " ")))
        if isinstance(value, str):
            assert value in line


def test_show_config_refuses_another_mode():
    with pytest.raises(ValueError, match="mode must be .* got 'json'"):
        fastvq.show_config("json")
