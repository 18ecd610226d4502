"""Damage real networks and lead each one along the whole road: only a clear refusal may come out.

    python tests/fuzz/run.py --data ../shared/data --cases 20000 --seed 0 [--jobs N]
    python tests/fuzz/run.py --data ../shared/data --seed 0 --only 4711 [--keep FOLDER]

Each case is opened, cut into tokens, put back, permuted, written and read again, in a process with
little memory and a time limit, which reports every file, program and connection it should not have
touched. A killed run goes on where it stopped, as long as neither code nor corpus changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # this folder is the package `fuzz`
from fuzz import road
from fuzz.corpus import Base, corpus, make_secrets
from fuzz.guard import Guard, limit_memory
from fuzz.road import Outcome

ROOT = Path(__file__).parents[2]
RESULTS, RUNS = ROOT / "benchmarks" / "results", ROOT / "runs"
FINE = ("read", "refused")
WALL, TURN = 90.0, 1000  # seconds until a worker counts as stuck; cases until it is replaced


@dataclass(frozen=True)
class Plan:
    """What every worker must agree on."""

    seed: int
    data: Path | None
    made: Path

    def bases(self) -> list[Base]:
        """List the corpus; its small files are made by the first who asks."""
        return corpus(self.made, self.data)


def main() -> int:
    """Run the cases that are not done yet; return 1 where one of them is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep", type=Path, help="where the one case's files stay")
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = arguments.data.resolve() if arguments.data else None
    with tempfile.TemporaryDirectory() as made:
        plan = Plan(arguments.seed, data, Path(made))
        bases = plan.bases()
        if arguments.only is not None:
            return only(plan, bases, arguments.only, arguments.keep)
        RUNS.mkdir(exist_ok=True)
        log = RUNS / f"fuzz-{plan.seed}-{_digest(bases, plan.made)}.jsonl"
        begun = time.perf_counter()
        _run(plan, log, arguments.cases, arguments.jobs)
    found = [o for o in _read(log) if int(str(o["case"])) < arguments.cases]
    summary = _summary(found, arguments.seed, time.perf_counter() - begun)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary["outcomes"]))
    return int(bool(summary["findings"]))


def only(plan: Plan, bases: list[Base], index: int, keep: Path | None) -> int:
    """Run one case in this process, and show what became of it."""
    folder = (keep or plan.made / "only").resolve()
    secrets = make_secrets(folder / "outside")
    guard = Guard(folder / "case")
    base, strategy, path = road.prepare(index, plan.seed, bases, folder / "case", secrets)
    print(f"{base.path.name}: {strategy}", *(f"kept in {path}",) * bool(keep), file=sys.stderr)
    outcome, stage, error = road.run(path, guard)
    if error is not None:
        traceback.print_exception(error)
    print(f"{outcome} at {stage}", *guard.escapes)
    return int(outcome not in FINE)


def _run(plan: Plan, log: Path, cases: int, jobs: int) -> None:
    """Keep `jobs` workers busy, each with a range of its own; replace those that die or hang."""
    done = {int(str(o["case"])) for o in _read(log)}
    todo = iter([i for i in range(cases) if i not in done])
    counts: Counter[str] = Counter()
    with log.open("a") as file:
        workers = [_Worker(plan, f"{plan.seed}-{number}") for number in range(jobs)]
        try:
            running = {w.connection: w for w in workers if w.give(next(todo, None))}
            while running:
                ready = {id(c) for c in wait(list(running), timeout=1)}
                for connection, worker in list(running.items()):
                    if id(connection) not in ready and not worker.is_stuck:
                        continue
                    outcome = worker.take()
                    file.write(json.dumps(outcome.to_json()) + "\n")
                    file.flush()
                    counts[outcome.outcome] += 1
                    _show(outcome, counts, len(done), cases)
                    running.pop(connection)
                    if worker.give(next(todo, None)):
                        running[worker.connection] = worker
        finally:
            for worker in workers:
                worker.stop()


