"""Hostile run folders: a run that was stopped, edited before somebody goes on with it, compares it or replays it.

Edits come with the list of hashes made anew, as a thief would make it, or without, as an accident leaves it.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support.hostile_case import DEEP, HUGE, Case, Payload, said_by

from upge.runs import atomic_files

Make = Callable[[Path], Case]
Edit = Callable[[Path], object]

TAKEN = "checkpoint that can't be taken up"
AGAIN = "is damaged: .*starting again from its beginning"


@functools.cache
def stopped() -> Path:
    """A run of one step, with a checkpoint after it."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    good = tiny.recipe(folder, train={"steps": 1, "save_every": 1, "prompts": 4, "threads": 1}, rollout={"n": 2})
    code, said = said_by("run", str(good))
    assert code == 0, said
    (folder / "run" / "summary.json").unlink()
    state = {"state": "running", "step": 1, "pid": 1, "reason": ""}
    (folder / "run" / "status.json").write_text(json.dumps(state))
    return folder / "run"


def going_on(edit: Edit, says: str, *, code: int = 2, honest: bool = False) -> Make:
    """Edit a run's folder, and go on with it; `honest`: its list of hashes stays."""

    def make(folder: Path) -> Case:
        run = shutil.copytree(stopped(), folder / "run", symlinks=True)
        edit(run)
        checkpoint = run / "checkpoints" / "step-000001"
        if not honest and checkpoint.is_dir() and (checkpoint / "files.json").is_file():
            listed = atomic_files.fingerprints(checkpoint)
            listed.pop("files.json")
            (checkpoint / "files.json").write_text(json.dumps(listed))
        return Case(["run", "--resume", str(run), "train.steps=2", "eval.splits=[test]"], says, code)

    return make


def within(name: str, content: bytes | str) -> Edit:
    """Put something in place of a file of the checkpoint."""

    def edit(run: Path) -> None:
        path = run / "checkpoints" / "step-000001" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return edit


def beside(name: str, content: bytes | str) -> Edit:
    """Put something in place of a file of the run folder."""
    return within(f"../../{name}", content)


def changed(name: str, **values: Any) -> Edit:
    """Change values of a JSON file of the checkpoint."""

    def edit(run: Path) -> None:
        path = run / "checkpoints" / "step-000001" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    """Change the tensors of a file of the checkpoint."""

    def edit(run: Path) -> None:
        path = run / "checkpoints" / "step-000001" / name
        held = load_file(path)
        change(held)
        path.unlink()
        save_file(held, path)

    return edit


def cut(name: str, share: float) -> Edit:
    def edit(run: Path) -> None:
        path = run / "checkpoints" / "step-000001" / name
        os.truncate(path, int(path.stat().st_size * share))

    return edit


def flipped(name: str) -> Edit:
    """Change the last bytes of a file, and not its size."""

    def edit(run: Path) -> None:
        path = run / "checkpoints" / "step-000001" / name
        held = path.read_bytes()
        path.write_bytes(held[:-4] + bytes(255 - byte for byte in held[-4:]))

    return edit


def removed(name: str) -> Edit:
    return lambda run: (run / "checkpoints" / "step-000001" / name).unlink()


def linked(name: str) -> Edit:
    """A link out of the run folder, in place of a file or a folder of it; what it leads to must stay as it is."""

    def edit(run: Path) -> None:
        path, victim = run / name, run.parent / "victim"
        folder = path.is_dir()
        if folder:
            shutil.copytree(path, victim)
            shutil.rmtree(path)
        else:
            shutil.copy(path, victim) if path.exists() else victim.write_text("precious")
            path.unlink(missing_ok=True)
        path.symlink_to(victim)

    return edit


