"""The runs of a sweep on Ray: this process asks, a driver process of its own talks to Ray.

Ray waits for minutes for a cluster that is not there, and ends the whole process when it loses one.
The driver takes that upon itself; no other file imports Ray.
"""

import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import ConfigError, PEFTCLError
from avalanche_peftcl.runs.folder import LOG
from avalanche_peftcl.sweeps.processes import Event, Task, opened_log
from avalanche_peftcl.sweeps.watch import Tail

_ADDRESS = re.compile(r"(?:ray://)?(?P<host>\[[^\s\]]+\]|[^\s/:=]+):(?P<port>[0-9]{1,5})")
_KNOCK = 5.0  # seconds for a port to open
_CONNECT = 90.0  # seconds for Ray to answer, or to start here
_LEAVE = 10.0  # seconds for the driver to end when it is told to
_POLL = 0.5  # seconds between two looks at what has started
_MARK = "peftcl:"  # of the driver's lines that are meant for us
_DRIVER = (
    "from avalanche_peftcl.runs.signals import end_with_parent; end_with_parent(); "
    "from avalanche_peftcl.sweeps.ray import drive; drive()"
)


def run_on_ray(tasks: Sequence[Task], *, address: str) -> Generator[Event, None, None]:
    """Run each task as one on Ray; closing the iterator stops them.

    A run asks for ``num_threads`` processors, or one, and for a GPU if its device is ``cuda``.

    Args:
        tasks: The runs. Their folders are on a file system that all nodes share.
        address: ``"local"`` starts Ray on this machine; ``"auto"``, ``HOST:PORT`` or
            ``ray://HOST:PORT`` is a cluster.

    Yields:
        What happens, in the order in which it happens.

    Raises:
        ConfigError: Ray is not installed, cannot be started or does not answer, or a setting that
            makes no sense there.
    """
    check_address(address)
    _check_devices(tasks)
    if not tasks:
        return
    with TemporaryDirectory(prefix="peftcl-") as folder:
        order, said = Path(folder) / "order.json", Path(folder) / "said.txt"
        orders = {"address": address, "folder": os.getcwd(), "anew": [t.anew for t in tasks]}
        runs = [task.config.model_dump(mode="json") for task in tasks]
        order.write_text(json.dumps(orders | {"runs": runs}))
        with said.open("wb") as stderr:
            driver = subprocess.Popen(
                [sys.executable, "-P", "-c", _DRIVER, str(order)],
                stdin=subprocess.PIPE,  # its end tells the driver of ours
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        try:
            yield from _events(driver, tasks, address, said)
        finally:
            _stop(driver)


def check_address(address: str) -> None:
    """Refuse an address at which no Ray can be.

    Raises:
        ConfigError: If Ray is not installed, ``address`` is none, or nobody listens there.

    Example:
        >>> check_address("nowhere")
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: ...
    """
    if find_spec("ray") is None:
        raise ConfigError('Ray is not installed; install it: pip install "avalanche-peftcl[ray]"')
    if address in ("local", "auto"):
        return
    parts = _ADDRESS.fullmatch(address)
    if parts is None or int(parts["port"]) > 65535:
        raise ConfigError(
            f"{address!r} is no address of Ray; give HOST:PORT, ray://HOST:PORT, auto (a cluster "
            "that runs on this machine) or nothing (Ray starts here)"
        )
    try:
        with socket.create_connection((parts["host"].strip("[]"), int(parts["port"])), _KNOCK):
            pass
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"Ray does not answer at {address}: {error}; is the cluster up (ray start --head), and "
            "is this its port?"
        ) from error


def _check_devices(tasks: Sequence[Task]) -> None:
    for task in tasks:
        if task.config.device not in ("cpu", "cuda"):
            raise ConfigError(
                f"device={task.config.device!r} makes no sense on Ray, which gives each run a GPU "
                "of its own; write cuda or cpu"
            )


def _events(
    driver: "subprocess.Popen[str]", tasks: Sequence[Task], address: str, said: Path
) -> Iterator[Event]:
    """Turn the driver's lines into events; whatever has not ended when it ends has failed."""
    late = threading.Event()

    def give_up() -> None:
        late.set()
        driver.kill()

    timer = threading.Timer(_CONNECT, give_up)
    timer.start()
    connected, open_ = False, dict(enumerate(tasks))
    try:
        for line in driver.stdout or ():
            if not line.startswith(_MARK):
                continue
            told = json.loads(line.removeprefix(_MARK))
            if "run" not in told:
                timer.cancel()
                connected = True
                continue
            number = told.pop("run")
            event = Event(tasks[number], **told)
            if event.ended:
                del open_[number]
            yield event
    finally:
        timer.cancel()
    where = "on this machine" if address == "local" else f"at {address}"
    driver.wait()
    if not connected:
        cause = f"no answer in {_CONNECT:.0f} s" if late.is_set() else _last_line(said)
        verb = "cannot be started" if address == "local" else "does not answer"
        raise ConfigError(f"Ray {verb} {where}: {cause}")
    for task in open_.values():
        yield Event(task, ended=True, error=f"Ray {where} ended: {_last_line(said)}")


