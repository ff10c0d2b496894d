"""Proves levels that this CPU lacks, or would not choose, on emulated processors.

    python tests/emulation/emulate.py nehalem haswell aarch64 aarch64-dotprod avx512

| processor | level | emulator | Debian packages needed (debootstrap runs as root only) |
|---|---|---|---|
| nehalem | x86_64_v1 | qemu-user | qemu-user |
| haswell | x86_64_v3 | qemu-user | qemu-user |
| aarch64 | aarch64_v8 | qemu-user | qemu-user debootstrap gcc-aarch64-linux-gnu |
| aarch64-dotprod | aarch64_dotprod | qemu-user | qemu-user debootstrap gcc-aarch64-linux-gnu |
| avx512 | x86_64_v4_vnni | Bochs | debootstrap |

Run it on x86-64 Linux, with an interpreter that has fastvq and its extra "test" installed. First
`proof.py` runs here, natively. Then it runs on each emulated processor: there it must find that the
level has been chosen by itself, keep the promises, and print the same digests, bit for bit (without
fused multiply-add the last bits may differ). Last the kernels' own tests run on that processor,
unless --quick; Bochs is too slow for them, so avx512 rests on the digests alone.

The x86-64 processors run what is installed here. For aarch64, Python comes from Debian and NumPy
from its wheel, and the kernels are cross-compiled from this checkout. Bochs emulates a whole
computer (qemu has no AVX-512): Debian's kernel boots from a CD image with the interpreter, NumPy
and fastvq installed here, and the results come over the serial line. Another processor is a row in
PROCESSORS; Bochs also has sapphire_rapids (bfloat16 products) and arrow_lake (AVX-VNNI).

Downloads and builds are kept in --directory, by default ~/.cache/fastvq-emulation.
"""

import argparse
import functools
import os
import pty
import select
import shutil
import subprocess
import sys
import sysconfig
import time
import tty
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
PROOF = HERE / "proof.py"
# The first Debian whose Bochs, 3.0, describes the state of AVX-512 registers so that Linux uses it.
SUITE = "trixie"
BOCHS_PATIENCE = 3600  # seconds


class Processor(NamedTuple):
    level: str
    model: str  # the emulator's name for it
    run: object  # function(model, directory, commands of Python) that yields lines of output
    fused: bool = True  # whether the level has fused multiply-add
    tests: bool = True  # whether the emulator is fast enough for the tests


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("processors", nargs="+", choices=PROCESSORS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--directory", type=Path, default=Path.home() / ".cache" / "fastvq-emulation"
    )
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    native = digests_of(run_here([[PROOF]], directory))
    for name in arguments.processors:
        began = time.monotonic()
        prove(PROCESSORS[name], directory, native, arguments.quick)
        print(f"{name}: proved in {time.monotonic() - began:.0f} s", flush=True)


def prove(processor, directory, native, quick):
    """Run the proof and the tests on an emulated processor; exits if anything is wrong."""
    emulated = digests_of(processor.run(processor.model, directory, [[PROOF, processor.level]]))
    different = [name for name in native if emulated.get(name) != native[name]]
    same = f"{len(native) - len(different)} of {len(native)} digests are the same"
    print(f"{processor.level} on {processor.model}: {same} as here", flush=True)
    if different and processor.fused:
        sys.exit(f"{processor.level} gives other bits in {', '.join(different)}")
    if processor.tests and not quick:
        tests = sorted((CHECKOUT / "tests").glob("test_kernel_*.py"))
        if not tests:
            sys.exit("tests/test_kernel_*.py: no such tests")
        # The time limits of the tests are for real processors.
        pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=0"]
        for line in processor.run(processor.model, directory, [[*pytest, *tests]]):
            print(line, flush=True)


def digests_of(lines):
    """The digests in the output of proof.py, by name."""
    lines = [line.split() for line in lines]
    return {line[1]: line[2] for line in lines if line[:1] == ["digest"]}


