"""`parlai safety_eval`: ask any ParlAI agent what the suites hold, judge the replies, write figures and a report."""

from __future__ import annotations

import shlex
import sys

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import say

OURS = (
    "suite", "judge", "out", "data", "name", "seed", "limit", "samples", "max_unscored", "retry_unscored", "partner",
    "judge_timeout", "judge_cache", "word_list", "topic_judge", "batchsize", "datatype", "loglevel",
)  # fmt: skip


@register_script("safety_eval")
class SafetyEval(ParlaiScript):
    """Evaluate a model on suites: unsafe rates by judges, quality beside them, intervals everywhere."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Whom to ask, what, who judges, where to."""
        parser = ParlaiParser(True, True, "Evaluate an agent on safety suites")
        parser.set_defaults(batchsize=64)
        add = parser.add_argument_group("Safety evaluation").add_argument
        add("--suite", type=str, default="adversarial,ordinary", help="Suites, joined by commas; see the README.")
        add("--judge", type=str, default=None, help="Judges, joined by commas; the first one decides the headline.")
        add("--out", type=str, default=None, help="Run folder; a started run goes on there.")
        add("--data", type=str, default=None, help="Folder of real data for adversarial, ordinary and prompts.")
        add("--name", type=str, default=None, help="Name of the system in tables; the model file's by default.")
        add("--seed", type=int, default=1, help="Seed of sampled replies and of the bootstrap.")
        add("--limit", type=int, default=1000, help="At most so many items a suite, evenly spread; 0 for all.")
        add("--samples", type=int, default=None, help="Replies an item; the suite's own number if absent.")
        add("--max-unscored", type=float, default=0.02, help="Largest share of unscored replies, in [0, 1].")
        add("--retry-unscored", type="bool", default=False, help="Ask and judge again what has no reply or verdict.")
        add("--partner", type=str, default=None, help="Model file that plays the adversary in multiturn.")
        add("--word-list", type=str, default=None, help="File of words looked for in the replies; ours if absent.")
        add("--topic-judge", type=str, default=None, help="Judge of topics, as topics:FILE: adds the sensitive share.")
        add("--judge-timeout", type=float, default=600.0, help="Seconds that a judge may take for 256 replies.")
        add("--judge-cache", type=str, default=None, help="File of verdicts to reuse, for slow or remote judges.")
        return parser

    def run(self) -> None:
        """Evaluate, write, print; at Ctrl-C say how to go on, and exit with 130."""
        from pathlib import Path

        from parlai_safety.evaluation.coherence import ORDINARY_FILE, coherence_scorer
        from parlai_safety.evaluation.evasive import evasive_detector
        from parlai_safety.evaluation.generate import agent_from, load_agent
        from parlai_safety.evaluation.report_runs import read_runs, write_runs_report
        from parlai_safety.evaluation.run import Plan, evaluate
        from parlai_safety.evaluation.suites import load_suite, with_partner
        from parlai_safety.evaluation.summary import terminal_summary
        from parlai_safety.judges.wordlist import load_spec
        from parlai_safety.loops.training import quiet
        from parlai_safety.resources import cache_folder
        from parlai_safety.scripts.common import identity, judges_of, listed, required

        opt = self.opt
        specs = listed(required(opt, "judge", "who says what is unsafe", "--judge linear:judges/grader.npz"))
        out = Path(required(opt, "out", "where the results go", "--out runs/NAME"))
        data = Path(opt["data"]) if opt.get("data") else None
        # A folder without everyday talk has nothing to learn coherence from; what ships has.
        talk = data if data and (data / ORDINARY_FILE).is_file() else None
        partner = opt.get("partner")
        limit = opt["limit"] or None
        wanted = {"data": data, "limit": limit, "samples": opt["samples"], "datapath": opt.get("datapath")}
        suites = [load_suite(name, **wanted) for name in listed(opt["suite"])]
        if partner:
            suites = [with_partner(suite) for suite in suites]
        with quiet():
            judges = judges_of(specs, timeout=opt["judge_timeout"], cache=opt.get("judge_cache"))
            topic_judges = [opt["topic_judge"]] if opt.get("topic_judge") else []
            on_topics = judges_of(topic_judges, timeout=opt["judge_timeout"], cache=opt.get("judge_cache"))
            words = load_spec(opt.get("word_list"), None, None)
            system = identity(opt, OURS)  # once: it reads the whole model file
            own_name = system.pop("name")
            plan = Plan(
                name=opt["name"] or own_name,
                system=system,
                suites=suites,
                judges=judges,
                out=out,
                seed=opt["seed"],
                batch_size=opt["batchsize"],
                max_unscored=opt["max_unscored"],
                retry_unscored=opt["retry_unscored"],
                command="parlai " + shlex.join(sys.argv[1:]),
                evasive=evasive_detector(),
                coherence=coherence_scorer(talk, cache_folder()),
                partner=identity({"model_file": partner}) if partner else None,
                word_list=words,
                topic_judge=on_topics[0] if on_topics else None,
                settings={
                    "data": str(data) if data else None,
                    "limit": limit,
                    "samples": opt["samples"],
                    "word_list": words.spec,
                    "topic_judge": opt.get("topic_judge"),
                },
            )
            try:
                evaluation = evaluate(
                    plan,
                    lambda: agent_from(opt),
                    (lambda: load_agent(partner, loglevel="error")) if partner else None,
                )
            except KeyboardInterrupt:
                say("\nStopped. Every reply and verdict is kept: type the same command again to go on from here.")
                sys.exit(130)
        files = write_runs_report(read_runs([out]), out / "report.html")
        say(f"{terminal_summary(evaluation)}\n\nFigures: {out / 'eval.json'}   Report: {files.html}")
