"""The sentences of a certificate, made from its facts and from nothing else."""

import math
from collections import Counter
from datetime import datetime
from typing import Literal

import numpy as np

from stealthmark.certificate_facts import AS_WELL, Facts, Part
from stealthmark.evidence import conformal_p
from stealthmark.layout import NEVER_MARKED
from stealthmark.pages import many, p_text

#: What an access level shows, in words; every other level is its own name.
ACCESS = {"label": "label map only"}
#: What the claimant says to have done with the method, by the method's kind.
DEEDS = {
    "embedded": "was made from a model that {claimant} marked with the method {method}",
    "fingerprint": "was made from a model of which {claimant} took a fingerprint with the method {method}",
    "control": "was made from a model that {claimant} trained with the control {method}, which leaves no mark",
}
UNDATED = "no date is proven; the file’s own date proves nothing"


class Reason(Part):
    """A condition of the verdict and whether it is met; `open`: it cannot be judged from here."""

    state: Literal["met", "not met", "open"]
    text: str


def access_name(access: str) -> str:
    return ACCESS.get(access, access)


def claim(facts: Facts) -> str:
    """What the claimant claims."""
    deed = DEEDS[facts.method.kind].format(claimant=facts.claimant, method=facts.method.name)
    return f"{facts.claimant} claims that the model “{facts.suspect.name}” {deed}."


def heading(facts: Facts) -> str:
    """The verdict alone. Of a suspect that does not even do the task, "not shown" would say too much."""
    if facts.verdict == "shown" or facts.does_the_task:
        return f"Ownership is {facts.verdict}"
    return (
        f"Ownership is {facts.verdict}; the suspect does not do this task as described: check scale, normalisation, class order"
    )


def task_sentence(facts: Facts) -> str:
    """Why the suspect does not do the task as described; empty where it does."""
    said = ""
    if facts.looks_like_probabilities:
        said += (
            "All of its logits lie between -1 and 1, as probabilities do: if they are some, ask with the access level "
            "probabilities. "
        )
    if facts.segments_badly:
        said += f"Its Dice on ordinary images is {facts.task.dice:.2f}{_usual(facts)}. "
    return said


def _usual(facts: Facts) -> str:
    usual = []
    if facts.nulls_dice is not None:
        usual.append(f"the median of the null models {facts.nulls_dice:.2f}")
    if facts.task.own is not None:
        usual.append(f"that of the owner’s model {facts.task.own:.2f}")
    return "".join(f", {text}" for text in usual)


def summary(facts: Facts) -> str:
    """The verdict in one sentence, with p and the pool's size; before it, that the suspect does not do the task."""
    task = "" if facts.verdict == "shown" else task_sentence(facts)
    if facts.p_model is None:
        return f"{task}There is no null model to compare “{facts.suspect.name}” with, so there is no p-value."
    n, p = len(facts.nulls), p_text(facts.p_model)
    above = f"all {n} null models" if not facts.at_or_above else f"{n - facts.at_or_above} of {n} null models"
    least = ", the smallest that this pool allows" if not facts.at_or_above else ""
    if facts.verdict == "shown":
        end = "." if facts.commitment.stamp else ". Open: whether the key was fixed before the suspect was seen."
    elif facts.p_model > facts.alpha:
        end = f"{', but' if least else ', which is'} above the level of {facts.alpha:g}."
    else:
        end = ", but not every condition is met."
    return f"{task}Asked with the trigger, “{facts.suspect.name}” scores above {above}: p = {p}{least}{end}"


def reasons(facts: Facts) -> tuple[Reason, ...]:
    """The conditions of the verdict, each with whether it is met. It is "shown" where none is "not met"."""
    return _among_models(facts), _inside(facts), _committed(facts)


