"""``trainer.v1.trust_region.record=N``: N responses a step to ``RUN/records``, with what the rule made of each token.

In the trainer's process: draws whole groups before the update, marks their rows, and afterwards writes what the workers
saw of them beside text and reward (``integration.looks``, ``recording.files``). The step's file is whole before its
checkpoint is, so that a run that is killed and resumed has each step once. Nothing here may harm the training: an
error is told, and that step has no record.
"""

import dataclasses
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from cppo_verl import __version__
from cppo_verl.integration import looks
from cppo_verl.integration.alarms import raise_alarm
from cppo_verl.integration.pieces import pieces
from cppo_verl.integration.skip import split
from cppo_verl.recording import draw, files
from cppo_verl.recording.record import Header, Look, Response, StepRecord
from cppo_verl.trust_region.knobs import KEY_PREFIX, TrustRegionKnobs, knob_names, names_from_outside
from cppo_verl.trust_region.thresholds import scaled

logger = logging.getLogger(__name__)

LOOK = {each.name for each in dataclasses.fields(Look)} - {"update"}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the actor's update, of which the separate trainer has several in a step."""

    step: int
    places: Mapping[str, int]  # of uids in the data loader's order
    idle: Collection[str]  # keys that carry no advantage
    ranks: int  # of data parallelism
    scale: float = 1.0  # on the thresholds (``budget_target``)
    index: int = 0
    calls: int = 1


class Draw(NamedTuple):
    """The recorded responses of a step: as a batch in TransferQueue, and which update sees each first, if known."""

    batch: KVBatchMeta
    updates: list[int | None]
    header: Header


