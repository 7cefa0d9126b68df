"""The models of a gate as tasks of a Ray cluster: all are sent off at once, and audited where there is room.

Each model is opened here, one after the other and in a process of its own, and travels with the points that its audit
may draw; what nodes need besides is the installed packages. A model that ends the process it is audited in ends a
worker of Ray.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maskaudit import api
from maskaudit.auditing.document import Keeper
from maskaudit.auditing.engine.interface import EngineError, TaskError
from maskaudit.auditing.engine.ray import Ray, import_ray
from maskaudit.auditing.engine.ray_messages import CANNOT_TRAVEL, Packer, Parcel
from maskaudit.auditing.runner import Audit
from maskaudit.command.channel import Sender
from maskaudit.command.status import BUG_STATUS, MODEL_FAILED_STATUS
from maskaudit.command.supervise import supervise
from maskaudit.errors import MaskauditError, UsageError, describe_error
from maskaudit.gate.config import GateEntry, checked_request
from maskaudit.settings import Listener

#: Audits one entry; with a folder, its journal and reports are kept there.
Auditor = Callable[[GateEntry, Path | None, Listener, Keeper], Audit]

#: Errors that mean "wrong usage or refused input", by which a node names them.
_REFUSALS = {"UsageError", "InputError", "UntrustedInputError"}


@dataclass(frozen=True)
class AuditJob:
    """The audit of one prepared model, where it is called."""

    prepared: api.Prepared

    def __call__(self) -> Audit:
        """Do it."""
        return api.run(self.prepared)


@contextmanager
def audits_on_ray(entries: Sequence[GateEntry], address: str, *, isolate: bool) -> Iterator[Auditor]:
    """Start the audits of all entries on a cluster; what it gives waits for that of one entry.

    Args:
        isolate: open each model in a process of its own.

    Raises:
        UsageError: as `Ray`.
    """
    import_ray()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="maskaudit-")))
        ready = {entry.name: _prepared(entry, folder / str(n), isolate) for n, entry in enumerate(entries)}
        engine = stack.enter_context(closing(Ray(address)))
        timeouts = {entry.name: entry.request.settings.call_timeout for entry in entries}
        threads = ThreadPoolExecutor(max_workers=max(1, len(entries)))
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        under_way: dict[str, Future[Any] | MaskauditError] = {
            name: file if isinstance(file, MaskauditError) else threads.submit(_audited, engine, file, timeouts[name])
            for name, file in ready.items()
        }

        def audit(entry: GateEntry, _folder: Path | None, _on_event: Listener, _keep: Keeper) -> Audit:
            found = under_way[entry.name]
            if isinstance(found, MaskauditError):
                raise found
            return found.result()

        yield audit


def _audited(engine: Ray, file: Path, call_timeout: float | None) -> Audit:
    """What became of one model's audit.

    Raises:
        MaskauditError: when it could not be audited, with the exit status of `check`.
    """
    try:
        audit: Audit = engine.call(Parcel(0, [file.read_bytes()], []), call_timeout)
    except EngineError as error:
        raise refusal(f"The model could not be audited: {error}.", MODEL_FAILED_STATUS) from error
    except TaskError as error:
        if error.name in _REFUSALS:
            raise MaskauditError(str(error)) from error
        raise refusal(f"{error.name} ({error}): this is a fault of maskaudit, please report it.", BUG_STATUS) from error
    return audit


def _prepared(entry: GateEntry, file: Path, isolate: bool) -> Path | MaskauditError:
    """The file with what a node needs for an entry, or why there is none."""

    def work(sender: Sender) -> None:
        try:
            _pack(entry, file)
        except MaskauditError as error:
            sender.send("refused", text=str(error), status=error.exit_code)

    if not isolate:
        try:
            _pack(entry, file)
        except MaskauditError as error:
            return error
        return file
    ended = supervise(work, hold_output=True)
    if not ended.finished:
        return refusal(*ended.why())
    refused = ended.messages.get("refused")
    return refusal(refused["text"], refused["status"]) if refused else file


def _pack(entry: GateEntry, file: Path) -> None:
    request = checked_request(entry)
    here = replace(request.settings, ray="", workers=None)
    prepared = api.prepare(replace(request, settings=here))
    if here.device != "cpu":
        raise UsageError(f"--ray divides the work among CPUs, not on {here.device}; leave it out there.")
    try:
        parcel = Packer(import_ray().cloudpickle, bytes).whole(AuditJob(prepared))
    except CANNOT_TRAVEL as error:
        raise UsageError(
            f"The model cannot be sent to the nodes of a cluster ({describe_error(error)}); leave --ray out."
        ) from error
    file.write_bytes(parcel.tasks[0])


def refusal(sentence: str, status: int) -> MaskauditError:
    """An error with the exit status that belongs to it."""
    error = MaskauditError(sentence)
    error.exit_code = status
    return error