def piped(name: str) -> Edit:
    def edit(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return edit


def names_of(held: dict[str, torch.Tensor]) -> list[str]:
    return sorted(held, key=lambda name: (held[name].dim() < 2, name))


def reshape(held: dict[str, torch.Tensor]) -> None:
    name = names_of(held)[0]
    held[name] = held[name].T.contiguous() if held[name].shape[0] != held[name].shape[1] else held[name][:-1].clone()


def swap(held: dict[str, torch.Tensor]) -> None:
    one, other = names_of(held)[0], next(name for name in held if held[name].shape != held[names_of(held)[0]].shape)
    held[one], held[other] = held[other], held[one]


def retype(kind: torch.dtype) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda held: held.update({names_of(held)[0]: held[names_of(held)[0]].to(kind)})


MODEL, MOMENTS = "model/model.safetensors", "model-optimizer.safetensors"


def weights() -> Iterator[tuple[str, Make]]:
    for name in (MODEL, MOMENTS):
        for share in (0.0, 0.3, 0.99):
            yield f"{name} cut at {share}", going_on(cut(name, share), TAKEN)
            yield f"{name} cut at {share}, by accident", going_on(cut(name, share), AGAIN, code=0, honest=True)
        yield (
            f"{name} flipped, by accident",
            going_on(flipped(name), "is not what was written; .*starting again", code=0, honest=True),
        )
        yield f"{name} of other shapes", going_on(tensors(name, reshape), TAKEN)
        yield f"{name} swapped", going_on(tensors(name, swap), TAKEN)
        yield f"{name} a pickle", going_on(canary(name), TAKEN)
        yield f"{name} a pickle, by accident", going_on(canary(name), AGAIN, code=0, honest=True)
        yield f"{name} missing, by accident", going_on(removed(name), AGAIN, code=0, honest=True)
        yield f"{name} noise", going_on(within(name, os.urandom(64)), TAKEN)
    yield "no weights", going_on(removed(MODEL), f"{TAKEN}.*it has no ")
    yield "no moments", going_on(removed(MOMENTS), TAKEN)
    yield "no estimator", going_on(removed("estimator.safetensors"), TAKEN)
    for kind in (torch.float16, torch.float64, torch.int64):
        yield f"weights of {kind}", going_on(tensors(MODEL, retype(kind)), f"{TAKEN}.*and the model's float32")
    lacking = tensors(MODEL, lambda held: held.pop(names_of(held)[0]))
    yield "a weight missing", going_on(lacking, f"{TAKEN}.*it has no ")
    lacking = tensors(MOMENTS, lambda held: held.pop(next(name for name in held if name.endswith("exp_avg"))))
    yield "a moment missing", going_on(lacking, f"{TAKEN}.*the moments of")
    other = tensors(MOMENTS, lambda held: held.update({f"{next(iter(held)).rpartition('/')[0]}/x": torch.zeros(1)}))
    yield "another moment", going_on(other, f"{TAKEN}.*the moments of")
    state = tensors("estimator.safetensors", lambda held: held.update({"terms.rl.advantage/evil": torch.zeros(1)}))
    yield "state of no part", going_on(state, f"{TAKEN}.*no part of the estimator")
    yield "a further file", going_on(canary("model/more.safetensors"), f"{AGAIN}", code=0, honest=True)


def canary(name: str) -> Edit:
    return lambda run: within(name, pickle.dumps(Payload(run.parent / "CANARY")))(run)


def settings() -> Iterator[tuple[str, Make]]:
    lines = ("", "{", "[]", "1", "null", DEEP, HUGE, '{"a": ' + HUGE + "}", "\xff", r'{"\ud800": 1}', "NaN", "{}")
    for name in ("progress.json", "random.json", "files.json"):
        for text in lines:
            lenient = name == "random.json" and text == "[]"  # of another number of processes: none of it is used
            hashes = name == "files.json"
            says = "resuming from the checkpoint of step 1" if lenient else AGAIN
            yield f"{name} {text[:20]!a}", going_on(within(name, text), says, code=0, honest=hashes)
    wrong = {
        "step": ("1", -1, 1.5, float("nan"), True, None, 2**80), "taken": ("x", -1, [], 1e300), "measured": (1, "x"),
        "data": ([], "x", None), "logged": ([], {"metrics.jsonl": "x"}, {"metrics.jsonl": -1},
        {"../../victim": 0}, {"/etc/passwd": 0}), "evil": (1,),
    }  # fmt: skip
    for key, values in wrong.items():
        for value in values:
            yield f"{key} {value!r}", going_on(changed("progress.json", **{key: value}), AGAIN, code=0)
    yield "done long since", going_on(changed("progress.json", step=10**9), "steps are done already")
    for value in ({}, [], {"model": 1}, {"model": {"updates": "x", "not_finite": 0, "scaler": {}}}):
        yield f"optimizers {value!r}", going_on(changed("progress.json", optimizers=value), TAKEN)
    states: list[Any] = [{}, 1, {"python": 1}, {"python": [3, [1], None], "numpy": [], "torch": ""}]
    for value in states:
        edit = within("random.json", json.dumps([value]))
        yield f"generators {value!r}"[:60], going_on(edit, "random.json: no state of the random generators")
    for name in ("../../../victim", "/etc/passwd", "/dev/zero", "model"):
        listed = {name: {"bytes": 0, "sha256": "x"}}
        yield f"hashes of {name}", going_on(changed("files.json", **listed), AGAIN, code=0, honest=True)


def logs() -> Iterator[tuple[str, Make]]:
    def edited(change: Callable[[bytes], bytes]) -> Edit:
        def edit(run: Path) -> None:
            path = run / "metrics.jsonl"
            path.write_bytes(change(path.read_bytes()))

        return edit

    yield "half a line more", going_on(edited(lambda old: old + b'{"phase": "tr'), "resuming from", code=0)
    yield "a longer history", going_on(edited(lambda old: old + old), "resuming from", code=0)
    yield "a shorter history", going_on(edited(lambda old: old[:-9]), AGAIN, code=0)
    junk = {
        b"[]": "not a JSON object", b"{": "can't be read", DEEP.encode(): "nested too deeply", b"\xff": "can't be read",
        b'{"step": 0}': "has no 'phase'", b'{"phase": "eval", "step": -1}': "no 'step'",
        b'{"phase": "eval", "step": "x"}': "no 'step'", b'{"phase": "eval", "step": 0, "a@1": "x"}': "is no number",
        b'{"phase": "eval", "step": 0, "a@1": ' + b"9" * 400 + b"}": "is no number",
        b'{"phase": [], "step": 0}': "has no 'phase'",
    }  # fmt: skip
    for line, says in junk.items():
        before = edited(lambda old, line=line: line + b"\n" + old)  # type: ignore[misc]
        code = 0 if line == DEEP.encode() else 2  # only the report reads it: the run is finished without one
        yield f"a line {line[:45]!r}", going_on(before, rf"metrics\.jsonl.*{says}", code=code)
    for name in ("metrics.jsonl", "completions.jsonl", "status.json", "model", "checkpoints", "manifest.json", "code"):
        yield f"a link for {name}", going_on(linked(name), rf"run/{name}: a link that leads out of the run folder")
    partial = linked("recipe.yaml.partial")
    yield (
        "a link, partial",
        going_on(partial, r"recipe\.yaml\.partial: a link that leads out of the run folder"),
    )
    for value in (
        "[]",
        "{",
        DEEP,
        '{"state": "finished", "step": "x", "pid": 1}',
        '{"state": [], "step": 1, "pid": 1}',
    ):
        says = "the run's status is missing; resuming from the checkpoint of step 1"
        yield f"status {value[:30]}", going_on(beside("status.json", value), says, code=0)
    yield "a pipe for status", going_on(piped("status.json"), "status is missing; resuming", code=0)
    colours = '{"state": "failed", "step": 1, "pid": 1, "reason": "\\u001b[2J[red]x[/red]"}'
    yield "a status in colours", going_on(beside("status.json", colours), r"\\x1b\[2J\[red\]x\[/red\]", code=0)
    for text in ("&a [*a]", "name: !!python/name:os.system x", DEEP, "\xff", "a: &a [x]\nb: [*a, *a]"):
        yield f"recipe.yaml {text[:20]!a}", going_on(beside("recipe.yaml", text), r"recipe\.yaml:\d+:\d+: ")


def others() -> Iterator[tuple[str, Make]]:
    """Folders that other commands read."""
    lines = [DEEP, "{", "[]", "1", HUGE, '{"phase": "eval"}', '{"step": 0}', '{"phase": "eval", "step": 0, "x": {}}']
    for line in lines:

        def compared(folder: Path, line: str = line) -> Case:
            run = shutil.copytree(stopped(), folder / "run")
            (run / "metrics.jsonl").write_text(line + "\n")
            return Case(["compare", str(run), str(run)], r"metrics\.jsonl:1: ")

        yield f"compared {line[:30]}", compared

        def reported(folder: Path, line: str = line) -> Case:
            run = shutil.copytree(stopped(), folder / "run")
            (run / "metrics.jsonl").write_text(line + "\n")
            return Case(["report", str(run)], r"metrics\.jsonl:1: ")

        yield f"reported {line[:30]}", reported
    for text in ("{", "[]", "{}", '{"recipe": 1}', DEEP, '{"recipe": {"name": "\\ud800"}}'):

        def named(folder: Path, text: str = text) -> Case:
            run = shutil.copytree(stopped(), folder / "run")
            (run / "manifest.json").write_text(text)
            return Case(["compare", str(run), str(run)], r"manifest\.json can't be read")

        yield f"manifest {text[:30]}", named
    problem = {"split": "test", "id": "p", "band": None, "rewards": [1.0], "truncated": [False]}
    wrong: list[Any] = [
        {}, [], 1, problem | {"rewards": ["x"]}, problem | {"rewards": []}, problem | {"rewards": [float("nan")]},
        problem | {"rewards": 3}, problem | {"split": []}, problem | {"truncated": [1]}, problem | {"lengths": ["x"]},
        problem | {"answers": [[]]}, problem | {"band": 7}, problem | {"id": {}}, problem | {"lengths": [1, 2]},
    ]  # fmt: skip
    for value in wrong:

        def evaluated(folder: Path, value: Any = value) -> Case:
            for name in ("one", "other"):
                (folder / name).mkdir()
                (folder / name / "summary.json").write_text('{"pass_at": [], "seed": 0}')
                (folder / name / "problems.jsonl").write_text(json.dumps(value if name == "other" else problem) + "\n")
            return Case(
                ["compare", str(folder / "one"), str(folder / "other")], r"problems\.jsonl or summary\.json can't"
            )

        yield f"an evaluation's {value}", evaluated


def runs() -> Iterator[tuple[str, Make]]:
    """Every case by its name."""
    for family in (weights, settings, logs, others):
        yield from family()