def _among_models(facts: Facts) -> Reason:
    if facts.p_model is None:
        return Reason(state="not met", text="No null model was asked, so the suspect has no rank and no p-value.")
    n, k = len(facts.nulls), facts.at_or_above
    rank = "none scores" if k == 0 else f"{k} score{'s' if k == 1 else ''}"
    text = f"Of {many(n, 'null model')}, {rank} as high as the suspect: p = {p_text(facts.p_model)}"
    if facts.p_model <= facts.alpha:
        return Reason(state="met", text=f"{text}, not above the level of {facts.alpha:g}.")
    text += f", above the level of {facts.alpha:g}."
    if 1 / (1 + n) > facts.alpha:
        needed = math.ceil(round(1 / facts.alpha, 9)) - 1
        text += f" The pool is too small for that level: it takes at least {many(needed, 'null model')}."
    return Reason(state="not met", text=text)


def _inside(facts: Facts) -> Reason:
    raises = f"raise the share of queries called marked by more than {100 * facts.margin:g} percentage points"
    if facts.p_inside is None:
        return Reason(state="not met", text=f"It was not tested whether, inside the suspect, the trigger does {raises}.")
    test = f"one-sided test over {many(facts.queries.patients, 'patient')}: p {p_text(facts.p_inside, '= ')}"
    if facts.p_inside <= facts.alpha:
        return Reason(state="met", text=f"Inside the suspect, the trigger does {raises} ({test}).")
    text = f"Inside the suspect, the trigger is not shown to {raises} ({test}, above the level of {facts.alpha:g})."
    return Reason(state="not met", text=text)


def _committed(facts: Facts) -> Reason:
    published, stamp = facts.commitment.published, facts.commitment.stamp
    agrees = f"The key’s commitment agrees with the one in “{published}”" if published else ""
    if stamp:
        dated = f"existed on {_date(stamp.time)}, as the time-stamping authority “{stamp.authority}” has signed (RFC 3161)"
        text = f"{agrees}, which {dated}." if agrees else f"The key’s commitment {dated}."
        return Reason(state="met", text=text)
    if agrees:
        return Reason(state="open", text=f"{agrees}, but {UNDATED}.")
    return Reason(state="open", text=f"The key’s commitment was compared with none published earlier, and {UNDATED}.")


def _date(time: datetime) -> str:
    return f"{time.day} {time:%B %Y, %H:%M %Z}"


def warnings(facts: Facts) -> tuple[str, ...]:
    """What makes the null models unfit for the suspect, as far as it is known; and that a suspect that is shown to be owned
    does not seem to do the task."""
    said = []
    if facts.verdict == "shown" and not facts.does_the_task:
        said.append(task_sentence(facts).strip())
    if facts.task.dice is not None and facts.nulls_dice is not None and facts.task.dice - facts.nulls_dice > AS_WELL:
        said.append(
            f"The null models segment worse than the suspect: their median Dice is {facts.nulls_dice:.2f}, the suspect’s is "
            f"{facts.task.dice:.2f}. They were not trained as it was, so that p may be too small."
        )
    if trained := sum(null.share == "owner" for null in facts.nulls):
        said.append(
            f"{trained} of {many(len(facts.nulls), 'null model')} were trained on the owner’s cases, as the notes of their "
            "runs say. An independent suspect was not, so that they do not stand for it."
        )
    return tuple(said)


def limits(facts: Facts) -> tuple[str, ...]:
    """What the numbers rest on and what they do not show, one point each."""
    return (*_limits_of_p(facts), *_limits_of_the_pool(facts), *_limits_of_the_key(facts), *_limits_of_the_suspect(facts))


def _limits_of_p(facts: Facts) -> list[str]:
    if not facts.nulls:
        return [
            "Without null models nobody can say how often a model that has nothing to do with the owner’s would answer "
            "like this: no p-value can be given, not even a smallest one.",
        ]
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(null.kind for null in facts.nulls).items())
    return [
        f"p is valid only if the suspect, were it independent of the owner’s model, would be exchangeable with the null "
        f"models: of the same task, and trained as they were. The pool: {kinds}.",
        f"The smallest p that {many(len(facts.nulls), 'null model')} allow{'s' * (len(facts.nulls) == 1)} is "
        f"{p_text(1 / (1 + len(facts.nulls)))}. A smaller one would take a larger pool.",
        "p bounds how often an independent model would rank as high as the suspect. It is not the probability that the "
        "suspect is independent.",
        *_without_the_marked(facts),
    ]


