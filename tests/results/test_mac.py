"""What a Mac tells of itself, read from recorded outputs of its commands."""

import platform

import pytest

from harness.results import Header, Writer, read_run
from harness.results.machine import conditions, mac_facts
from harness.suites.rehearsal.steps import write_programs

THERM = "CPU_Scheduler_Limit \\t= 100\\nCPU_Speed_Limit \\t= 67"
LAPTOP = f"""
[programs]
"sysctl -n hw.model" = "Mac15,6"
"sysctl -n hw.perflevel0.physicalcpu" = "6"
"sysctl -n hw.perflevel1.physicalcpu" = "6"
"sysctl -n hw.memsize" = "38654705664"
"sw_vers -buildVersion" = "24G231"
"system_profiler SPDisplaysDataType -json" = '{{"SPDisplaysDataType": [{{"sppci_cores": "18"}}]}}'
"notifyutil -g com.apple.system.thermalpressurelevel" = "com.apple.system.thermalpressurelevel 1"
"pmset -g" = " lowpowermode         1"
"pmset -g therm" = "{THERM}"
"""


@pytest.fixture
def mac(tmp_path, monkeypatch):
    """mac() or mac(table): this process asks a Mac's commands, those of the rehearsal or others."""

    def become(table=None):
        (programs := tmp_path / "programs").mkdir()
        if table:
            (tmp_path / "table.toml").write_text(table)
            write_programs(programs, tmp_path / "table.toml")
        else:
            write_programs(programs)
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
        monkeypatch.setattr(platform, "system", lambda: "Darwin")

    return become


def test_a_laptop_tells_all(mac):
    mac(LAPTOP)
    assert mac_facts() == {
        "model": "Mac15,6",
        "performance_cores": 6,
        "efficiency_cores": 6,
        "gpu_cores": 18,
        "memory_bytes": 38654705664,
        "os_build": "24G231",
    }
    assert conditions() == {"thermal_pressure": 1, "cpu_speed_limit": 67, "low_power_mode": 1}


def test_what_a_hosted_mac_does_not_tell_is_absent_with_the_reason(mac):
    mac()
    facts = mac_facts()
    assert (facts["model"], facts["performance_cores"]) == ("VirtualMac2,1", 3)
    assert facts["efficiency_cores"] == (
        "absent: `sysctl -n hw.perflevel1.physicalcpu` failed (sysctl: -n "
        "hw.perflevel1.physicalcpu is not recorded)"
    )
    assert facts["gpu_cores"] == (
        "absent: `system_profiler SPDisplaysDataType -json` does not tell it"
    )
    assert conditions() == {
        "thermal_pressure": 0,
        "cpu_speed_limit": "absent: `pmset -g therm` does not tell it",
        "low_power_mode": 0,
    }


def test_a_stream_has_the_conditions_before_and_after(mac, tmp_path):
    mac(LAPTOP)
    with Writer(tmp_path / "run.jsonl", Header.here({})):
        pass
    run = read_run(tmp_path / "run.jsonl")
    assert run.header.mac["gpu_cores"] == 18
    assert run.header.conditions == run.footer.conditions == conditions()


@pytest.mark.linux
def test_elsewhere_nothing_is_told():
    assert mac_facts() == conditions() == {}