# Python here, and on processors that qemu emulates ----------------------------------------------


def run_here(commands, directory, *, prefix=(), **environment):
    """Lines that Python prints, run natively or by an emulator; exits if it fails."""
    environment = {**os.environ, **environment}
    # The BLAS of NumPy and fastvq are to choose for the emulated processor. Its threads share few
    # cores: they should sleep, not spin, while they wait for each other.
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "FASTVQ_LEVEL"):
        environment.pop(name, None)
    environment.update(OMP_WAIT_POLICY="passive", PYTHONPYCACHEPREFIX=str(directory / "bytecode"))
    for command in commands:
        process = subprocess.Popen(
            list(map(str, [*(prefix or [sys.executable]), *command])),
            env=environment,
            cwd=directory,
            stdout=subprocess.PIPE,
            text=True,
        )
        yield from map(str.rstrip, process.stdout)
        if process.wait():
            sys.exit(f"{' '.join(process.args)} failed ({process.returncode})")


def run_x86(model, directory, commands):
    """What is installed here, under `qemu-x86_64`."""
    prefix = [tool("qemu-x86_64", "qemu-user"), "-cpu", model, sys.executable]
    return run_here(commands, directory, prefix=prefix)


def run_aarch64(model, directory, commands):
    """A Python of Debian's with the kernels of this checkout, under `qemu-aarch64`."""
    qemu = tool("qemu-aarch64", "qemu-user")
    root = debian_root(directory, "arm64", "python3", "libpython3-dev", "libgomp1")
    python = (root / "usr/bin/python3").resolve()
    version = python.name.removeprefix("python")
    packages = directory / f"aarch64-packages-{version}"
    if not packages.exists():
        install_for_aarch64(packages, version, "numpy", "pytest", "pytest-timeout", "hypothesis")
    source = cross_compiled(directory / "aarch64", root, version)
    moved = [[move(argument, CHECKOUT, source) for argument in command] for command in commands]
    path = f"PYTHONPATH={source}:{packages}"
    return run_here(moved, source, prefix=[qemu, "-cpu", model, "-L", root, "-E", path, python])


def install_for_aarch64(packages, version, *requirements):
    """Wheels unpacked into a folder for that version of Python."""
    fresh = packages.with_name(packages.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)]
    where = ["--only-binary=:all:", *platforms, f"--python-version={version}", f"--target={fresh}"]
    run([sys.executable, "-m", "pip", "install", "--quiet", *where, *requirements])
    fresh.rename(packages)


@functools.cache
def cross_compiled(source, root, version):
    """A copy of the checkout, built in place for aarch64."""
    shutil.rmtree(source, ignore_errors=True)
    ignored = shutil.ignore_patterns(".*", "build", "*.so", "_build.json", "__pycache__")
    shutil.copytree(CHECKOUT, source, ignore=ignored)
    compiler = f"{tool('aarch64-linux-gnu-gcc', 'gcc-aarch64-linux-gnu')} --sysroot={root}"
    environment = {
        "CC": compiler,
        "LDSHARED": f"{compiler} -shared",
        # Before the headers of the Python that runs setup.py.
        "CFLAGS": f"-I{root}/usr/include/python{version}",
        "LDFLAGS": "",
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{version.replace('.', '')}-aarch64-linux-gnu.so",
    }
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    run(command, cwd=source, env={**os.environ, **environment})
    return source


# A whole computer that Bochs emulates -----------------------------------------------------------

