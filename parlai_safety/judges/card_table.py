"""A judge's card as text: tables for a terminal, or Markdown for a file.

It measures nothing. Left out are the identity groups one by one, which stand in the card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "n/a"
_QUALITY = (
    "replies", "n", "unsafe", "AUC", "F1 of unsafe", "precision", "sensitivity", "specificity", "ordinary talk flagged",
)  # fmt: skip


def card_text(card: Mapping[str, Any], *, markdown: bool = False) -> str:
    """Everything that a reader of a terminal wants to know of a card.

    Args:
        card: as `make_card` made it.
        markdown: Markdown instead of plain text.

    Returns:
        Several paragraphs and tables; intervals are of 95 %, and clustered by conversation.
    """
    measured, trained = card["measured_on"], card["trained_on"] or {}
    lines = [
        ("judge", card["judge"]),
        ("fingerprint", card["fingerprint"]),
        ("threshold", f"{card['threshold']:.4f}"),
        ("trained on", _training(trained)),
        ("measured on", f"{measured['name']}, n {measured['n']}"),
        *((f"  {name}" if not markdown else name, f"SHA-256 {digest}") for name, digest in measured["files"].items()),
        ("left out", f"{measured['left_out_as_seen_in_training']} examples, as seen in training"),
        ("unscored", f"{card['unscored']} of {measured['n']}"),
    ]
    width = max(len(name) for name, _ in lines)
    start, text = ("- ", "{}: {}") if markdown else ("", "{:<" + str(width) + "}  {}")
    blocks = ["\n".join(start + text.format(name, value) for name, value in lines), _qualities(card, markdown)]
    blocks += [
        _topics(card, markdown),
        _agreement(card, markdown),
        _thresholds(card, markdown),
        _calibration(card, markdown),
    ]
    blocks += [_groups(card, markdown), _judges_agree(card)]
    if card["warnings"]:
        blocks.append(
            "\n".join(["Be careful:", *([""] if markdown else []), *(f"- {one}" for one in card["warnings"])])
        )
    return "\n\n".join(block for block in blocks if block)


def _qualities(card: Mapping[str, Any], markdown: bool) -> str:
    rows = [_quality("all", card["quality"]), _quality("labelled bot turns", card["quality_labelled_bot_turns"])]
    for key, name in (("speaker", "speaker"), ("source", "source"), ("turn", "turns before")):
        rows += [_quality(f"{name}: {value}", quality) for value, quality in card[f"quality_by_{key}"].items()]
    return _table(_QUALITY, rows, markdown)


def _quality(name: str, quality: Mapping[str, Any]) -> list[str]:
    return [
        name,
        str(quality["n"]),
        str(quality["unsafe"]),
        _figure(quality["auc"], quality["auc_interval"]),
        # Cards of earlier versions hold neither F1 nor precision.
        _figure(quality.get("f1"), quality.get("f1_interval")),
        _share(quality.get("precision"), quality.get("precision_interval")),
        _share(quality["sensitivity"], quality["sensitivity_interval"]),
        _share(quality["specificity"], quality["specificity_interval"]),
        _share(quality["ordinary_false_positive_rate"], quality["ordinary_false_positive_interval"]),
    ]


def _topics(card: Mapping[str, Any], markdown: bool) -> str:
    """The figures by class of a judge of topics; nothing for other judges."""
    blocks = []
    for key, words in (("topics", "held out"), ("topics_cross_validated", "cross-validated on the training part")):
        if key not in card:
            continue
        found = card[key]
        rows = [
            [
                name,
                str(one["n"]),
                _figure(one["f1"], one["f1_interval"]),
                _share(one["precision"]),
                _share(one["recall"]),
            ]
            for name, one in found["by_class"].items()
        ]
        blocks.append(
            f"The most probable class, {words}: accuracy {found['accuracy']:.3f}, mean F1 {found['macro_f1']:.3f}, n "
            f"{found['n']}\n\n" + _table(("class", "n", "F1", "precision", "recall"), rows, markdown)
        )
    if "topics" in card:
        names = list(card["topics"]["by_class"])
        rows = [[true, *(str(row[name]) for name in names)] for true, row in card["topics"]["confusion"].items()]
        blocks.append(_table(("held out: is, is called", *names), rows, markdown))
    return "\n\n".join(blocks)


def _thresholds(card: Mapping[str, Any], markdown: bool) -> str:
    rows = []
    for rate, found in card["thresholds"].items():
        if found is None:
            rows.append([rate, *[MISSING] * 5])
            continue
        bot = found["labelled_bot_turns"]
        shares = [found["sensitivity"], found["specificity"], bot["sensitivity"], bot["specificity"]]
        rows.append([rate, f"{found['threshold']:.4f}", *map(_share, shares)])
    headers = ("ordinary talk flagged", "threshold", "sensitivity", "specificity")
    return _table((*headers, "sensitivity, labelled bot turns", "specificity, labelled bot turns"), rows, markdown)


def _calibration(card: Mapping[str, Any], markdown: bool) -> str:
    found = card["calibration"]
    if found is None:
        return ""
    rows = [[f"{b['mean_p_unsafe']:.3f}", f"{b['share_unsafe']:.3f}", str(b["n"])] for b in found["bins"]]
    table = _table(("mean p_unsafe", "share unsafe", "n"), rows, markdown)
    return (
        f"Calibration: expected error {found['expected_calibration_error']:.3f}, Brier score {found['brier']:.3f}, "
        f"{_share(found['share_unsafe'])} of the {found['n']} scored examples are unsafe\n\n{table}"
    )


def _groups(card: Mapping[str, Any], markdown: bool) -> str:
    groups = card["quality_by_group"]
    if groups is None:
        return ""
    axes: dict[str, list[Mapping[str, Any]]] = {}
    for quality in groups.values():
        axes.setdefault(quality["axis"], []).append(quality)
    rows = [
        [
            axis,
            str(len(members)),
            _share(_mean([None if q["specificity"] is None else 1 - q["specificity"] for q in members])),
            _share(_mean([q["sensitivity"] for q in members])),
        ]
        for axis, members in axes.items()
    ]
    sentences = []
    for kind, gap in card["group_gaps"].items():
        if gap is None:
            sentences.append(f"Largest gap on {kind} sentences: {MISSING}.")
        elif not gap["difference"]:
            sentences.append(f"No gap on {kind} sentences: {gap['groups']} groups are treated alike.")
        else:
            points = [f"{100 * gap[key]:.0f}" for key in ("difference", "low", "high", "by_chance_95")]
            sentences.append(
                f"Largest gap on {kind} sentences: {gap['highest']} over {gap['lowest']}, {points[0]} points "
                f"[{points[1]}, {points[2]}], {gap['templates']} templates, {gap['groups']} groups; shuffled groups "
                f"stay at or below {points[3]} in 95 % of the draws ({p_words(gap['p'])})."
            )
    table = _table(
        ("identity probes: axis", "groups", "kind sentences flagged", "rude sentences found"), rows, markdown
    )
    return table + "\n\n" + "\n".join(("- " if markdown else "") + sentence for sentence in sentences)


def _agreement(card: Mapping[str, Any], markdown: bool) -> str:
    found = card.get("agreement_with_perspective")
    if not found:
        return ""
    names = ("spearman", "mae", "mae_of_the_mean", "auc")
    rows = [
        [part, str(one["n"]), str(one["toxic"]), str(one["flagged"]), *(_estimate(one[name]) for name in names)]
        for part, one in found.items()
    ]
    headers = (
        "agreement with Perspective",
        "n",
        "n at 0.5 or more",
        "of the scorer",
        "Spearman",
        "mean absolute error",
    )
    return _table((*headers, "error of the mean score", "AUC at 0.5"), rows, markdown)


def _judges_agree(card: Mapping[str, Any]) -> str:
    found = card.get("agreement_with_other_judge_labelled_bot_turns")
    if not found:
        return ""
    figures = ", ".join(f"{k} {MISSING if found[k] is None else f'{found[k]:.3f}'}" for k in ("spearman", "kappa"))
    return f"Agreement with the other judge on labelled bot turns: {figures}, n {found['n']}"


def p_words(p: float) -> str:
    """A p-value as words: "p 0.042", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def _training(trained: Mapping[str, Any]) -> str:
    if not trained:
        return "not known"
    words = [str(trained["name"])] if "name" in trained else []
    words += [f"{key} {trained[key]}" for key in ("examples", "unsafe", "toxic", "seed") if key in trained]
    return ", ".join(words) or "see the card"


def _estimate(found: Mapping[str, float] | None) -> str:
    return MISSING if found is None else f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _figure(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.3f}" + ("" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]")


def _share(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return MISSING
    ends = "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return f"{100 * value:.1f} %{ends}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> str:
    from tabulate import tabulate

    # Everything is text already: tabulate must not read "0.50" as a number of its own format.
    return str(tabulate(rows, headers, tablefmt="pipe" if markdown else "simple", disable_numparse=True))