def _last_line(said: Path) -> str:
    text = said.read_text(encoding="utf-8", errors="replace").strip()
    last = text.splitlines()[-1].strip() if text else "it said nothing"
    if "InvalidAuthToken" in text:
        last += " (the cluster asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to it)"
    return last


def _stop(driver: "subprocess.Popen[str]") -> None:
    driver.terminate()  # does nothing to one that has ended
    try:
        driver.wait(_LEAVE)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()
    for pipe in driver.stdin, driver.stdout:
        if pipe is not None:
            pipe.close()


# --- the driver ----------------------------------------------------------------------------------


def drive() -> None:
    """Submit what the file in ``sys.argv[1]`` orders, and tell what becomes of it, line by line."""
    import ray

    order = json.loads(Path(sys.argv[1]).read_text())
    ray.init(
        address=order["address"],
        log_to_driver=False,
        logging_level="ERROR",
        **({"include_dashboard": False} if order["address"] == "local" else {}),
    )
    _check_resources(ray, order)
    _tell()
    work = ray.remote(max_retries=0, max_calls=1)(work_on)  # max_calls: a process for each
    pending: dict[Any, int] = {}  # which run
    logs: list[Path] = []
    said: list[int] = []  # bytes in its log before a run begins
    tails: list[Tail] = []
    for number, (settings, anew) in enumerate(zip(order["runs"], order["anew"], strict=True)):
        config = RunConfig.model_validate(settings)
        logs.append(Path(order["folder"]) / config.output / LOG)
        said.append(_size(logs[-1]))
        tails.append(Tail(logs[-1], 0 if anew else max(0, said[-1])))
        asked = {"num_cpus": config.num_threads or 1, "num_gpus": int(config.device == "cuda")}
        pending[work.options(**asked).remote(settings, order["folder"], anew)] = number
    started: set[int] = set()
    while pending:
        ready, _ = ray.wait(list(pending), timeout=_POLL)
        for reference, number in pending.items():
            begun = reference in ready or _size(logs[number]) != said[number]
            if number not in started and begun:
                started.add(number)
                _tell(run=number)
            for line in tails[number].lines() if number in started else ():
                _tell(run=number, line=line)
        for reference in ready:
            number = pending.pop(reference)
            try:
                error = ray.get(reference)
            except ray.exceptions.RayError as failure:  # the process was killed, or its node
                error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
            _tell(run=number, ended=True, error=error)
    ray.shutdown()


def work_on(settings: dict[str, Any], folder: str, anew: bool) -> str | None:
    """Do one run in this process, and return why it failed.

    Args:
        settings: The run's configuration.
        folder: Working directory of the sweep, to which its paths are relative.
        anew: Whether the run begins at the start though there is a checkpoint.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        return f"the nodes of Ray must share the sweep's working directory: {error}"
    from rich.console import Console

    from avalanche_peftcl.runs.progress import RunProgress
    from avalanche_peftcl.runs.run import run

    config = RunConfig.model_validate(settings)
    try:
        with (
            opened_log(config, anew=anew) as file,
            io.TextIOWrapper(file, encoding="utf-8", line_buffering=True) as log,
        ):
            reporter = RunProgress(Console(file=log, width=200))
            try:
                run(config, overwrite=True, resume=not anew, reporter=reporter)
            except PEFTCLError as error:
                reporter.say(f"error: {error}")
                return str(error)
            except Exception as error:
                traceback.print_exc(file=log)
                return f"{type(error).__name__}: {error}"
    except PEFTCLError as error:
        return str(error)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None


def _size(log: Path) -> int:
    """Return the bytes in a log; -1 if there is none."""
    try:
        return log.stat().st_size
    except OSError:
        return -1


def _check_resources(ray: Any, order: dict[str, Any]) -> None:
    """Refuse on this machine what would wait for ever; a cluster may yet grow."""
    there = ray.cluster_resources()
    for settings in order["runs"] if order["address"] == "local" else ():
        wanted = {"CPU": settings["num_threads"] or 1, "GPU": int(settings["device"] == "cuda")}
        for kind, count in wanted.items():
            if count > there.get(kind, 0):
                sys.exit(f"a run asks for {count} {kind}, there are {there.get(kind, 0):.0f}")


def _tell(**event: Any) -> None:
    with suppress(BrokenPipeError):
        print(_MARK + json.dumps(event), flush=True)  # noqa: T201 (the way to the other process)