class _Worker:
    """A process that runs one case after the other, and what it is doing."""

    def __init__(self, plan: Plan, name: str) -> None:
        self._plan, self._name = plan, name
        self._case = self._turns = 0
        self.since = time.monotonic()
        self._start()

    @property
    def is_stuck(self) -> bool:
        """Tell whether the case takes far longer than its own alarm allows."""
        return time.monotonic() - self.since > WALL

    def give(self, case: int | None) -> bool:
        """Hand over a case; False where there is none left."""
        if case is None:
            return False
        if self._turns >= TURN:
            self.stop()
            self._start()
        self._case, self._turns, self.since = case, self._turns + 1, time.monotonic()
        self.connection.send(case)
        return True

    def take(self) -> Outcome:
        """Return the outcome of the case, also where the process did not survive it."""
        try:
            if self.connection.poll(0):
                found: Outcome = self.connection.recv()
                return found
            error, kind = f"no answer in {WALL:.0f} s", "hang"
        except EOFError:
            self._process.join(10)
            error, kind = f"the process ended with {self._process.exitcode}", "crash"
        self.stop()
        begun = self._note.read_text() if self._note.exists() else ""
        form, strategy, base = [*begun.split("\t"), "", "", ""][:3]
        self._start()
        return Outcome(self._case, form, strategy, base, kind, "", error, "", "process")

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        folder = self._plan.made / f"worker-{self._name}"
        self._note = folder / "note"
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(self._plan, folder, theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        self._turns = 0


def _work(plan: Plan, folder: Path, connection: Connection) -> None:
    """Run the cases that come in, until nobody sends any more."""
    torch.set_num_threads(1)
    bases = _listed(plan)
    secrets = make_secrets(folder / "outside")
    guard = Guard(folder / "case")
    for base in bases:  # import whatever is imported late, before anything is guarded
        if base.path.parent == plan.made:
            road.run(road.copied(base, folder / "case"), guard)
    limit_memory()
    with contextlib.suppress(EOFError):
        while True:
            index = connection.recv()
            base, strategy, path = road.prepare(index, plan.seed, bases, folder / "case", secrets)
            (folder / "note").write_text(f"{base.form}\t{strategy}\t{base.path.name}")
            outcome, stage, error = road.run(path, guard)
            more = {"stage": stage, **road.told(error, ROOT)} if outcome not in FINE else {}
            del error
            connection.send(Outcome(index, base.form, strategy, base.path.name, outcome, **more))


def _listed(plan: Plan) -> list[Base]:
    """List the corpus without making its files again, which other workers are reading."""
    with tempfile.TemporaryDirectory() as again:
        bases = corpus(Path(again), plan.data)

    def there(path: Path) -> Path:
        return plan.made / path.name if path.is_relative_to(again) else path

    return [Base(b.form, there(b.path), tuple(map(there, b.others))) for b in bases]


def _digest(bases: list[Base], made: Path) -> str:
    """Return what changes with the code that is tested, the damage done, and the real files."""
    code = [*(ROOT / "sane_plugins").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]
    code += (ROOT / "tests" / "fuzz").glob("*.py")
    digest = hashlib.sha256()
    for path in sorted(code):
        digest.update(path.read_bytes())
    for base in bases:
        digest.update(
            f"{base.path.name} {base.path.stat().st_size * (base.path.parent != made)}".encode()
        )
    return digest.hexdigest()[:8]


def _read(log: Path) -> Iterator[dict[str, object]]:
    for line in log.read_text().splitlines() if log.exists() else ():
        with contextlib.suppress(ValueError):  # a line that a kill cut short
            yield json.loads(line)


def _summary(found: list[dict[str, object]], seed: int, seconds: float) -> dict[str, object]:
    by_strategy: dict[str, dict[str, Counter[str]]] = {}
    for outcome in sorted(found, key=lambda o: (str(o.get("form")), str(o.get("strategy")))):
        form = by_strategy.setdefault(str(outcome.get("form")), {})
        form.setdefault(str(outcome.get("strategy")), Counter())[str(outcome["outcome"])] += 1
    findings = [o for o in found if o["outcome"] not in FINE]
    return {
        "seed": seed,
        "cases": len(found),
        "seconds_of_last_run": round(seconds),
        "outcomes": dict(sorted(Counter(str(o["outcome"]) for o in found).items())),
        "strategies": by_strategy,
        "findings": sorted(findings, key=lambda o: int(str(o["case"]))),
    }


def _show(outcome: Outcome, counts: Counter[str], before: int, cases: int) -> None:
    if outcome.outcome not in FINE:
        print(f"\r{json.dumps(outcome.to_json())}", file=sys.stderr)
    total = before + sum(counts.values())
    if total % 100 == 0 or total == cases:
        print(f"\r{total}/{cases} {dict(counts)}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
