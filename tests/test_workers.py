"""The shares of the processes of one run."""

import pytest

from genssl_fast._workers import Workers


@pytest.mark.parametrize(("total", "count"), [(10, 3), (2, 4), (0, 2), (7, 1)])
def test_shares_are_disjoint_and_complete(total, count):
    shares = [Workers(rank, count).share(total) for rank in range(count)]
    assert [sample for share in shares for sample in share] == list(range(total))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_waits_for_nobody():
    workers = Workers.connect()
    done = []
    workers.first_does(lambda: done.append(True))
    workers.wait_for_all()
    workers.disconnect()
    assert done == [True]
    assert workers.is_first


def test_failure_of_the_first_is_its_own_error():
    def fail():
        raise ValueError("out: expected")

    with pytest.raises(ValueError, match="out: expected"):
        Workers().first_does(fail)
