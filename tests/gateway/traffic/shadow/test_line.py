from gateway.traffic.shadow.line import FAILURES, LONGEST_REST, UNDER_WAY, WAITING, Line


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def failing(line: Line[int], times: int) -> list[int]:
    return [dropped for _ in range(times) for dropped in line.failed()]


def test_so_many_wait_and_so_many_are_asked() -> None:
    line: Line[int] = Line(Clock())
    taken = []
    for number in range(WAITING + 1):
        taken.append(line.takes)
        line.waiting.append(number)
    assert taken == [True] * WAITING + [False]
    line.waiting.pop()
    asking = []
    for _ in range(UNDER_WAY + 1):
        asking.append(line.wants_asker)
        line.under_way += 1
    assert asking == [True] * UNDER_WAY + [False]
    assert [line.next() for _ in range(WAITING + 1)] == [*range(WAITING), None]


def test_a_target_that_keeps_failing_is_left_alone_for_longer_and_longer() -> None:
    clock = Clock()
    line: Line[int] = Line(clock)
    line.waiting.extend(range(3))
    assert failing(line, FAILURES - 1) == [] and line.takes and line.rest == 0
    assert failing(line, 1) == [0, 1, 2] and not line.waiting
    rests = []
    for _ in range(7):
        rests.append(line.rest)
        takes = [line.takes]
        assert failing(line, 3) == [] and line.rest == rests[-1]  # those that were under way
        clock.now += line.rest
        takes.append(line.takes)
        assert takes == [False, True]
        failing(line, 1)
    assert rests == [1, 2, 4, 8, 16, LONGEST_REST, LONGEST_REST]


def test_one_finds_out_whether_it_is_well_again() -> None:
    clock = Clock()
    line: Line[int] = Line(clock)
    failing(line, FAILURES)
    clock.now += 1
    line.waiting.extend(range(3))
    asked = [line.wants_asker]
    line.under_way += 1
    asked.append(line.wants_asker)
    assert asked == [True, False]
    line.under_way += 1  # one that was there before
    assert line.next() is None
    line.under_way -= 1
    assert line.next() == 0
    line.answered()
    assert line.takes and line.wants_asker
    assert failing(line, FAILURES) == [1, 2] and line.rest == 1
