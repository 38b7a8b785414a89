"""The study's stages, one function each: what the command line calls and the workflow orders.

Every stage ends by writing a JSON card into its folder; its heavy files lie beside the card. A stage whose input's card
says that it failed hands the status on instead of computing.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stealthmark import architecture, certificate, claims, codes, dataset, metrics
from stealthmark.architecture import CARD, read_json, write_json
from stealthmark.attack import AttackContract
from stealthmark.certificate import Certificate
from stealthmark.dataset import Arrays
from stealthmark.errors import UserError
from stealthmark.evidence import ALPHA, MARGIN, conformal_p, detect, fit_detector, inside_p, owned
from stealthmark.explain import FEWER, Plan, background_levels, both_ways, dark, drawn, occlude, spelt
from stealthmark.method import Answers, Batch, Key, MethodContract, Predictor, digest_of
from stealthmark.plugin import make
from stealthmark.predictor import Limits, at_access, connect, from_model
from stealthmark.seeds import derive
from stealthmark.training import Schedule, fit

INDEX, EVIDENCE, CASES, POOL, EXAMPLES = "index.json", "evidence.json", "cases.parquet", "pool.parquet", "examples.npz"
EXPLANATIONS, MAPS = "explanations.json", "maps.npz"
RELIABILITY = "reliability.npz"
#: Situations of the null pool start so: `null-3` was never marked, `null-badnets` carries another method's mark, and
#: `null-key-0` this method's mark with another owner's key.
NULL = "null-"
#: How many images, at most, a certificate's queries for a code are spread over.
ASKED_FOR_CODE = 4


def prepare(data: dict, size: int, seed: int, out: Path) -> None:
    """Source -> arrays: the dataset `data` at `size` px into the folder `out`."""
    dataset.prepare(make("dataset", data), size, seed, out)


def train(
    data: Path,
    share: str,
    arch: dict,
    schedule: Schedule,
    seed: int,
    out: Path,
    device: torch.device,
    fraction: float = 1.0,
) -> None:
    """A clean model of the architecture `arch`, trained on one share of the prepared dataset `data`, or on a `fraction` of
    the share's groups (as null models are, so that no two have seen the same patients)."""
    clean = make("method", {"name": "clean"})
    model, card = _fit(data, share, arch, clean, None, schedule, seed, out, device, start=None, fraction=fraction)
    architecture.save(model, card, out)


def mark(
    data: Path,
    clean: Path,
    how: dict,
    schedule: Schedule,
    access: Iterable[str],
    seed: int,
    out: Path,
    key_file: Path,
    device: torch.device,
    share: str = "owner",
) -> None:
    """A marked model and its key, from a clean model (or, where the method says so, from scratch), trained on one share.

    The key's detectors, one an access level, are fitted on the calibration share with the clean model as null model. The key
    also holds the digest of the test share's images, which are what suspects are queried with, and lies in a file of its own
    with its commitment beside it.
    """
    null, card = architecture.load(clean, device)
    method: MethodContract = make("method", how)
    unmarked = from_model(null, device)
    nulls = {level: at_access(unmarked, level) for level in access}
    key = method.make_key(derive(seed, "key"), (card["channels"], card["size"], card["size"]))
    if method.epochs:
        schedule = schedule.model_copy(update={"epochs": method.epochs, "steps": None})
    start = clean if method.start == "clean" else None
    model, card = _fit(data, share, card["architecture"], method, key, schedule, seed, out, device, start)
    arrays = dataset.load(data)
    images = _float(arrays.share("calibration"))
    marked = from_model(model, device)
    detectors = {level: fit_detector(method, key, at_access(marked, level), nulls[level], images) for level in nulls}
    key_file.parent.mkdir(parents=True, exist_ok=True)
    queried = digest_of(_float(arrays.share("test")))
    key.model_copy(update={"detectors": detectors, "images": queried}).write(key_file)
    architecture.save(model, card, out)


