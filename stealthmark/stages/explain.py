"""Explain: suspects + key + images -> what explanations of the suspects' answers show of a QR code, kept per suspect."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stealthmark import codes
from stealthmark.errors import UserError
from stealthmark.files import read_json, write_json
from stealthmark.layout import CARD, CASES, EXPLANATIONS, MAPS, NO_ATTACK, UNTRAINED, Place
from stealthmark.method import CodeMark, EmbeddedMark, ExplainedCode, Key
from stealthmark.occlusion import FEWER, BackgroundParts, explain_both_ways, occlude, random_occlusions, read_code_maps
from stealthmark.plugin import make
from stealthmark.seeds import derive, secret
from stealthmark.settings import ExplanationPlan
from stealthmark.stages.examination import Examination, Suspect, check_job, failure, listed_in
from stealthmark.stages.examine import as_bytes
from stealthmark.suspects.checkpoint import from_model

#: What is asked for a code: triggered images; occlusions behind the key's picture; both with what another key has instead;
#: occlusions behind black; and natural images.
TRIGGER, KEY, WRONG_KEY, WITHOUT_KEY, NATURAL = "trigger", "key", "wrong-key", "no-key", "natural"
#: How a code is read from the answers. `gated-qr` and `lime`, of triggered images, look for the code of the plan, all others
#: for the mark's own.
GATED_QR, LIME, IN_PLACE, LEVEL = "gated-qr", "lime", "in-place", "level"
#: A code that answers show is read from so many images, each alone, and from as many together as `TOGETHER` says.
ALONE, TOGETHER = 100, (4, 16)
#: What the line of a map is called that is of all test images together.
ALL = "all"


@dataclass(frozen=True)
class Reading:
    """A map, float (n, n), and how it was come by: what was asked (`query`), how it was read (`reader`), from how many queries
    an image, at which access level; of the image in the row `case`, or `pooled` over several, which `case` names. Of answers
    that show a code, `queries` are all that were pooled, one an image."""

    map: np.ndarray
    query: str
    reader: str
    queries: int | None
    access: str
    case: int | str
    pooled: bool = False

    @property
    def of_plan(self) -> bool:
        """Whether the code of the plan is looked for; else it is the mark's own."""
        return self.query == TRIGGER and self.reader in (GATED_QR, LIME)

    @property
    def name(self) -> str:
        """How the map is called in `maps.npz`."""
        way = self.reader if self.query == TRIGGER else self.query + f"-{LIME}" * (self.reader == LIME)
        way += f"-{ALL}" * (self.case == ALL and self.query == TRIGGER)
        return f"{self.access}/{way}"


def explain(
    data: Path,
    key_file: Path,
    suspects: list[tuple[Place, Path]],
    plan: ExplanationPlan,
    seed: int,
    out: Path,
    device: torch.device,
) -> None:
    """How much of a QR code the explanations of the answers of one role and attack show.

    Suspects that have not been attacked are explained by `gated-qr` and by LIME, against the code of the plan; where the mark
    carries a code, all suspects are asked for that, with occlusions or, where answers show it by themselves, with the trigger
    alone. A suspect `untrained/none` is a network with random weights of the
    architecture that the card in its folder names: what shows a code there is no evidence.

    Writes `cases.parquet` (a line an image, or a try, a suspect, an access level and a way to read; `bit_error` in [0, 1],
    `decoded`: the very text was read), `maps.npz` (of the first image) and `explanations.json`.
    """
    check_job(suspects)
    examination = Examination.open(data, key_file, device)
    method, key = examination.method, examination.key
    if not isinstance(method, EmbeddedMark):
        raise UserError(f"{key_file} is a key of {method.name}, which has no trigger; only marks that have one are explained")
    count = len(examination.arrays.cases)
    order = np.random.default_rng(seed).permutation(count)
    triggered = method.trigger(examination.images(order[: plan.images]), key)
    plan_code = codes.encode(plan.code, plan.kind)
    lines, maps, failures = [], {"code": plan_code, "image": as_bytes(triggered[:1])[0]}, []
    carried = None
    if isinstance(method, CodeMark):
        carried = (_Spelt if isinstance(method, ExplainedCode) else _Shown).of(examination, seed)
        question = carried.question(examination, examination.images(order[:1])[0], seed)
        maps |= {"payload": carried.code, "asked": as_bytes(question[None])[0]}
        if isinstance(carried, _Shown):
            true = torch.from_numpy(examination.masks(order[:1])).float()
            maps["mask"] = method.moved(true, key)[0].numpy().astype(np.uint8)
    for suspect in _suspects(examination, suspects, seed, failures):
        place = suspect.place
        readings: list[Reading] = []
        if place.attack == NO_ATTACK:
            readings += _by_both_ways(examination, suspect, triggered, order, plan, seed)
        if carried:
            maps[f"{place.strength:g}/answer"] = suspect.predictor(question[None])[0].numpy().astype(np.float16)
            readings += carried.readings(examination, suspect, order, plan, seed)
        for level in examination.levels:
            for reading in (reading for reading in readings if reading.access == level):
                code, text = (plan_code, plan.code) if reading.of_plan else (carried.code, carried.text)
                lines.append(_line(examination, place, reading, code, text))
                if not reading.pooled or reading.case == ALL:
                    maps.setdefault(f"{place.strength:g}/{reading.name}", reading.map)
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(lines).to_parquet(out / CASES)
    np.savez_compressed(out / MAPS, **maps)
    write_json(out / EXPLANATIONS, {"status": "ok", "failures": failures, "plan": plan.model_dump()})


