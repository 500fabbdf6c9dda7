# Perplexity and zero-shot tasks of one cell, on texts that no earlier step has seen.


rule evaluate:
    input:
        model=MODEL.manifest,
        text=TEST_MANIFESTS,
        tasks=[TASKS_DIR.manifest] if TASKS_DIR else [],
        cut=cut_files,
    output:
        CELL.scores,
    log:
        log_of("evaluate"),
    benchmark:
        benchmark_of("evaluate")
    priority: 20
    conda:
        ENV
    threads: THREADS
    resources:
        **SCORE_RESOURCES,
    params:
        **CELL_PARAMS,
        text_dir=folders("text", "--text-dir"),
        tasks_dir=folder_option("--tasks-dir", "tasks"),
        cut=folder_option("--cut", "cut"),
        settings=settings("evaluate"),
    message:
        "evaluate {params.cell}"
    shell:
        """
        ffp evaluate \
            --config {params.grid:q} \
            --cell {params.cell:q} \
            --model-dir {params.model_dir:q} \
            --text-dir {params.text_dir:q} \
            {params.tasks_dir:q} \
            {params.cut:q} \
            --out {output:q} \
            >{log:q} 2>&1
        """


# The same for cells that are trained. A rule of its own, because profiles put `evaluate` into one job with `apply`, and
# the training stands between these two.
use rule evaluate as evaluate_trained with:
    wildcard_constraints:
        **TRAINED_ONLY,


ruleorder: evaluate_trained > evaluate
