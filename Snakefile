# assets -> calibrate -> allocate -> apply -> (recover) -> evaluate -> report, for every cell of a grid.
# The grid is config/grids/demo.yaml; for another one: snakemake --config grid=config/grids/NAME.yaml
import subprocess

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"
include: "workflow/rules/assets.smk"
include: "workflow/rules/preflight.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/grams.smk"
include: "workflow/rules/allocate.smk"
include: "workflow/rules/apply.smk"
include: "workflow/rules/recover.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/site.smk"


# The whole grid. The cells' files are named too, so that a deleted one is noticed.
rule all:
    default_target: True
    input:
        [LAYOUT.calibration(name).preflight for name in GRID.models],
        REPORT.all,
        CELL_FILES,
        CUT_FILES,
    localrule: True
    message:
        "whole grid {EXPERIMENT.file}"


# Only what has to be fetched, e.g. on a node that has a network.
rule assets:
    input:
        [LAYOUT.model(name).manifest for name in GRID.models],
        [LAYOUT.text(name).manifest for name in GRID.all_texts],
        [TASKS_DIR.manifest] if TASKS_DIR else [],
    localrule: True


onstart:
    begin()


onsuccess:
    if REPORT.page.exists():
        print(f"Done. The report is {REPORT.page}")
        subprocess.run(["ffp", "cost", "--config", str(EXPERIMENT.file)], check=False)


onerror:
    print("\nThese jobs failed:", *failures(log), sep="\n")
    print("Finished cells are kept: run the command again to go on.")
    given = ["--config", EXPERIMENT.file]
    print(f"So far: {shell_line(['ffp', 'status', *given])}")
    print(f"        {shell_line(['ffp', 'report', *given, '--out', REPORT.folder])}")
