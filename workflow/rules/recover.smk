# New weights for a pruned model, by training; only cells that ask for it have this rule.


rule recover:
    input:
        model=MODEL.manifest,
        text=TEXT_DIR.manifest,
        cut=mask_files,
    output:
        CELL.trained,
    log:
        log_of("recover"),
    benchmark:
        benchmark_of("recover")
    wildcard_constraints:
        **TRAINED_ONLY,
    priority: 20
    conda:
        ENV
    threads: THREADS
    resources:
        **SEARCH_RESOURCES,
    params:
        **CELL_PARAMS,
        text_dir=subpath(input.text, parent=True),
        cut=folder_option("--cut", "cut"),
        out=subpath(output[0], parent=True),
        settings=settings("recover"),
    message:
        "recover {params.cell}"
    shell:
        """
        ffp recover \
            --config {params.grid:q} \
            --cell {params.cell:q} \
            --model-dir {params.model_dir:q} \
            --text-dir {params.text_dir:q} \
            {params.cut:q} \
            --out {params.out:q} \
            >{log:q} 2>&1
        """
