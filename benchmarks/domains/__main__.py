"""The domain table: what adapting gains on a domain, and what it costs on general speech.

python -m benchmarks.domains --speech SPEECH --model fundamental --nemo-python NEMO_ENVIRONMENT/bin/python
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.domains.plan import METHODS, Plan, chosen_grid, chosen_rates
from overtone.errors import OvertoneError, UsageError

DOMAIN_NAMES = ("prompts", "digits", "wakewords")
SMOKE_PLAN = Plan(steps=2, batch_size=4, validations=1, dim=4, threads=1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.domains", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--speech", type=Path, help="the folder of all corpora")
    made.add_argument("--model", default="fundamental", help="the base: a name, a .nemo file or a model folder")
    made.add_argument("--nemo-python", type=Path, help="the Python of an environment with NeMo 3.0.0")
    made.add_argument(
        "--domains", type=names, default=DOMAIN_NAMES, help="comma-separated, of " + ",".join(DOMAIN_NAMES)
    )
    made.add_argument("--methods", type=names, default=tuple(METHODS), help="comma-separated, of " + ",".join(METHODS))
    made.add_argument("--output", type=Path, default=Path("outputs/domains"), help="where everything goes")
    made.add_argument("--resume", action="store_true", help="go on; finished cells are not repeated")
    made.add_argument("--page", type=Path, help="also write the page here, the plot beside it")
    made.add_argument("--tune", action="store_true", help="choose learning rates on the validation parts instead")
    made.add_argument("--sweep", action="store_true", help="compare defaults on the validation parts instead")
    made.add_argument("--rates", nargs="+", metavar="METHOD=RATE", help="learning rates instead of the chosen ones")
    made.add_argument("--grid", nargs="+", metavar="METHOD=RATE,RATE", help="what --tune tries")
    made.add_argument("--smoke", action="store_true", help="a tiny model and noise: only to see that it runs")
    for name, value in Plan().described().items():
        made.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"instead of {value}")
    return made


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def main(words: Sequence[str] | None = None) -> int:
    """0; 1 where an adapter that is off is not the base; 2 for a usage or data error."""
    arguments = parser().parse_args(words)
    try:
        return run(arguments)
    except OvertoneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    plan = plan_of(arguments)
    import torch

    from benchmarks.domains import table, trials
    from benchmarks.harness import print_machine

    torch.set_num_threads(plan.threads)
    print_machine()
    job = job_of(arguments, plan)
    if arguments.tune:
        found = trials.tune(job, chosen_grid(arguments.grid))
        write(job.output / "tuning.json", found)
        print(trials.tuning_section(found))
        return 0
    if arguments.sweep:
        found = trials.sweep(job)
        write(job.output / "sweep.json", found)
        print(trials.sweep_section(found))
        return 0
    results = table.run_table(job)
    write_results(results, job.output, arguments.page)
    if not table.all_intact(results):
        print("An adapter that is off is NOT the base; see the page.", file=sys.stderr)
        return 1
    return 0


def plan_of(arguments: argparse.Namespace) -> Plan:
    given = {name: getattr(arguments, name) for name in Plan().described() if getattr(arguments, name) is not None}
    for name, value in given.items():
        if value < (0 if name == "seed" else 1):
            raise UsageError(f"--{name.replace('_', '-')} is {value}; at least {0 if name == 'seed' else 1} is needed.")
    return replace(SMOKE_PLAN if arguments.smoke else Plan(), **given)


def job_of(arguments: argparse.Namespace, plan: Plan) -> Any:
    from benchmarks.domains import smoke
    from benchmarks.domains.table import Job

    base, speech = arguments.model, arguments.speech
    if arguments.smoke:
        base = str(smoke.write_base(arguments.output / "smoke"))
        speech = smoke.write_speech(arguments.output / "smoke" / "speech")
    if speech is None:
        raise UsageError("--speech is missing: the folder that holds asterisk_prompts, fsdd, …; or try --smoke.")
    check_names("--domains", arguments.domains, DOMAIN_NAMES)
    check_names("--methods", arguments.methods, METHODS)
    tuned = read_json(arguments.output / "tuning.json")
    return Job(
        base=base,
        speech=speech,
        output=arguments.output,
        domains=arguments.domains,
        methods=with_or_without_nemo(arguments.methods, arguments.nemo_python),
        plan=plan,
        rates=chosen_rates(arguments.rates, tuned["rates"] if tuned else {}),
        nemo_python=arguments.nemo_python,
        resume=arguments.resume,
    )


def check_names(option: str, given: Sequence[str], known: Any) -> None:
    unknown = [name for name in given if name not in known]
    if unknown or not given:
        raise UsageError(f"{option}: unknown '{','.join(unknown)}'. Known are {', '.join(known)}.")


def with_or_without_nemo(methods: Sequence[str], python: Path | None) -> tuple[str, ...]:
    """The methods, NeMo's left out with a loud word where it is absent."""
    if "nemo" not in methods or (python is not None and python.exists()):
        return tuple(methods)
    print("NOT COMPARED with NeMo: --nemo-python names no Python of an environment with nemo_toolkit[asr]==3.0.0.")
    return tuple(name for name in methods if name != "nemo")


def write_results(results: dict[str, Any], output: Path, page_path: Path | None) -> None:
    """results.json, the page and the plot; tuning and sweep come along where they lie in the same folder."""
    from benchmarks.domains.page import PLOT, page
    from benchmarks.domains.plot import forgetting_plot
    from benchmarks.domains.trials import sweep_section, tuning_section

    write(output / "results.json", results)
    sections = [
        told(found)
        for name, told in (("tuning.json", tuning_section), ("sweep.json", sweep_section))
        if (found := read_json(output / name)) is not None
    ]
    tuned = (read_json(output / "tuning.json") or {"rates": {}})["rates"]
    for path in dict.fromkeys((output / "DOMAINS.md", page_path or output / "DOMAINS.md")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(results, sections, tuned), "utf-8")
        path.with_name(PLOT).write_text(forgetting_plot(results), "utf-8")
        print(f"Written: {path} and {PLOT} beside it")


def write(path: Path, content: Any) -> None:
    from benchmarks.domains.cells import write_json

    write_json(path, content, indent=1)
    print(f"Written: {path}")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