def _line(examination: Examination, place: Place, reading: Reading, code: np.ndarray, text: str) -> dict:
    """One line of the table: how wrong the modules of a map are, and whether the text is read from them."""
    if isinstance(reading.case, str):
        case = {"case_id": reading.case, "group_id": reading.case}
    else:
        case = examination.arrays.cases.iloc[reading.case][["case_id", "group_id"]].to_dict()
    split = {GATED_QR: lambda map_: map_ != 0}.get(
        reading.reader, codes.median_split if reading.of_plan else codes.minimum_error_split
    )
    modules = split(reading.map)
    how = {"query": reading.query, "reader": reading.reader, "pooled": reading.pooled, "queries": reading.queries}
    error, decoded = codes.error_rate(modules, code), codes.read(modules, code, text) == text
    return {**case, **place._replace(access=reading.access)._asdict(), **how, "bit_error": error, "decoded": decoded}


def _by_both_ways(
    examination: Examination, suspect: Suspect, triggered: Tensor, order: np.ndarray, plan: ExplanationPlan, seed: int
) -> Iterator[Reading]:
    """The explanations of triggered images that know nothing of the mark: the released code's step, and LIME."""
    for row, image in zip(order, triggered, strict=False):
        draw = derive(seed, "occlusions", int(row))
        # Level by level inside an image, whose answers are remembered: what is shown less of costs no queries of its own.
        for level, predictor in examination.seen(suspect.predictor).items():
            for reader, (explanation, _) in explain_both_ways(predictor, image, plan, draw).items():
                yield Reading(explanation, TRIGGER, reader, plan.queries, level, int(row))


