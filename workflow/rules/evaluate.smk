# Perplexity and zero-shot tasks of one cell, on texts that no earlier step has seen.


rule evaluate:
    input:
        model=MODEL,
        text=TEXT_ASSET,
        tasks=TASKS_ASSET,
        cut=cut_files,
    output:
        f"{CELLS}/{CELL}/scores.json",
    log:
        f"logs/evaluate/{CELL}.log",
    benchmark:
        f"logs/evaluate/{CELL}.benchmark.tsv"
    priority: 20
    conda:
        ENV
    threads: ask("threads")
    resources:
        cpus_per_task=ask("threads"),
        mem_mb=memory,
        gpu=ask("gpu"),
        runtime=ask("runtime_min"),
    params:
        grid=EXPERIMENT.file,
        cell=CELL,
        model_dir=subpath(input.model, parent=True),
        text_dir=subpath(input.text, parent=True),
        tasks_dir=folder_flag("tasks-dir", "tasks"),
        cut=folder_flag("cut", "cut"),
        settings=settings("evaluate"),
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
            2>&1 | tee {log:q}
        """
