"""How work on a run ends: done, interrupted or failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nfsearch.report.outputs import write_outputs
from nfsearch.run.log import failed, logged
from nfsearch.run.records import result_of
from nfsearch.search.study import Store
from nfsearch.support.errors import typed_line
from nfsearch.support.interrupt import interruptible
from nfsearch.support.terminal import say


@contextmanager
def work(folder: Path, store: Store, again: str, end: Callable[[str], None] = lambda status: None) -> Iterator[None]:
    """What happens here is work on a run: the report is written of what there is, also after an interrupt or a failure,
    which goes to the log and becomes WorkFailed. `again` is the command that goes on with it; `end` is told how it
    ended: complete, interrupted, failed-to-finish."""
    with logged(folder):
        try:
            yield
            end("complete")
            write_outputs(result_of(store), folder)
        except KeyboardInterrupt:
            with interruptible():  # asking again does not hurry it
                try:
                    end("interrupted")
                    write_outputs(result_of(store), folder)
                except Exception as error:
                    say(f"The report could not be written: {typed_line(error)}")
            say(f"Interrupted. What finished is kept; to go on: {again}")
            raise
        except Exception as error:
            failure = failed(folder, error, again)
            with suppress(Exception):  # a full disk, a database that is gone: the first error is the one to tell
                end("failed-to-finish")
                write_outputs(result_of(store), folder)
            raise failure from error
