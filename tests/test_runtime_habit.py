"""Whether a call uses its threads is learnt from its own times: see `_kernels/habit.h`."""

import pytest

program = pytest.importorskip("fastvq._kernels._program")


def run(habit, calls, alone, together):
    """(mean seconds of a call, part of the calls on the team) where each way takes so long."""
    spent = on_team = 0
    for _ in range(calls):
        threads = habit.next()
        seconds = alone if threads == 1 else together
        habit.note(seconds)
        spent += seconds
        on_team += threads > 1
    return spent / calls, on_team / calls


@pytest.mark.parametrize("alone, together", [(50e-6, 30e-6), (31e-6, 30e-6)])
def test_threads_that_pay_are_used(alone, together):
    mean, on_team = run(program.Threads(2), 20_000, alone, together)
    assert on_team > 0.98
    assert mean < 1.01 * together


@pytest.mark.parametrize("alone, together", [(50e-6, 60e-6), (50e-6, 170e-6), (50e-6, 480e-6)])
def test_threads_that_do_not_pay_are_not(alone, together):
    mean, on_team = run(program.Threads(2), 20_000, alone, together)
    assert on_team < 0.02
    assert mean < 1.05 * alone


def test_waiting_for_a_cpu_that_is_taken_costs_little():
    habit = program.Threads(2)
    run(habit, 100, 50e-6, 30e-6)
    mean, _ = run(habit, 1_000_000, 50e-6, 24e-3)
    assert mean < 1.1 * 50e-6


def test_threads_are_used_again_when_they_pay_again():
    habit = program.Threads(2)
    run(habit, 10_000, 50e-6, 170e-6)
    _, on_team = run(habit, 200_000, 50e-6, 30e-6)
    assert on_team > 0.6


def test_a_single_slow_call_changes_nothing_for_long():
    habit = program.Threads(2)
    run(habit, 1000, 50e-6, 30e-6)
    while habit.next() == 1:  # a trial
        habit.note(50e-6)
    habit.note(1.0)
    mean, _ = run(habit, 1000, 50e-6, 30e-6)
    assert mean < 1.05 * 30e-6


def test_long_calls_try_one_thread_once():
    _, on_team = run(program.Threads(2), 1000, alone=1e-3, together=0.6e-3)
    assert on_team == 1 - 2 / 1000


def test_a_cold_first_call_does_not_leave_long_ones_alone():
    habit = program.Threads(2)
    habit.note(500e-6)
    _, on_team = run(habit, 1000, alone=300e-6, together=170e-6)
    assert on_team == 1 - 2 / 1000


def test_very_long_calls_try_nothing():
    _, on_team = run(program.Threads(2), 1000, alone=5e-3, together=2.6e-3)
    assert on_team == 1


def test_waking_has_to_be_repaid():
    """A team that would save 10 us, but takes 3 ms to wake after a call on one thread."""
    habit = program.Threads(2)
    run(habit, 1000, 50e-6, 170e-6)
    on_team, before = 0, 1
    for _ in range(20_000):
        threads = habit.next()
        habit.note(50e-6 if threads == 1 else 40e-6 if before > 1 else 3e-3)
        before = threads
        on_team += threads > 1
    assert on_team < 0.02 * 20_000


def test_one_thread_has_nothing_to_learn():
    assert run(program.Threads(1), 100, 1e-6, 1e-6)[1] == 0