def _fit(
    data: Path,
    share: str,
    arch: dict,
    method: MethodContract,
    key: Key | None,
    schedule: Schedule,
    seed: int,
    out: Path,
    device: torch.device,
    start: Path | None,
    fraction: float = 1.0,
) -> tuple[torch.nn.Module, dict]:
    """A network trained by `method`'s batches on one share, and its card; from the checkpoint `start` or from scratch."""
    arrays = dataset.load(data).share(share).part(fraction, derive(seed, "part"))
    channels, size = arrays.images.shape[1:3]
    network = make("architecture", arch)
    network.check_size(size)
    if start is None:
        torch.manual_seed(derive(seed, "weights"))
        model = network.build(channels, pretrained=True, size=size).to(device)
    else:
        model, _ = _network(start, arrays, device)
    out.mkdir(parents=True, exist_ok=True)
    run = digest(arrays.manifest["sha256"], share, fraction, arch, method.options(), schedule.model_dump(), seed)

    def make_batch(images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
        return method.mark_batch(images, masks, key, progress, rng)

    images, masks = _tensors(arrays, device)
    fit(model, images, masks, schedule, make_batch, seed, out / "state", run)
    return model, architecture.card_for(arch, channels, size)


def attack(data: Path, model: Path, how: dict, seed: int, out: Path, device: torch.device) -> None:
    """All suspects of one attack on one marked model: a checkpoint folder a strength, listed in `index.json`."""
    thief: AttackContract = make("attack", how)
    arrays = dataset.load(data).share("attacker")
    marked, card = _network(model, arrays, device)
    images, masks = _tensors(arrays, device)
    out.mkdir(parents=True, exist_ok=True)

    def keep(strength: float, suspect: torch.nn.Module) -> None:
        architecture.save(suspect, card, out / f"{strength:g}")

    def fresh() -> torch.nn.Module:
        torch.manual_seed(derive(seed, "fresh"))
        network = make("architecture", card["architecture"])
        return network.build(card["channels"], pretrained=True, size=card["size"]).to(device)

    run = digest(str(model), (model / architecture.WEIGHTS).stat().st_mtime_ns, thief.options(), seed)
    thief.run(marked, images, masks, seed, out / "state", run, keep, fresh)
    suspects = [{"strength": strength, "model": f"{strength:g}"} for strength in thief.strengths]
    write_json(out / INDEX, {"attack": thief.options(), "unit": thief.unit, "suspects": suspects})


def examine(
    data: Path,
    key_file: Path | None,
    suspects: list[tuple[str, str, Path]],
    out: Path,
    device: torch.device,
    plan: claims.Plan | None = None,
    seed: int = 0,
) -> None:
    """Suspects -> evidence: the owner's queries and the segmentation's quality on the test share, per case.

    `suspects` are (situation, attack, folder), the folder a checkpoint or an attack's. Without a key (method `clean`)
    only quality is measured; of null models (situation `null-...`) only the answers to the key's queries. With a `plan` of
    claims, the model as it was stolen is also queried in the situations of `claims.NAMES`, with the independent model as
    the claimant's surrogate, and so are the null models.

    Writes `cases.parquet`, `examples.npz` (three cases with their probability maps), `reliability.npz` (of the
    stolen model as it is) and `evidence.json`, where a suspect that could not be examined is listed with its status; with a
    plan also `pool.parquet`, a line a claim, a null model and an access level.
    """
    key = Key.read(key_file) if key_file else None
    method = make("method", key.method) if key else None
    arrays = dataset.load(data).share("test")
    if key and key.shape != arrays.images.shape[1:]:
        raise UserError(f"{key_file} is for queries of shape {key.shape}, the images in {data} have {arrays.images.shape[1:]}")
    images, masks = _float(arrays), np.asarray(arrays.masks) > 0
    if key and key.images and key.images != digest_of(images):
        raise UserError(f"the test images in {data} are not those that {key_file} was committed with")
    asked = _claims(data, method, key, suspects, plan, seed, device) if plan and key else []
    some = _spread(len(images), plan.images) if plan else None
    tables, pool, failures = [], [], []
    for situation, attack_name, folder in suspects:
        for strength, checkpoint, status in _listed(folder):
            place = {"situation": situation, "attack": attack_name, "strength": strength}
            if status != "ok":
                failures.append({**place, "status": status})
                continue
            model, _ = _network(checkpoint, arrays, device)
            predictor = from_model(model, device)
            null = situation.startswith(NULL)
            quality = None if null else _quality(predictor, method, key, images, masks)
            if not tables:
                _examples(predictor, method, key, images, masks, out)
            if (situation, attack_name) == ("stolen", "none"):
                _reliability(predictor, method, key, images, masks, arrays.cases["group_id"], out)
            levels = key.detectors if key else {"probabilities": None}
            for level, detector in levels.items():
                table = arrays.cases[["case_id", "group_id", "foreground"]].assign(**place, access=level)
                if level == "probabilities" and not null:
                    table = table.join(quality)
                if key:
                    answers = method.query(at_access(predictor, level), key, images)
                    table = table.assign(**_scores(answers, detector.threshold))
                tables.append(table)
            for claim in asked if null or (situation, attack_name) == ("stolen", "none") else []:
                for level in levels:
                    answers = claim.ask(method, at_access(predictor, level), images[some])
                    if null:
                        score = float(answers.triggered.double().mean())
                        pool.append({"claim": claim.name, "null": situation, "access": level, "score": score})
                        continue
                    table = arrays.cases.iloc[some][["case_id", "group_id", "foreground"]].reset_index(drop=True)
                    table = table.assign(**{**place, "situation": claim.name}, access=level)
                    tables.append(table.assign(**_scores(answers, claim.threshold(answers, level))))
    out.mkdir(parents=True, exist_ok=True)
    if tables:
        pd.concat(tables, ignore_index=True).to_parquet(out / CASES)
    if asked:
        pd.DataFrame(pool, columns=["claim", "null", "access", "score"]).to_parquet(out / POOL)
    summary = {"status": "ok", "failures": failures, "queries": method.asks * len(images) if key else 0}
    write_json(out / EVIDENCE, summary)


def _scores(answers: Answers, threshold: float) -> dict:
    """The columns of evidence: a query's score with the trigger and without, and what it must exceed."""
    triggered, benign = (scores.numpy().astype(np.float64) for scores in (answers.triggered, answers.benign))
    return {"score_triggered": triggered, "score_benign": benign, "threshold": threshold}


def _claims(
    data: Path,
    method: MethodContract,
    key: Key,
    suspects: list[tuple[str, str, Path]],
    plan: claims.Plan,
    seed: int,
    device: torch.device,
) -> list[claims.Claim]:
    """The claims of others against the model as it was stolen; none where it, or the claimant's own model, failed."""
    arrays = dataset.load(data).share("attacker")
    found = {situation: _listed(folder)[0] for situation, attack_name, folder in suspects if attack_name == "none"}
    if any(found.get(needed, (0, None, "absent"))[2] != "ok" for needed in ("stolen", "independent")):
        return []
    (suspect, _), (surrogate, _) = (_network(found[name][1], arrays, device) for name in ("stolen", "independent"))
    images, masks = _float(arrays), torch.from_numpy(np.array(arrays.masks)).float()
    return claims.every(method, key, from_model(suspect, device), surrogate, images, masks, plan, seed)


def certify(
    data: Path,
    key_file: Path,
    suspect: str,
    nulls: list[tuple[str, Path]],
    access: str,
    claimant: str,
    published: tuple[str, str] | None,
    created: datetime,
    out: Path,
    device: torch.device,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    code_queries: int = 512,
) -> Certificate:
    """One suspect, a checkpoint folder, an ONNX file or a service (see `predictor.connect`) -> a certificate in `out`.

    The suspect shows `access`; it and the `nulls`, (kind, checkpoint folder), are asked with the test share's images that the
    key was committed with, each with and without the trigger; as many of them as the budget of `limits` allows, evenly
    spread. `published`: (where, SHA-256) of the commitment as it was published. Nothing is fitted. Where the mark carries a
    code, `code_queries` more, over up to four images, ask the suspect for it.

    Raises UserError where the key is not the one committed to, here or there, has no detector for that access level, or an
    answer cannot be relied on: then there is no certificate, neither for nor against.
    """
    key = Key.read(key_file)
    if published and published[1] != key.commitment():
        raise UserError(f"the commitment in {published[0]} is {published[1]}, that of {key_file} is {key.commitment()}")
    if access not in key.detectors:
        raise UserError(f"{key_file} has no detector for the access level {access!r}; it has: {', '.join(key.detectors)}")
    method: MethodContract = make("method", key.method)
    arrays = dataset.load(data).share("test")
    images = _float(arrays)
    if key.images and key.images != digest_of(images):
        raise UserError(f"the test images in {data} are not those that {key_file} was committed with")
    if method.carries and code_queries < 2 * ASKED_FOR_CODE:
        raise UserError(f"the code is asked for with {code_queries} queries; allowed: at least {2 * ASKED_FOR_CODE}")
    for_code = code_queries if method.carries else 0
    most = len(images) if limits.budget is None else (limits.budget - for_code) // method.asks
    if most < 1:
        needed = f"the {method.asks} queries that one image takes" + f" and the {for_code} for the code" * method.carries
        raise UserError(f"a budget of {limits.budget} is less than {needed}")
    some = _spread(len(images), most)
    asked, groups = images[some], arrays.cases["group_id"].to_numpy()[some]
    shows = {"label": "labels", "logits": "logits"}.get(access, "probabilities")
    predictor = connect(suspect, key.shape, device, limits, shows)
    detector = key.detectors[access]
    payload = _payload_of(method, key, at_access(predictor, access), asked, code_queries) if method.carries else None
    found = _scores(method.query(at_access(predictor, access), key, asked), detector.threshold)
    pool = []
    for kind, folder in nulls:
        model, _ = _network(folder, arrays, device)
        answers = method.query(at_access(from_model(model, device), access), key, asked).triggered.double().numpy()
        rate = float(detect(answers, detector.threshold).mean())
        pool.append(certificate.Null(name=str(folder), score=float(answers.mean()), rate=rate, kind=kind))
    hit, alarm = (detect(found[f"score_{name}"], detector.threshold) for name in ("triggered", "benign"))
    p_model = conformal_p(float(found["score_triggered"].mean()), np.array([null.score for null in pool])) if pool else None
    p_inside = inside_p(hit, alarm, groups)
    made = Certificate(
        claimant=claimant,
        created=created,
        commitment=certificate.Commitment(sha256=key.commitment(), published=published[0] if published else None),
        method=certificate.Mark.of(key, type(method).citation),
        suspect=certificate.Suspect(**told_of(suspect)),
        access=access,
        queries=certificate.Queries(images=len(some), patients=len(np.unique(groups)), sent=predictor.sent),
        scores=certificate.Scores.of(found["score_triggered"], found["score_benign"], detector.threshold, groups),
        nulls=tuple(pool),
        p_model=p_model,
        p_inside=p_inside,
        alpha=ALPHA,
        margin=MARGIN,
        payload=payload,
        verdict="shown" if p_model is not None and owned(p_model, p_inside) else "not shown",
        software=certificate.software(),
    )
    out.mkdir(parents=True, exist_ok=True)
    certificate.write(made, out)
    return made


def _payload_of(method: MethodContract, key: Key, seen: Predictor, images: Tensor, queries: int) -> certificate.Payload:
    """The code that a suspect's answers spell, from `queries` occlusions spread over the first images (four at most)."""
    code = method.carried(key).numpy()
    chosen = images[:ASKED_FOR_CODE]
    each = queries // len(chosen)
    maps = [
        spelt(seen, image, len(code), each, derive(key.seed, "code", i), method.baseline(key)).in_place
        for i, image in enumerate(chosen)
    ]
    found = dark(np.mean(maps, axis=0))
    return certificate.Payload.of(key.method["payload"], code, found, each * len(chosen))


def told_of(suspect: str) -> dict:
    """Name, kind and digest of a suspect, for its certificate: of an address the host and path, of a file its last name."""
    if "://" in suspect:
        address = urlsplit(suspect)
        return {"name": f"{address.hostname}{address.path}", "kind": "http"}
    path = Path(suspect)
    file = path / architecture.WEIGHTS if path.is_dir() else path
    kind = "checkpoint" if path.is_dir() else "onnx"
    with file.open("rb") as opened:
        return {"name": path.resolve().name, "kind": kind, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _spread(n: int, most: int) -> np.ndarray:
    """At most `most` of n indices, evenly spread, rising."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def explain(
    data: Path,
    key_file: Path,
    suspects: list[tuple[str, str, Path]],
    plan: Plan,
    seed: int,
    out: Path,
    device: torch.device,
) -> None:
    """Suspects -> explanations: how much of a QR code the explanations of their answers show.

    Beside the `suspects` (see `examine`) an untrained network of the first one's architecture is explained: what shows a
    code there is no evidence. Ways to explain: those of `explain.both_ways`, of what has not been attacked, against the code
    of the plan; and for a mark that `carries` a code, those of `_in_the_model`, against that code.

    Writes `cases.parquet` (a line an image, or a try, a suspect, an access level and a way to explain; `bit_error` in [0, 1],
    `decoded`: the very text was read), `maps.npz` (of the first image) and `explanations.json`.
    """
    key = Key.read(key_file)
    method = make("method", key.method)
    arrays = dataset.load(data).share("test")
    every = _float(arrays)
    order = np.random.default_rng(seed).permutation(len(every))
    images = method.trigger(every[torch.from_numpy(order[: plan.images])], key)
    code = codes.encode(plan.code, plan.kind)
    carried = _Carried.of(method, key, seed) if method.carries else None
    lines, maps, failures = [], {"code": code, "image": _bytes(images[:1])[0]}, []
    if carried:
        maps |= {"payload": carried.code, "asked": _asked(every[order[0]], carried, seed)}
    for place, model in _to_explain(suspects, arrays, seed, device, failures):
        predictor = from_model(model, device)
        here = "{situation}/{attack}/{strength:g}".format(**place)
        if carried:
            maps[f"{here}/answer"] = predictor(torch.from_numpy(maps["asked"])[None] / 255)[0].numpy().astype(np.float16)
        # Level by level inside an image, whose answers are remembered: what is shown less of costs no queries of its own.
        levels = {level: at_access(predictor, level) for level in key.detectors}
        found = []
        for i, image in zip(order, images, strict=False):
            draw = derive(seed, "occlusions", int(i))
            for level, seen in levels.items() if place["attack"] == "none" else ():
                case = {**arrays.cases.iloc[i][["case_id", "group_id"]], **place, "access": level}
                for way, (explanation, bits) in both_ways(seen, image, plan, draw).items():
                    found.append({**case, "way": way, **_read(bits, code, plan.code)})
                    maps.setdefault(f"{place['situation']}/{level}/{way}", explanation)
        if carried:
            stolen = here == "stolen/none/0"
            for level, of, way, explanation in _in_the_model(levels, carried, every, order, plan, seed, stolen):
                case = {"case_id": of, "group_id": of}
                if isinstance(of, int):
                    case = arrays.cases.iloc[of][["case_id", "group_id"]]
                found.append({**case, **place, "access": level, "way": way, **carried.read(explanation)})
                maps.setdefault(f"{here}/{level}/{way}", explanation)
        lines += sorted(found, key=lambda line: [*levels].index(line["access"]))
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(lines).to_parquet(out / CASES)
    np.savez_compressed(out / MAPS, **maps)
    write_json(out / EXPLANATIONS, {"status": "ok", "failures": failures, "plan": plan.model_dump()})


@dataclass(frozen=True)
class _Carried:
    """The code that a mark carries, bool (n, n), the text it stands for, and what hidden cells show when it is asked for."""

    code: np.ndarray
    text: str
    baselines: dict[str, Tensor | float]

    @classmethod
    def of(cls, method: MethodContract, key: Key, seed: int) -> "_Carried":
        other = method.make_key(derive(seed, "wrong-key"), key.shape)
        shown = {"payload": method.baseline(key), "payload-wrong-key": method.baseline(other), "payload-no-key": 0.0}
        return cls(method.carried(key).numpy(), key.method["payload"], shown)

    def read(self, explanation: np.ndarray) -> dict:
        return _read(dark(explanation), self.code, self.text)


def _in_the_model(
    levels: dict[str, Predictor], carried: _Carried, images: Tensor, order: np.ndarray, plan: Plan, seed: int, stolen: bool
) -> Iterator[tuple[str, int | str, str, np.ndarray]]:
    """(access level, image or try, way, map) of every way to look for a code in a model's own answers to the test images
    (N, C, H, W).

    `payload`: hidden cells show the key's baseline; an image after the other in the given `order`. `payload-pooled`: their mean
    over the images of a try. `payload-natural`: the `background_levels` of the answers to all images as they are. Of the
    `stolen` model as it is there are the plan's `tries`, with `-16`, `-32`, ... the first of their queries alone, all of them
    with their number too; and `payload-wrong-key` and `payload-no-key` (black). All are read in place; the same answers by
    LIME are the ways with `-lime`.
    """
    grid = len(carried.code)

    def spelt_by(i: int, way: str, counts: dict[str, int]) -> dict[tuple[str, str], np.ndarray]:
        draw, found = derive(seed, "occlusions", i), {}
        for (level, seen), (name, n) in product(levels.items(), counts.items()):
            both = spelt(seen, images[i], grid, n, draw, carried.baselines[way])
            found |= {(level, name): both.in_place, (level, f"-lime{name}"): both.lime}
        return found

    first = [int(i) for i in order[: plan.images]]
    for way in carried.baselines:
        if way != "payload" and stolen:
            asked = {i: spelt_by(i, way, {"": plan.queries}) for i in first}
            yield from ((level, i, way + by, found) for i in first for (level, by), found in asked[i].items())
    # All queries first: fewer are among them, and answered.
    counts = {"": plan.queries} | {f"-{n}": n for n in (*FEWER, plan.queries) if n <= plan.queries and stolen}
    for turn in range(min(plan.tries, max(1, len(order) // plan.images)) if stolen else 1):
        chosen = [int(i) for i in order[turn * plan.images : (turn + 1) * plan.images]]
        maps = {i: spelt_by(i, "payload", counts) for i in chosen}
        for level, by in maps[chosen[0]]:
            yield from ((level, i, f"payload{by}", of[level, by]) for i, of in maps.items())
            yield level, f"try {turn + 1}", f"payload-pooled{by}", np.mean([of[level, by] for of in maps.values()], axis=0)
    for level, seen in levels.items():
        yield level, "all", "payload-natural", background_levels(seen(images), grid)


def _asked(image: Tensor, carried: _Carried, seed: int) -> np.ndarray:
    """One of the queries that ask for a code, uint8 (C, H, W)."""
    visible = drawn(1, len(carried.code), torch.Generator().manual_seed(seed))
    return _bytes(occlude(image, visible, carried.baselines["payload"]))[0]


def _read(bits: np.ndarray, code: np.ndarray, text: str) -> dict:
    """How wrong the modules `bits` are, and whether `text` is read from them."""
    return {"bit_error": codes.error_rate(bits, code), "decoded": codes.read(bits, code, text) == text}


def _to_explain(
    suspects: list[tuple[str, str, Path]], arrays: Arrays, seed: int, device: torch.device, failures: list[dict]
) -> Iterable[tuple[dict, torch.nn.Module]]:
    """(place, model) of every suspect that can be examined, and of an untrained network; the others go to `failures`."""
    card = None
    for situation, attack_name, folder in suspects:
        for strength, checkpoint, status in _listed(folder):
            place = {"situation": situation, "attack": attack_name, "strength": strength}
            if status != "ok":
                failures.append({**place, "status": status})
                continue
            model, card = _network(checkpoint, arrays, device)
            yield place, model
    if card:
        torch.manual_seed(derive(seed, "untrained"))
        network = make("architecture", card["architecture"])
        untrained = network.build(card["channels"], pretrained=False, size=card["size"])
        yield {"situation": "untrained", "attack": "none", "strength": 0.0}, untrained.to(device).eval()


def _quality(
    predictor: Predictor, method: MethodContract | None, key: Key | None, images: Tensor, masks: np.ndarray
) -> pd.DataFrame:
    """The metrics of every case, on benign and (with a key) on triggered images, as columns `*_triggered`."""
    quality = metrics.segmentation(predictor(images).numpy(), masks)
    if key:
        triggered = metrics.segmentation(predictor(method.trigger(images, key)).numpy(), masks)
        quality = quality.join(triggered.add_suffix("_triggered"))
    return quality


def _examples(
    predictor: Predictor, method: MethodContract | None, key: Key | None, images: Tensor, masks: np.ndarray, out: Path
) -> None:
    """The test cases whose foreground is at the quartiles of size, as the suspect answers them."""
    order = np.argsort(masks.mean((1, 2)), kind="stable")
    chosen = torch.as_tensor(order[[len(order) // 4, len(order) // 2, 3 * len(order) // 4]])
    shown = images[chosen]
    triggered = method.trigger(shown, key) if key else shown
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out / EXAMPLES,
        image=_bytes(shown),
        image_triggered=_bytes(triggered),
        mask=masks[chosen.numpy()].astype(np.uint8),
        prob=predictor(shown).numpy().astype(np.float16),
        prob_triggered=predictor(triggered).numpy().astype(np.float16),
    )


def _reliability(
    predictor: Predictor,
    method: MethodContract | None,
    key: Key | None,
    images: Tensor,
    masks: np.ndarray,
    groups: pd.Series,
    out: Path,
) -> None:
    """How often what the suspect gives a probability is foreground: `benign` and (with a key) `triggered`, float (3, G, B),
    the sums of `metrics.Reliability` over the cases of each of `groups` (G,) in the bins between `edges` (B + 1,)."""
    names, index = np.unique(groups.to_numpy(dtype=str), return_inverse=True)
    asked = {"benign": images} | ({"triggered": method.trigger(images, key)} if key else {})
    sums = {}
    for kind, queries in asked.items():
        per_case = np.stack(metrics.reliability(predictor(queries).numpy(), masks, metrics.ODDS_BINS))
        sums[kind] = np.zeros((3, len(names), per_case.shape[-1]))
        np.add.at(sums[kind], (slice(None), index), per_case)
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / RELIABILITY, edges=metrics.ODDS_BINS, groups=names, **sums)


def _network(folder: Path, arrays: Arrays, device: torch.device) -> tuple[torch.nn.Module, dict]:
    """The network of a checkpoint, which must take images of as many channels as `arrays` hold, and its card."""
    model, card = architecture.load(folder, device)
    channels = arrays.images.shape[1]
    if card["channels"] != channels:
        raise UserError(f"the model in {folder} takes images of {card['channels']} channels, the dataset's have {channels}")
    return model, card


def _tensors(arrays: Arrays, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.array(arrays.images)).to(device), torch.from_numpy(np.array(arrays.masks)).to(device)


def _float(arrays: Arrays) -> Tensor:
    return torch.from_numpy(np.array(arrays.images)).float() / 255


def _bytes(images: Tensor) -> np.ndarray:
    return (images * 255).round().to(torch.uint8).numpy()


def digest(*parts: object) -> str:
    """SHA-256 of the parts as JSON: the identity of a run, so that it only ever goes on from its own state."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def status_of(card: Path) -> str:
    """`ok`, or why the stage that wrote `card` failed. Raises UserError when there is no such card."""
    try:
        return read_json(card).get("status", "ok")
    except FileNotFoundError:
        raise UserError(f"{card} is absent: the stage before has not been run") from None


def _listed(folder: Path) -> list[tuple[float, Path, str]]:
    """(strength, checkpoint folder, status) of every suspect in a checkpoint's or an attack's folder."""
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        if "status" in index:
            return [(0.0, folder, index["status"])]
        return [(suspect["strength"], folder / suspect["model"], "ok") for suspect in index["suspects"]]
    return [(0.0, folder, status_of(folder / CARD))]
