# assets -> calibrate -> allocate -> apply -> evaluate -> report, for every cell of a grid.
# The grid is config/grids/demo.yaml; another one: snakemake --config grid=config/NAME.yaml
from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"
include: "workflow/rules/assets.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/allocate.smk"
include: "workflow/rules/apply.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


# The whole grid: tables, plots and the page that shows them. The cells are named too, so that a deleted one is noticed.
rule all:
    default_target: True
    input:
        INDEX,
        CELL_FILES,
    localrule: True


# Only what has to be fetched, e.g. on a node that has a network.
rule assets:
    input:
        expand(MODEL, model=GRID.models),
        TEXT_ASSET,
        TASKS_ASSET,
    localrule: True


onstart:
    cluster.check(workflow.executor_plugin.name)
    locks.hold()


onsuccess:
    if os.path.exists(INDEX):
        print(f"Done. The report is at {INDEX}")


onerror:
    print("Failed. The messages above name the rule and its log; finished cells are kept: run the command again.")
    print(
        f"What is there so far: ffp status --config {EXPERIMENT.file}; ffp report --config {EXPERIMENT.file} --out {REPORT}"
    )
