"""The processes of one run, as `torchrun` starts them; one process alone needs none of this."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed

__all__ = ["OtherProcessError", "Workers"]

# A share may take days; a process that dies is noticed at once, by its closed connection.
LONGEST_SHARE = timedelta(days=30)


class OtherProcessError(RuntimeError):
    """Another process of the run failed, and says why itself."""


@dataclass(frozen=True)
class Workers:
    """This process among those of one run.

    Arguments:
        rank: The number of this process, from 0.
        count: The number of processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def connect(cls) -> "Workers":
        """Joins the processes that `torchrun` started, or stays alone."""
        count = int(os.environ.get("WORLD_SIZE", 1))
        if count == 1:
            return cls()
        torch.distributed.init_process_group("gloo", timeout=LONGEST_SHARE)
        return cls(torch.distributed.get_rank(), count)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, total: int) -> range:
        """The part of `range(total)` that this process does."""
        return range(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def first_does(self, action: Callable[[], None]) -> None:
        """The first process does something while the others wait; its failure is a failure of all."""
        failure = None
        if self.is_first:
            try:
                action()
            except Exception as error:
                failure = error
        failed = self._told_by_first(failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise OtherProcessError("the first process failed")

    def wait_for_all(self) -> None:
        """Returns once every process has come here."""
        if self.count == 1:
            return
        try:
            torch.distributed.barrier()
        except RuntimeError as error:
            raise OtherProcessError("another process stopped early") from error

    def disconnect(self) -> None:
        if self.count > 1:
            torch.distributed.destroy_process_group()

    def _told_by_first(self, value: bool) -> bool:
        if self.count == 1:
            return value
        message = [value]
        torch.distributed.broadcast_object_list(message)
        return message[0]
