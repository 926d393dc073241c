"""The runner on a fake case: gate, interleaving, bars, memory."""

import pytest
import torch

from bench import gate, runner, timing
from bench.case import OURS, Bar, Ceiling
from bench.runner import Effort

FAST = Effort(rounds=3, seconds=0.0)


def run(case, effort=FAST):
    return runner.run_case(case, "cpu", effort)


@pytest.fixture
def set_times(monkeypatch):
    """Replaces measurements by given times in milliseconds."""

    def set_times(**milliseconds):
        def interleave(calls, clock, **options):
            return {name: [1e-3 * milliseconds[name.split()[-1]]] for name in calls}

        monkeypatch.setattr(timing, "interleave", interleave)

    return set_times


def test_measures_every_provider(make_case):
    result = run(make_case())
    assert result["gate"]["complaint"] == ""
    assert set(result["providers"]) == {OURS, "eager"}
    for row in result["providers"].values():
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["gb_per_s"] == pytest.approx(512 / row["median_ms"] / 1e6)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (lambda x: 2 * x + 1e-5, "error"),
        (lambda x: 2 * x * float("nan"), "error nan"),
        (lambda x: (2 * x)[:, None], "shape"),
        (lambda x: (2 * x, x), "2 outputs"),
        (lambda x: x.no_such_method(), "AttributeError"),
    ],
)
def test_a_red_gate_gives_no_number(make_case, wrong, complaint):
    calls = []
    result = run(make_case(calls, **{OURS: wrong}))
    assert complaint in result["gate"]["complaint"]
    assert "providers" not in result
    assert "eager" not in calls


def test_limit_is_twice_the_error_of_torch_plus_four_ulp():
    exact = torch.tensor([1.5, -3.0], dtype=torch.float64)
    plain = (exact + 1e-3).float()
    torch_error = (plain.double() - exact).abs().max().item()
    ulp = 2.0**-22  # of numbers in [2, 4)
    assert gate.error_limit(plain, exact) == pytest.approx(2 * torch_error + 4 * ulp, rel=1e-12)


def test_a_wrong_or_missing_competitor_is_reported_without_a_time(make_case):
    def missing(x):
        raise ModuleNotFoundError("No module named 'diffusers'")

    result = run(make_case(wrong=lambda x: 2 * x + 0.1, diffusers=missing))
    assert set(result["providers"]) == {OURS, "eager"}
    assert "wrong value" in result["failed"]["wrong"]
    assert "No module named" in result["failed"]["diffusers"]


def test_competitors_with_noise_of_their_own_are_not_compared(make_case):
    result = run(make_case(noisy=lambda x: torch.randn_like(x), own_values=("noisy",)))
    assert "noisy" in result["providers"]


def test_one_broken_case_does_not_stop_the_others(make_case):
    results = []
    cases = [make_case(**{OURS: lambda x: x}), make_case()]
    runner.run_cases(cases, "cpu", FAST, results.append)
    assert ["providers" in result for result in results] == [False, True]


def test_rounds_rotate_and_interleave():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    ticks = iter(range(1000))

    def clock(call, repeats):
        call()
        return next(ticks) * 1e-3

    samples = timing.interleave(calls, clock, rounds=4)
    assert "".join(order[9:]) == "abcbcacababc"
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}


def test_short_calls_are_repeated():
    assert timing.repeats_for(lambda call, repeats: 1e-5, None) == 100
    assert timing.repeats_for(lambda call, repeats: 0.5, None) == 1


def test_rounds_go_on_until_the_time_is_used():
    samples = timing.interleave({"a": lambda: None}, timing.CpuClock(), rounds=1, seconds=0.05)
    assert len(samples["a"]) > 5


def test_bars_compare_with_the_fastest_of_those_named(make_case, set_times):
    set_times(ours=2, eager=1, slow=6, slower=9)
    bars = (Bar(3, ("slow", "slower")), Bar(3.1, ("slow",)), Bar(1, ("absent",)))
    case = make_case(bars=bars, slow=lambda x: 2 * x, slower=lambda x: 2 * x)
    over_best, missed, absent = run(case)["bars"]
    assert over_best["reached"] == pytest.approx(3)
    assert over_best["met"]
    assert not missed["met"]
    assert absent["reached"] is None
    assert not absent["met"]


def test_share_is_of_the_fastest_ceiling_by_work_and_not_by_calls(make_case, set_times):
    set_times(ours=2, eager=1, half=0.5, slow=5)
    ceilings = {name: Ceiling(lambda: None, work=256) for name in ("half", "slow")}
    result = run(make_case(ceilings=ceilings, bars=(Bar(0.5), Bar(0.51))))
    assert result["ceiling"]["name"] == "half"
    assert result["ceiling"]["share"] == pytest.approx((512 / 2) / (256 / 0.5))
    assert [bar["met"] for bar in result["bars"]] == [True, False]


def test_peak_memory_counts_temporaries_that_are_freed():
    x = torch.zeros(1 << 18)  # 1 MiB
    assert timing.peak_bytes(lambda: x + 1, "cpu") == pytest.approx(x.nbytes, abs=64)
    assert timing.peak_bytes(lambda: (x + 1) + (x + 2), "cpu") == pytest.approx(3 * x.nbytes, abs=64)


def test_an_interruption_keeps_the_complete_cases(make_case, capsys):
    def interrupt(x):
        raise KeyboardInterrupt

    results = runner.run_cases(
        [make_case(), make_case(**{OURS: interrupt}), make_case()], "cpu", FAST, lambda result: None
    )
    assert len(results) == 1
    assert "interrupted" in capsys.readouterr().err
