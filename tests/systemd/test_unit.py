"""The unit as systemd itself reads it, and what it forbids as the collector's libraries bear it."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd" / "collector.service"
README = ROOT / "systemd" / "README.md"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


class _Settings(dict[str, str]):
    """Settings of a section; those given more than once, such as Environment=, one a line."""

    def __setitem__(self, key: str, value: str) -> None:
        super().__setitem__(key, f"{self[key]}\n{value}" if key in self and isinstance(value, str) else value)


def settings(section: str) -> dict[str, str]:
    found = _Settings()
    lines = UNIT.read_text(encoding="utf-8").split(f"[{section}]\n")[1].split("\n[")[0].splitlines()
    for line in lines:
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[key] = value
    return found


@needs_systemd
def test_systemd_finds_no_mistake() -> None:
    result = analyze("verify", "--man=no", str(UNIT))

    assert result.stdout + result.stderr == ""
    assert result.returncode == 0


@needs_systemd
def test_a_mistake_in_the_unit_would_be_found(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    unit.write_text(text.replace("WatchdogSec=60", "WatchdogSec=often"), encoding="utf-8")

    assert "often" in analyze("verify", "--man=no", str(unit)).stderr


@needs_systemd
def test_exposure_is_at_most_two() -> None:
    result = analyze("security", "--offline=true", "--threshold=20", str(UNIT))

    assert result.returncode == 0, result.stdout + result.stderr
    (exposure,) = re.findall(r"Overall exposure level for \S+: (\d+\.\d)", result.stdout)
    assert float(exposure) <= 2.0


def test_what_the_daemon_relies_on() -> None:
    service = settings("Service")

    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert int(service["WatchdogSec"]) == 60
    assert int(service["TimeoutStopSec"]) == 30


def test_data_and_logs_lie_where_the_service_may_write() -> None:
    service = settings("Service")
    environment = dict(word.split("=", 1) for word in service["Environment"].split())

    assert Path(environment["DB_PATH"]).parent == Path("/var/lib") / service["StateDirectory"]
    assert Path(environment["LOG_PATH"]) == Path("/var/log") / service["LogsDirectory"]
    assert Path(environment["COLLECTOR_CONFIG"]).parent == Path("/etc") / service["ConfigurationDirectory"]
    assert service["ExecStart"] == f"/usr/bin/env {service['WorkingDirectory']}/.venv/bin/python run_controller.py"


def test_readme_installs_with_five_commands_that_fit_the_unit() -> None:
    service = settings("Service")
    install = README.read_text(encoding="utf-8").split("## Install")[1].split("```sh\n")[1].split("```")[0]
    commands = install.splitlines()

    assert len(commands) == 5
    assert all(command.startswith("sudo ") for command in commands)
    assert commands[0].endswith(service["WorkingDirectory"])
    assert re.search(r"^sudo useradd .* " + re.escape(service["User"]) + "$", commands[2])
    assert commands[4].endswith(f"{service['WorkingDirectory']}/systemd/{UNIT.name}")


# Memory that can be written and then run is forbidden to the service. Linux 6.3 has the same rule as a switch of the
# process, so this shows without systemd that no library needs such memory.
_UNDER_THE_RULE = """
    import contextlib, ctypes, mmap, sys

    PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
        sys.exit(77)
    with contextlib.suppress(PermissionError):
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)
        sys.exit("the rule does not hold")

    import sqlite3, ssl, threading
    import jwt, msgspec, orjson, prometheus_client, pydantic, requests, rich, typer, websocket, yaml
    from cryptography.fernet import Fernet

    class Model(pydantic.BaseModel):
        price: str

    box = Fernet(Fernet.generate_key())
    assert box.decrypt(box.encrypt(b"secret")) == b"secret"
    assert jwt.encode({"a": 1}, "k" * 32, algorithm="HS256")
    assert Model.model_validate_json('{"price": "1"}').price == "1"
    assert msgspec.json.decode(orjson.dumps({"a": 1})) == {"a": 1}
    assert yaml.safe_load("a: 1") == {"a": 1}
    assert ssl.create_default_context().get_ca_certs is not None
    assert sqlite3.connect(":memory:").execute("SELECT 1").fetchone() == (1,)
    thread = threading.Thread(target=requests.Session)
    thread.start()
    thread.join()
    print("borne")
"""


def test_libraries_bear_memory_deny_write_execute() -> None:
    assert settings("Service")["MemoryDenyWriteExecute"] == "yes"

    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_UNDER_THE_RULE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )

    if result.returncode == 77:
        pytest.skip("this kernel has no switch that forbids writable code (Linux 6.3 has)")
    assert result.stdout == "borne\n", result.stderr