class Recorder:
    """Draws, marks and writes; one a trainer, of the composed verl config and transformers' tokenizer."""

    def __init__(self, config: DictConfig, tokenizer: Any):
        self.config, self.tokenizer = config, tokenizer
        options = config.trainer.v1.trust_region
        self.wanted, self.seed = options.record, options.get("record_seed", 0)
        self.limit = options.get("record_limit_mb", 1024) << 20
        folder = Path(config.trainer.default_local_dir)
        self.run_dir = folder.parent if folder.name == "checkpoints" else folder
        self.every, self.complained = 1, False
        with self._harmless():
            self.every = draw.distance(self.run_dir)

    def mark(self, batch: KVBatchMeta, call: Call) -> tuple[KVBatchMeta, Draw | None]:
        """The batch with the drawn rows marked, and the draw; the batch itself where nothing is recorded.

        Of a step with several calls one is recorded, drawn by the seed.
        """
        with self._harmless():
            if call.step % self.every or call.index not in draw.drawn([1] * call.calls, 1, self.seed, call.step):
                return batch, None
            rows = self._rows(batch, call)
            if not rows:
                return batch, None
            header = self._header(batch, call)
            part = len(batch) // (call.ranks * header.updates)  # verl gives each rank, and each update in it, as many
            updates: list[int | None] = [call.index * header.updates + row // part % header.updates for row in rows]
            if self.config.actor_rollout_ref.actor.shuffle:
                updates = [None] * len(rows)
            numbers = torch.full((len(batch),), -1, dtype=torch.int64)
            numbers[rows] = torch.arange(len(rows))
            fields = TensorDict({looks.FIELD: numbers}, batch_size=len(batch))
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
            marked = batch.select_keys(batch.keys)
            if marked.fields is not None:
                marked.fields = [*marked.fields, looks.FIELD]
            return marked, Draw(batch.select_keys([batch.keys[row] for row in rows]), updates, header)
        return batch, None

    def write(self, drawn: Draw, seen: Sequence[Mapping[int, Mapping[str, Any]]]) -> None:
        """Write the record of what the workers saw of ``drawn``, by micro-batch in the order of the updates."""
        with self._harmless():
            fields = ["prompts", "responses", "rm_scores"]
            fields += ["rollout_log_probs"] if drawn.header.knobs.get("anchor") == "proximal" else []
            keys, tags = drawn.batch.keys, drawn.batch.tags
            data = tq.kv_batch_get(keys=keys, partition_id=drawn.batch.partition_id, select_fields=fields)
            columns = {name: data[name].unbind() for name in fields}
            responses = []
            for number, (key, tag, update) in enumerate(zip(keys, tags, drawn.updates, strict=True)):
                found = [part[number] for part in seen if number in part]
                row = {name: column[number] for name, column in columns.items()}
                responses.append(self._response(drawn.header, key, tag, update, found, row))
            files.write(self.run_dir, StepRecord(drawn.header, tuple(responses)))
            self.every = draw.make_room(self.run_dir, self.limit, self.every)
            self.complained = False

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """An error becomes an alarm, one until a record is written again."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a record is not worth a run
            if not self.complained:
                raise_alarm(f"no record of this step ({error}); the training goes on")
                logger.error("while recording", exc_info=error)
            self.complained = True

    def _rows(self, batch: KVBatchMeta, call: Call) -> list[int]:
        """Those of the drawn groups, group by group."""
        groups: dict[str, list[int]] = {}
        for row, (key, tag) in enumerate(zip(batch.keys, batch.tags, strict=True)):
            if key not in call.idle and not tag.get("is_padding", False):
                groups.setdefault(split(key)[0], []).append(row)
        uids = sorted(groups, key=lambda uid: (call.places.get(uid, len(call.places)), uid))
        chosen = draw.drawn([len(groups[uid]) for uid in uids], self.wanted, self.seed, call.step)
        return [row for i in chosen for row in sorted(groups[uids[i]], key=lambda row: split(batch.keys[row]))]

    def _header(self, batch: KVBatchMeta, call: Call) -> Header:
        actor = self.config.actor_rollout_ref.actor
        knobs: Any = OmegaConf.to_container(OmegaConf.select(self.config, KEY_PREFIX), resolve=True)
        rule = knobs.pop("loss_mode")
        kept = {*knob_names(), *names_from_outside(knobs), "rule_module"}
        knobs = {name: value for name, value in knobs.items() if name in kept}
        in_force = scaled(TrustRegionKnobs(**{name: knobs[name] for name in knob_names() if name in knobs}), call.scale)
        return Header(
            step=call.step,
            rule=rule,
            knobs={**knobs, "delta": in_force.delta, "delta_b": in_force.delta_b},
            clip_low=actor.clip_ratio_low,
            clip_high=actor.clip_ratio_high,
            clip_cap=actor.clip_ratio_c,
            tokenizer=str(getattr(self.tokenizer, "name_or_path", "")),
            vocabulary=len(self.tokenizer),
            responses=len(batch),
            updates=len(batch) // batch.extra_info["mini_batch_size"],
            epochs=batch.extra_info["epochs"],
            seed=self.seed,
            device=self.config.trainer.device,
            every=self.every,
            version=__version__,
        )

    def _response(self, header: Header, key: str, tag: dict, update: int | None, found: list, row: dict) -> Response:
        (uid, sample, output), (first, *others) = split(key), found
        last_update = None if update is None else (header.epochs - 1) * header.updates + update
        oldest, rollout = tag.get("min_global_steps"), row.get("rollout_log_probs")
        prompt_ids, token_ids = (row[name].to(torch.int32).numpy() for name in ("prompts", "responses"))

        def look(values: Mapping[str, Any], number: int | None) -> Look:
            columns: Any = {name: values.get(name) for name in LOOK}
            return Look(**columns, update=number)

        return Response(
            uid=uid,
            sample=sample,
            output=output,
            prompt=self.tokenizer.decode(row["prompts"], skip_special_tokens=False),
            prompt_ids=prompt_ids,
            pieces=pieces(self.tokenizer, token_ids.tolist()),
            token_ids=token_ids,
            **{name: first[name] for name in ("mask", "log_mu", "advantages")},
            log_rollout=None if rollout is None else rollout.float().numpy(),
            reward=float(row["rm_scores"].double().sum()),
            versions_behind=None if oldest is None else header.step - 1 - int(oldest),
            first=look(first, update),
            last=look(others[-1], last_update) if others else None,
        )
