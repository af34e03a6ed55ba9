"""The training loop: spec and rows in, events and an artefact out, the same bits however often it is stopped.

resume? ── load ── rows ──┬─ step ── event ─┬─ evaluation due? ── checkpoint due? ─┬── artefact ── verified
                          └─────────────────┴──────────────────────────────────────┘
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from . import artefact
from .announcements import tell_fewer_rows, tell_model, tell_other_layers, tell_rows, tell_step, tell_weights
from .checkpoint import Checkpoint, CheckpointFolder, Progress, restore_rng, rng_tensors
from .collate import bounds_tokens, micro_batches
from .compared import Compared
from .data import TokenRows
from .device import choose_compute, dtype_name
from .distributed import ALONE, Ranks, norm_of
from .divergence import diverged, divergence
from .events import News, Phase, peak_rss_bytes, rss_bytes
from .failure import StopRequested, is_out_of_memory
from .fit import Fit
from .identity import Identity, another_run, fingerprint_of, weights_of
from .memory import Memory, Room, Work, give_back, predict
from .models import load_for_training
from .optim import load_optimiser, make_optimiser, make_schedule, optimiser_tensors, set_rate
from .plan import Plan
from .reference import remembered
from .run_rows import RunRows, cache_of, load_rows
from .sampling import Windows
from .spec import TrainSpec
from .step import Stepper, StepResult
from .tasks import objective_of
from .teacher import answer_rows, taught

_Result = TypeVar("_Result")
Verifier = Callable[[Path, Path, Path], float]


class Training:
    """One attempt. `verify` proves the artefact: its folder, the base model's, the probe file. `identity`:
    what decides the bits of the run."""

    def __init__(
        self, spec: TrainSpec, news: News, verify: Verifier, *, identity: Callable[[], Identity]
    ) -> None:
        self._spec, self._identity = spec, identity
        self._news = news
        self._log, self._heartbeat, self._check = news.log, news.heartbeat, news.check
        self._verify = verify
        self._output = Path(spec.output_dir)
        self._folder = CheckpointFolder(self._output / "checkpoints", spec.runtime.keep_checkpoints)
        self._ranks = Ranks.of_environment(spec.runtime.parallelism)
        self._room: Room | None = None
        self._fit: Fit | None = None
        # Rows of the largest micro-batch in the work at hand.
        self._at_once = 0
        self._saved_at = time.monotonic()
        self._began = time.monotonic()

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self._heartbeat.step

    def run(self) -> None:
        """Ends with the events `finished` and `verified`. Raises TrainFailure, StopRequested, OSError."""
        torch.set_num_threads(self._spec.runtime.num_threads)
        self._ranks.check(self._spec.task)
        try:
            self._start()
            early = self._train()
        finally:
            self._ranks.leave()
        if self._ranks.first:
            self._finish(early)

    def _start(self) -> None:
        """All that comes before the first step. The checkpoint it begins from is forgotten when this returns:
        a resumed run needs no more memory than one that was never stopped."""
        spec, identity = self._spec, self._identity
        resumed = self._resume(identity)
        known_dtype = resumed.progress.dtype if resumed else None
        self._compute = self._ranks.place(choose_compute(spec.runtime, known_dtype, alone=self._ranks.alone))
        self._log.log("info", f"Training in {self._compute.reason}.", threads=torch.get_num_threads())
        self._check()
        answers = None
        if self._ranks.first:
            answers = answer_rows(spec, self._compute, self._news, key=lambda: fingerprint_of(identity()))
        self._heartbeat.mark("loading")
        resident = rss_bytes()
        compared = Compared(cache_of(spec), lambda: weights_of(identity()))
        self._loaded = load_for_training(spec, self._compute, sharded=self._ranks.sharded, compared=compared)
        tell_model(self._log, self._loaded, spec.hyperparameters.max_length, compared=compared)
        self._check()
        known = identity()  # before rows that are not the spec's are tokenised
        self._rows, dataset = load_rows(spec, self._loaded, self._news)
        self._plan = Plan.of(spec.hyperparameters, len(dataset.rows))
        memory = self._predicted(resident, resumed)
        tell_rows(self._log, dataset, self._rows.validation, plan=self._plan, task=spec.task, memory=memory)
        self._ranks.join(
            (resumed.progress.step if resumed else 0, len(self._rows.train), self._plan.total_steps)
        )
        if spec.teacher is not None:
            self._rows = taught(self._rows, answers, self._ranks)
        self._prepare(known, resumed)

    def _train(self) -> bool:
        """True when it ended early. Leaves the model that becomes the artefact."""
        try:
            early = self._loop()
        except StopRequested:
            self._save()
            raise
        self._heartbeat.mark("exporting")
        best = self._progress.best_step or self._progress.step
        if best != self._progress.step:
            self._restore_weights(self._folder.load(best).weights)
        if self._ranks.sharded:
            weights = self._ranks.whole(self._weights())
            self._forget_model()
            if self._ranks.first:
                self._load_whole(weights)
        return early

    def _load_whole(self, weights: dict[str, Tensor]) -> None:
        """The model on one rank, for the artefact."""
        self._loaded = load_for_training(self._spec, self._compute)
        self._trainable = self._loaded.trainable()
        self._ranks = ALONE
        self._restore_weights(weights)
        self._stepper = self._make_stepper()

    # ------------------------------------------------------------ start

    def _predicted(self, resident: int, resumed: Checkpoint | None) -> Memory | None:
        """None where it is a GPU's memory, which steps are made to fit into, or shared out."""
        if not self._ranks.alone:
            return None
        rows_per_batch = resumed.progress.rows_per_batch if resumed else None
        work = Work.of(self._spec, self._plan, self._compute.dtype, rows_per_batch=rows_per_batch)
        self._fit = Fit.of(self._loaded, work, self._rows, log=self._log)
        if self._compute.device.type != "cpu":
            return None
        memory = predict(self._loaded, work, self._rows, process_bytes=resident)
        self._room = Room(memory)
        return memory

    def _resume(self, identity: Callable[[], Identity]) -> Checkpoint | None:
        checkpoint, notes = self._folder.newest(mend=self._ranks.first)
        self._heartbeat.step = checkpoint.progress.step if checkpoint else 0
        self._log.write("started", pid=os.getpid(), resumed_from_step=checkpoint and checkpoint.progress.step)
        for note in notes:
            self._log.log("warn", note)
        if checkpoint is not None and checkpoint.progress.fingerprint != fingerprint_of(identity()):
            raise another_run(self._output, checkpoint.progress.identity, identity())
        return checkpoint

    def _prepare(self, identity: Identity, resumed: Checkpoint | None) -> None:
        hyper = self._spec.hyperparameters
        self._ranks.shard(self._loaded.model, self._loaded.head_modules)
        self._trainable = self._loaded.trainable()
        self._optimiser = make_optimiser(self._trainable, hyper)
        self._schedule = make_schedule(hyper, self._plan.total_steps)
        self._stepper = self._make_stepper()
        rows = self._fit.rows if self._fit else hyper.per_device_train_batch_size
        dtype, layers = dtype_name(self._compute.dtype), self._loaded.layers
        self._progress = Progress.begin(identity, dtype=dtype, rows_per_batch=rows, layers=layers)
        self._refer()
        self._ranks.seed(self._spec.seed)
        if resumed is not None:
            self._restore_weights(resumed.weights)
            load_optimiser(
                self._optimiser, self._trainable, self._ranks.split(self._trainable, resumed.optimiser)
            )
            rng = self._ranks.own_rng(resumed.rng)
            if rng is not None:
                restore_rng(rng)
            tell_other_layers(self._log, before=resumed.progress.layers, now=layers)
            self._progress = replace(resumed.progress, layers=layers)
        self._saved_step = self._progress.step
        self._loaded.set_training()
        self._remember()
        labels = self._spec.data.labels or ()
        self._windows = Windows(
            self._spec, self._rows.train, self._plan.rows_per_step, by_length=not self._loaded.packed
        )
        self._windows.tell(self._log, labels)
        tell_weights(self._log, self._stepper.objective.weights, labels)
        self._began = self._saved_at = time.monotonic()

    def _make_stepper(self) -> Stepper:
        hyper = self._spec.hyperparameters
        objective = objective_of(self._spec.task).tuned(hyper, self._rows.train)
        return Stepper(
            self._loaded,
            self._spec.task,
            dtype=self._compute.dtype,
            smoothing=hyper.label_smoothing_factor,
            objective=objective,
        )

    def _refer(self) -> None:
        """While the weights are still those the run began with, also in a later attempt."""
        if not self._stepper.objective.needs_reference:
            return
        key = f"{self._progress.fingerprint} {self._progress.dtype}"
        rows = {"train": self._rows.train, "validation": self._rows.validation}
        for name, some in rows.items():
            if len(some):
                path = self._output / "cache" / f"reference-{name}.safetensors"
                answers = remembered(
                    path, lambda some=some: self._references(some), key=key, rows=some, ranks=self._ranks
                )
                rows[name] = replace(some, reference=answers)
        self._rows = RunRows(**rows)
        self._log.log(
            "info", "The starting model has answered every row: what is learnt is measured against it."
        )

    def _references(self, rows: TokenRows) -> torch.Tensor:
        return self._fitting(lambda size: self._stepper.references(rows, size, self._begin("evaluating")))

    def _remember(self) -> None:
        """A run of the head alone needs the base once."""
        if self._spec.method != "head":
            return
        size = self._spec.hyperparameters.per_device_train_batch_size
        reason = ""
        for rows in (self._rows.train, self._rows.validation):
            reason = reason or self._stepper.remember(rows, size, self._begin("evaluating"))
        done = (
            f"The base runs in every step, as {reason}."
            if reason
            else "The base has run once, for all epochs."
        )
        self._log.log("info", done)

    @torch.no_grad()
    def _restore_weights(self, weights: Mapping[str, Tensor]) -> None:
        own = self._ranks.split(self._trainable, weights)
        for name, parameter in self._trainable.items():
            parameter.copy_(own[name])

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._trainable.items()}

    # ------------------------------------------------------------ the loop

    def _loop(self) -> bool:
        """Trains to the end; True when it ended early for want of gain."""
        hyper = self._spec.hyperparameters
        while True:
            progress = self._progress
            due = self._plan.evaluates_at(progress.step, hyper.eval_steps)
            if due and progress.evaluated_step != progress.step and len(self._rows.validation):
                self._evaluate()
                self._save()
            elif self._ranks.any(self._checkpoint_is_due()):
                self._save()
            patience = hyper.early_stopping_patience
            if patience and self._progress.evaluations_without_gain >= patience:
                return self._progress.step < self._plan.total_steps
            if self._progress.step >= self._plan.total_steps:
                return False
            if self._ranks.any(self._is_asked_to_stop()):
                raise StopRequested
            self._train_step()

    def _is_asked_to_stop(self) -> bool:
        try:
            self._check()
        except StopRequested:
            return True
        return False

    def _train_step(self) -> None:
        progress, hyper = self._progress, self._spec.hyperparameters
        start = time.monotonic()
        rate = self._schedule.at(progress.step)
        set_rate(self._optimiser, rate)
        result = self._gradients(self._windows.of(progress.epoch)[progress.window])
        trend = progress.trend.after(result.loss)
        wrong = divergence(progress.step + 1, loss=result.loss, grad_norm=result.grad_norm, trend=trend)
        if wrong is not None:
            last_good = progress.best_step or self._saved_step or None
            raise diverged(wrong, learning_rate=hyper.learning_rate, last_good=last_good)
        cast("Any", self._optimiser).step()
        seconds = time.monotonic() - start
        self._progress = replace(self._progress, trend=trend).after_step(
            num_tokens=result.num_tokens, seconds=seconds, steps_per_epoch=self._plan.steps_per_epoch
        )
        self._heartbeat.step = self._progress.step
        tell_step(self._log, self._progress, self._plan, result=result, rate=rate, seconds=seconds)

    def _gradients(self, window: list[int]) -> StepResult:
        self._optimiser.zero_grad(set_to_none=True)
        loss, accuracy, num_tokens = self._fitting(lambda rows: self._window_sum(window, rows))
        self._heartbeat.mark("optimiser", 1)
        hyper = self._spec.hyperparameters
        norm = torch.nn.utils.clip_grad_norm_(list(self._trainable.values()), hyper.max_grad_norm)
        return StepResult(loss, accuracy, norm_of(norm), num_tokens)

    def _window_sum(self, window: list[int], rows_per_batch: int) -> tuple[float, float, int]:
        cut = bounds_tokens(self._compute.device, joint=self._stepper.objective.joint)
        micro = micro_batches(
            window,
            self._ranks.rows_per_batch(rows_per_batch, len(window)),
            self._rows.train.lengths if cut else None,
        )
        # Half of what does not fit is half of what was there, not of what might have been.
        self._at_once = max(map(len, micro))
        return self._stepper.train_step(self._rows.train, micro, self._begin("training"), ranks=self._ranks)

    def _fitting(self, work: Callable[[int], _Result]) -> _Result:
        """`work` by micro-batches of so many rows; half as many after each lack of memory, and from then on.
        The loss is weighted by tokens, so the step is the same however it is cut."""
        rng = rng_tensors()
        while True:
            self._at_once = self._progress.rows_per_batch
            try:
                return work(self._at_once)
            except StopRequested:
                restore_rng(rng)  # half a window was drawn; the checkpoint stands before it
                raise
            except Exception as error:
                is_last = self._at_once == 1 and (self._fit is None or self._fit.is_last)
                if is_last or not self._ranks.alone or not is_out_of_memory(error):
                    raise
                lack = str(error).splitlines()[0] if str(error) else "MemoryError"
            # Outside of the handler: the traceback would keep the tensors of the failed attempt alive.
            self._shrink(self._at_once, lack)
            restore_rng(rng)

    def _shrink(self, rows: int, lack: str) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if rows == 1 and self._fit is not None:
            self._fit.relieve(lack, self._progress.step + 1)
            return
        self._progress = replace(self._progress, rows_per_batch=rows // 2)
        tell_fewer_rows(self._log, self._progress, self._plan, before=rows, lack=lack)

    def _begin(self, phase: Phase) -> Callable[[int], None]:
        """For `Stepper`: leaves when the process has been asked to end, else makes a mark."""
        if phase != "training":
            give_back()

        def begin(size: int) -> None:
            if self._ranks.alone:  # the others would wait for this one in vain
                self._check()
            self._heartbeat.mark(phase, size)
            if phase == "training" and self._room is not None:
                self._room.before(size)

        return begin

    def _evaluate(self) -> None:
        """A stop in the middle leaves the evaluation undone; the next attempt does it."""
        rng = rng_tensors()
        result = self._fitting(
            lambda rows: self._stepper.evaluate(self._rows.validation, rows, self._begin("evaluating"))
        )
        restore_rng(rng)
        self._progress = progress = self._progress.after_evaluation(result.loss)
        self._log.write(
            "evaluation",
            step=progress.step,
            valid_loss=result.loss,
            valid_mean_token_accuracy=result.accuracy,
            metrics=result.metrics,
            best=progress.best_step == progress.step,
        )

    # ------------------------------------------------------------ checkpoints

    def _checkpoint_is_due(self) -> bool:
        runtime, step = self._spec.runtime, self._progress.step
        if step == 0 or step == self._saved_step:
            return False
        if step == self._plan.total_steps or (
            runtime.checkpoint_steps and step % runtime.checkpoint_steps == 0
        ):
            return True
        return time.monotonic() - self._saved_at >= runtime.checkpoint_seconds

    def _save(self) -> None:
        if self._progress.step == 0:
            return
        self._saved_step = self._progress.step
        self._heartbeat.mark("saving", 1)
        start = self._saved_at = time.monotonic()
        checkpoint = Checkpoint(
            self._progress,
            self._ranks.whole(self._weights()),
            self._ranks.whole(optimiser_tensors(self._optimiser, self._trainable)),
            self._ranks.rng(rng_tensors()),
        )
        if not self._ranks.first:
            return
        saved = self._folder.save(checkpoint)
        self._saved_at = time.monotonic()
        self._log.write(
            "checkpoint",
            step=self._progress.step,
            path=saved.path.relative_to(self._output).as_posix(),
            sha256=saved.sha256,
            seconds=self._saved_at - start,
        )
        self._folder.prune(self._progress.best_step)

    # ------------------------------------------------------------ the end

    def _finish(self, early: bool) -> None:
        progress = self._progress
        made = artefact.export(self._loaded, self._spec, self._output)
        probe = self._output / "cache" / "probe.safetensors"
        probe.parent.mkdir(exist_ok=True)
        artefact.write_probe(probe, self._stepper, self._rows.train)
        # Two copies of the model at once would need twice the memory.
        self._forget_model()
        self._heartbeat.mark("verifying")
        difference = self._verify(made, Path(self._spec.base_model.path), probe)
        self._log.write(
            "finished",
            step=progress.step,
            best_step=progress.best_step or progress.step,
            trained_tokens=progress.num_tokens,
            artefact_path=made.relative_to(self._output).as_posix(),
            artefact_sha256=artefact.folder_sha256(made),
            peak_rss_bytes=peak_rss_bytes(),
            train_seconds=progress.train_seconds,
            early_stopped=early,
        )
        self._heartbeat.end()
        self._log.write("verified", max_abs_diff=difference)

    def _forget_model(self) -> None:
        nothing: Any = None
        self._trainable, self._optimiser = {}, nothing
        self._stepper, self._loaded, self._fit = nothing, nothing, None