def _without_the_marked(facts: Facts) -> list[str]:
    """p among the null models that were never marked, where others are in the pool too."""
    unmarked = [null.score for null in facts.nulls if null.kind == NEVER_MARKED]
    if len(unmarked) in (0, len(facts.nulls)):
        return []
    p = p_text(conformal_p(facts.scores.triggered, np.array(unmarked)))
    return [f"Among the {many(len(unmarked), 'null model')} that were never marked, without the others, p is {p}."]


def _limits_of_the_pool(facts: Facts) -> list[str]:
    n, limits = len(facts.nulls), []
    if unknown := sum(null.share is None for null in facts.nulls):
        limits.append(f"Whose cases {unknown} of {many(n, 'null model')} were trained on is not known.")
    if unnamed := sum(null.sha256 is None for null in facts.nulls):
        limits.append(f"{unnamed} of {many(n, 'null model')} have no SHA-256 here, so nothing fixes which models these were.")
    return limits


def _limits_of_the_key(facts: Facts) -> list[str]:
    if facts.commitment.stamp:
        date = (
            "The time stamp proves that the key was fixed by then, for whoever trusts the authority. Whether the suspect was "
            "there earlier is for other documents to prove."
        )
    else:
        date = (
            "A key that was made to fit the suspect is not excluded: a commitment without a time stamp may be younger than the "
            "suspect. When it was made must be proven outside this file."
        )
    return [
        date,
        "The p-values are those of one key and one trigger. Others that were tried on this suspect must be reported with "
        "it, and the p-values adjusted for their number (Holm).",
        _signed(facts),
    ]


def _signed(facts: Facts) -> str:
    if not facts.signatures:
        return "The claimant’s name is as given, and the file is not signed."
    roles = " and ".join(dict.fromkeys(signature.role for signature in facts.signatures))
    return (
        f"The names are as given. The facts are signed by the {roles}; whose the public keys are must be known from elsewhere, "
        "by their digits."
    )


def _limits_of_the_suspect(facts: Facts) -> list[str]:
    limits = []
    if facts.access == "label":
        limits.append(
            "The suspect was seen through its label maps only. A mark in the probabilities leaves next to nothing there, "
            "so that little can be concluded from not finding it."
        )
    else:
        limits.append(
            f"The result holds for what the suspect showed ({access_name(facts.access)}), not for an interface that shows less."
        )
    if facts.suspect.kind == "http":
        limits.append("A service was asked. Nothing fixes which model answered, or that the same one answers tomorrow.")
    elif facts.suspect.kind in ("function", "network"):
        limits.append("A model inside of a running program was asked. Nothing fixes which one it was.")
    elif facts.suspect.sha256 is None:
        limits.append("The suspect’s file has no SHA-256 here, so nothing fixes which file was examined.")
    if facts.payload:
        limits.append(
            "The code is no part of the verdict. It is evidence only as far as independent models, asked in the same "
            "way, do not show it; about half of the modules are right by chance."
        )
    if facts.task.dice is None:
        limits.append("The suspect was not asked with ordinary images, so whether it does this task was not measured.")
    if facts.verdict == "not shown" and not facts.does_the_task:
        limits.append(
            "A suspect that was asked in a way that it does not understand tells nothing, for the claim or against it."
        )
    elif facts.verdict == "not shown":
        limits.append("Not shown does not mean independent: a copy whose mark was removed would answer in the same way.")
    limits.append("It is not proven who copied the owner’s model, when, or how; only how the suspect answers.")
    return limits