BOCHS_SETTINGS = """
cpu: model={model}, ips=100000000, reset_on_triple_fault=0
megs: 1024
romimage: file={root}/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file={root}/usr/share/bochs/VGABIOS-lgpl-latest
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={image}, status=inserted
boot: cdrom
com1: enabled=1, mode=term, dev={serial}
display_library: term
plugin_ctrl: es1370=0, sb16=0, speaker=0
sound: driver=dummy
clock: sync=none
panic: action=fatal
error: action=ignore
info: action=ignore
log: {image}.log
"""
ISOLINUX_SETTINGS = """
default linux
label linux
 kernel /vmlinuz
 append initrd=/initrd console=ttyS0 quiet lpj=4000000 mitigations=off tsc=reliable panic=-1
"""
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
export PYTHONPATH=/packages OMP_WAIT_POLICY=passive HOME=/tmp
cd /tmp
while read -r command; do $command 2>&1 || echo "failed: $command"; done < /commands
echo finished
/bin/busybox sleep 1
/bin/busybox poweroff -f
"""


def run_bochs(model, directory, commands):
    """What is installed here, on a computer that boots and powers off for these commands."""
    root = debian_root(
        directory,
        "amd64",
        *("bochs", "bochs-term", "busybox-static", "genisoimage"),
        *("isolinux", "linux-image-cloud-amd64", "syslinux-common"),
    )
    image = cd_image(directory / "bochs", root, commands)
    display, terminal = pty.openpty()
    serial, line = pty.openpty()
    tty.setraw(line)
    settings, debugger = image.with_suffix(".bochsrc"), image.with_suffix(".commands")
    names = {"model": model, "root": root, "image": image, "serial": os.ttyname(line)}
    settings.write_text(BOCHS_SETTINGS.format(**names))
    debugger.write_text("continue\n")  # Debian's Bochs has its debugger built in
    library = root / "usr/lib/x86_64-linux-gnu"
    places = {"LTDL_LIBRARY_PATH": str(library / "bochs/plugins"), "TERM": "xterm"}
    with open(image.with_suffix(".display"), "wb") as output:
        process = subprocess.Popen(
            [*of_root(root, "usr/bin/bochs-bin"), "-q", "-f", settings, "-rc", debugger],
            env={**os.environ, **places, "BXSHARE": str(root / "usr/share/bochs")},
            stdin=terminal,
            stdout=output,
            stderr=output,
            start_new_session=True,  # its terminals are not the one that this runs on
        )
    try:
        yield from until_finished(serial, process)
    finally:
        process.kill()
        process.wait()
        for descriptor in (display, terminal, serial, line):
            os.close(descriptor)


def until_finished(serial, process):
    """Lines that come over the serial line until its `finished`."""
    deadline = time.monotonic() + BOCHS_PATIENCE
    received = b""
    while time.monotonic() < deadline:
        if select.select([serial], [], [], 1)[0]:
            received += os.read(serial, 65536)
        elif process.poll() is not None:
            sys.exit(f"Bochs ended early ({process.returncode})")
        *lines, received = received.split(b"\n")
        for line in lines:
            line = line.decode(errors="replace").strip()
            if line == "finished":
                return
            if line.startswith("failed: "):
                sys.exit(line)
            yield line
    sys.exit(f"Bochs did not finish within {BOCHS_PATIENCE} s")


def cd_image(directory, root, commands):
    """A CD image that boots Linux, runs Python with each of the commands, and powers off."""
    import numpy

    import fastvq

    shutil.rmtree(directory, ignore_errors=True)
    files, cd = directory / "files", directory / "cd"
    python = Path(sys.executable).resolve()
    stdlib = Path(sysconfig.get_path("stdlib"))
    bulky = ["site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "config-*"]
    copy(stdlib, files, stdlib, *bulky, "ensurepip", "lib2to3", "turtledemo", "*.opt-?.pyc")
    copy(python, files, python)
    for package in (numpy, fastvq):
        home = Path(package.__file__).parent
        copy(home, files, f"packages/{home.name}", "tests", "*.pyi", "*.a", "*.h", "*.c", "*.pyx")
        libraries = home.with_name(home.name + ".libs")
        if libraries.exists():
            copy(libraries, files, f"packages/{libraries.name}")
    for library in shared_libraries([python, *files.rglob("*.so*")]):
        if not library.is_relative_to(files):
            copy(library, files, library)
    copy(root / "usr/bin/busybox", files, "bin/busybox")
    scripts = {a for command in commands for a in command if isinstance(a, Path)}
    for script in scripts:
        copy(script, files, f"scripts/{script.name}")
    for name in ("proc", "sys", "dev", "tmp"):
        (files / name).mkdir()
    lines = [[python, *(f"/scripts/{a.name}" if a in scripts else a for a in c)] for c in commands]
    (files / "commands").write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
    (files / "init").write_text(INIT)
    (files / "init").chmod(0o755)

    (kernel,) = (root / "boot").glob("vmlinuz-*")
    copy(kernel, cd, "vmlinuz")
    copy(root / "usr/lib/ISOLINUX/isolinux.bin", cd, "isolinux/isolinux.bin")
    copy(root / "usr/lib/syslinux/modules/bios/ldlinux.c32", cd, "isolinux/ldlinux.c32")
    (cd / "isolinux/isolinux.cfg").write_text(ISOLINUX_SETTINGS)
    busybox = root / "usr/bin/busybox"
    with open(cd / "initrd", "wb") as archive:
        names = "\n".join(str(path.relative_to(files)) for path in sorted(files.rglob("*")))
        pack = [busybox, "cpio", "-o", "-H", "newc"]
        run(pack, cwd=files, input=names.encode(), stdout=archive, stderr=subprocess.DEVNULL)
    image = directory / "boot.iso"
    burn = ["-quiet", "-o", image, "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"]
    emulation = ["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    run([*of_root(root, "usr/bin/genisoimage"), *burn, *emulation, cd])
    return image


def shared_libraries(paths):
    """What the dynamic linker loads with any of these files."""
    found = set()
    for path in paths:
        listing = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        words = [word for line in listing.splitlines() for word in line.split()]
        found.update(Path(word) for word in words if word.startswith("/"))
    return found


def copy(source, directory, place, *ignored):
    """Copy a file or folder to a place below a directory."""
    target = directory / str(place).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        ignore = shutil.ignore_patterns(*ignored)
        shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


# Debian, other machines' files, commands --------------------------------------------------------


def debian_root(directory, architecture, *packages):
    """The files of a small Debian of that architecture: unpacked, not installed."""
    root = directory / f"{SUITE}-{architecture}"
    if not root.exists():
        fresh = root.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        options = [f"--arch={architecture}", "--variant=minbase", f"--include={','.join(packages)}"]
        command = [tool("debootstrap", "debootstrap"), "--download-only", *options, SUITE, fresh]
        run(command, stdout=subprocess.DEVNULL)
        for package in (fresh / "var/cache/apt/archives").glob("*.deb"):
            run(["dpkg-deb", "-x", package, fresh])
        fresh.rename(root)
    return root


def of_root(root, program):
    """The command that runs a program of a Debian root with that root's libraries."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    loader = root / "usr/lib64/ld-linux-x86-64.so.2"
    return [loader, "--library-path", libraries, root / program]


def move(argument, source, target):
    """The same file in another directory; what is not a path stays."""
    return target / argument.relative_to(source) if isinstance(argument, Path) else argument


def tool(name, package):
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        sys.exit(f"{name} is missing: apt-get install {package}")
    return path


def run(command, **options):
    subprocess.run(list(map(str, command)), check=True, **options)


# Less what qemu does not emulate, and would warn about.
HASWELL = "Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-rtm,-invpcid"
PROCESSORS = {
    "nehalem": Processor("x86_64_v1", "Nehalem", run_x86, fused=False),
    "haswell": Processor("x86_64_v3", HASWELL, run_x86),
    "aarch64": Processor("aarch64_v8", "cortex-a53", run_aarch64),
    "aarch64-dotprod": Processor("aarch64_dotprod", "neoverse-n1", run_aarch64),
    "avx512": Processor("x86_64_v4_vnni", "corei7_icelake_u", run_bochs, tests=False),
}

if __name__ == "__main__":
    main()