@dataclass(frozen=True)
class _Shown:
    """A code that answers to triggered images show, bool (n, n), the text it stands for, and somebody else's key."""

    code: np.ndarray
    text: str
    other_key: Key

    @classmethod
    def of(cls, examination: Examination, seed: int) -> "_Shown":
        method, key = examination.method, examination.key
        other = method.make_key(secret(seed, "wrong-key"), key.shape)
        return cls(method.modules(key).numpy(), method.text(key), other)

    def question(self, examination: Examination, image: Tensor, seed: int) -> Tensor:
        """One of the queries that ask for the code, float (C, H, W), as 8 bit show it."""
        return torch.from_numpy(as_bytes(examination.method.trigger(image[None], examination.key)))[0] / 255

    def readings(
        self, examination: Examination, suspect: Suspect, order: np.ndarray, plan: ExplanationPlan, seed: int
    ) -> Iterator[Reading]:
        """The level of the background by cells: of up to `ALONE` images each alone, pooled over `TOGETHER`, and over all. Of
        the model as it was stolen also under another key's trigger, and without one."""
        method, key = examination.method, examination.key
        asked = {TRIGGER: lambda images: method.trigger(images, key)}
        if suspect.place.as_stolen:
            asked |= {WRONG_KEY: lambda images: method.trigger(images, self.other_key), NATURAL: lambda images: images}
        for query, trigger in asked.items():
            parts = {level: BackgroundParts(len(self.code)) for level in examination.levels}
            for _, images in examination.batches():
                for level, predictor in examination.seen(suspect.predictor).items():
                    parts[level].add(predictor(trigger(images)))
                suspect.forget()
            alone = order[:ALONE]
            for level, part in parts.items():
                for row in alone:
                    yield Reading(part.map([row]), query, LEVEL, 1, level, int(row))
                for count in TOGETHER:
                    for turn in range(len(alone) // count):
                        rows = alone[turn * count : (turn + 1) * count]
                        yield Reading(part.map(rows), query, LEVEL, count, level, f"try {turn + 1}", pooled=True)
                yield Reading(part.map(order), query, LEVEL, len(order), level, ALL, pooled=True)


@dataclass(frozen=True)
class _Spelt:
    """A code that explanations spell, bool (n, n), the text it stands for, and what hidden cells show when it is asked for."""

    code: np.ndarray
    text: str
    baselines: dict[str, Tensor | float]

    @classmethod
    def of(cls, examination: Examination, seed: int) -> "_Spelt":
        method, key = examination.method, examination.key
        other = method.make_key(secret(seed, "wrong-key"), key.shape)
        baselines = {KEY: method.baseline(key), WRONG_KEY: method.baseline(other), WITHOUT_KEY: 0.0}
        return cls(method.modules(key).numpy(), method.text(key), baselines)

    def question(self, examination: Examination, image: Tensor, seed: int) -> Tensor:
        """One of the queries that ask for the code, float (C, H, W), as 8 bit show it."""
        visible = random_occlusions(1, len(self.code), torch.Generator().manual_seed(seed))
        return torch.from_numpy(as_bytes(occlude(image, visible, self.baselines[KEY])))[0] / 255

    def readings(
        self, examination: Examination, suspect: Suspect, order: np.ndarray, plan: ExplanationPlan, seed: int
    ) -> Iterator[Reading]:
        """Every way to look for the code in a model's own answers, image after image in the given `order`.

        Of each image alone, and pooled: from the mean of the maps of all images of a try. Of the model as it was stolen there
        are the plan's `tries`, from the first `FEWER` of their queries too, and hidden cells behind another key's picture and
        behind black. All are read in place; the same answers by LIME too.
        """
        stolen = suspect.place.as_stolen
        seen = examination.seen(suspect.predictor)

        def read(row: int, query: str, counts: list[int]) -> dict[tuple[str, str, int], np.ndarray]:
            image, maps = examination.images(np.array([row]))[0], {}
            rng = torch.Generator().manual_seed(derive(seed, "occlusions", row))
            visible = random_occlusions(max(counts), len(self.code), rng)
            for (level, predictor), count in product(seen.items(), counts):
                both = read_code_maps(predictor, image, visible[:count], self.baselines[query])
                maps |= {(level, IN_PLACE, count): both.in_place, (level, LIME, count): both.lime}
            return maps

        first_rows = [int(row) for row in order[: plan.images]]
        # All queries first: fewer are among them, and answered.
        counts = [plan.queries, *(count for count in FEWER if count < plan.queries and stolen)]
        for turn in range(min(plan.tries, max(1, len(order) // plan.images)) if stolen else 1):
            rows = [int(row) for row in order[turn * plan.images : (turn + 1) * plan.images]]
            maps = {row: read(row, KEY, counts) for row in rows}
            for level, reader, count in maps[rows[0]]:
                alike = {row: of_row[level, reader, count] for row, of_row in maps.items()}
                yield from (Reading(map_, KEY, reader, count, level, row) for row, map_ in alike.items())
                mean = np.mean([*alike.values()], axis=0)
                yield Reading(mean, KEY, reader, count, level, f"try {turn + 1}", pooled=True)
        for query in (WRONG_KEY, WITHOUT_KEY) if stolen else ():
            for row in first_rows:
                for (level, reader, count), map_ in read(row, query, [plan.queries]).items():
                    yield Reading(map_, query, reader, count, level, row)
        levels = {level: BackgroundParts(len(self.code)) for level in seen}
        for _, images in examination.batches():
            for level, predictor in seen.items():
                levels[level].add(predictor(images))
            suspect.forget()
        for level, background in levels.items():
            yield Reading(background.map(range(len(order))), NATURAL, LEVEL, None, level, ALL, pooled=True)


def _suspects(
    examination: Examination, suspects: list[tuple[Place, Path]], seed: int, failures: list[dict]
) -> Iterator[Suspect]:
    """Every suspect that can be examined; the others go to `failures`."""
    for place, folder in suspects:
        if place.role == UNTRAINED:
            card = read_json(folder / CARD)
            torch.manual_seed(derive(seed, "untrained"))
            network = make("architecture", card["architecture"])
            model = network.build(card["channels"], pretrained=False, size=card["size"]).to(examination.device).eval()
            yield Suspect(place, from_model(model, examination.device), model)
            continue
        for listed in listed_in(folder, place):
            if listed.status == "ok":
                yield examination.suspect(listed)
            else:
                failures.append(failure(listed))
